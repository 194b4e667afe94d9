"""Generation: keys and values are kept, and each new row attends over those of its sequence. Deterministic, a row by itself.

    cache_write        cache[places[m]] = k and v of row m of qkv, nothing where places[m] < 0: a copy of bits
    attention_decode   out[m] = softmax(scale q K^T) V, with a cap > 0 of scores s cap tanh(s / cap), over rows
                       max(bounds[m, 0], bounds[m, 1] - window) .. bounds[m, 1] - 1 of the cache; zeros where there are none;
                       window 0 has no limit. Query head h reads key head h C / Q. With has_sinks = 1 the softmax has
                       another score sinks[h], without a value

Shapes: qkv c[M, (Q + 2C) D], heads of q, then k, then v; cache c[S, 2 C D], heads of k, then v; places i32[M], distinct; bounds
i32[M, 2]; out c[M, Q D]; sinks f32[Q]. cache_write takes rows in words of 4 bytes: W = 2 C D and skip = Q D, both multiples of
4 words. D is
at most HEAD_DIM, and equal to it where EXACT = 1. Sums are f32, with a running softmax over blocks of BN keys, which begin at
the first that is seen.

Launch, no scratch: cache_write grid (M, ceil(W / BLOCK)); attention_decode grid (M, Q).
"""
import triton
import triton.language as tl


@triton.jit
def cache_write(qkv, places, cache, W, skip, BLOCK: tl.constexpr):
    """A row's keys and values to their place. See the top of the file."""
    W, skip = W // 4 * 4, skip // 4 * 4  # as they are: tells the compiler that rows are aligned to 16 bytes
    m, w = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + m)
    if place >= 0:
        words = tl.load(qkv + m * (W + skip) + skip + w, mask=w < W)
        tl.store(cache + place.to(tl.int64) * W + w, words, mask=w < W)


@triton.jit
def attention_decode(qkv, cache, bounds, sinks, out, D, heads, kv_heads, scale, window, cap, has_sinks,
                     BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr):
    """One query head of one row. See the top of the file."""
    if EXACT:
        D = HEAD_DIM
    m, head, d, n = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM), tl.arange(0, BN)
    first, end = tl.load(bounds + 2 * m), tl.load(bounds + 2 * m + 1)
    if window > 0:
        first = tl.maximum(first, end - window)
    q = tl.load(qkv + m * (heads + 2 * kv_heads) * D + head * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
    width = 2 * kv_heads * D
    k_rows = cache + (head * kv_heads // heads) * D
    v_rows = k_rows + kv_heads * D
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((HEAD_DIM,), tl.float32)
    for begin in range(first, end, BN):
        seen = begin + n < end
        at = (begin + n).to(tl.int64)[:, None] * width + d[None, :]
        inside = seen[:, None] & (d < D)[None, :]
        k = tl.load(k_rows + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_rows + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.sum(k * q[None, :], axis=1)
        if cap > 0:
            s = cap * (2.0 * tl.sigmoid(2.0 * s / cap) - 1.0)
        s = tl.where(seen, s, float("-inf"))
        larger = tl.maximum(most, tl.max(s, axis=0))  # a block has a key that is seen, so this is finite
        kept = tl.exp(most - larger)
        p = tl.exp(s - larger)
        total = total * kept + tl.sum(p, axis=0)
        acc = acc * kept + tl.sum(p[:, None] * v, axis=0)
        most = larger
    if has_sinks != 0:
        sink = tl.load(sinks + head)
        larger = tl.maximum(most, sink)
        kept = tl.exp(most - larger)
        total = total * kept + tl.exp(sink - larger)
        acc *= kept
    result = acc / tl.where(total > 0.0, total, 1.0)  # of no keys: 0
    tl.store(out + (m * heads + head) * D + d, result.to(out.dtype.element_ty), mask=d < D)


# What is compiled.

from variants import row

# HEAD_DIM and EXACT.
HEADS = {"ptr": ((64, 1), (128, 1), (256, 1), (512, 1), (128, 0), (256, 0)), "f32": ((128, 0), (256, 0), (512, 0))}


def variants():
    """A launcher of attention_decode chooses by the head's size as it does for attention.py."""
    yield row("decode", "cache_write", None, "qkv:*i32 places:*i32 cache:*i32 W:i32 skip:i32", BLOCK=2048)
    for kind in HEADS:
        for head_dim, exact in HEADS[kind]:
            parameters = "qkv:c cache:c bounds:*i32 sinks:*fp32 out:c D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32 cap:fp32 has_sinks:i32"
            yield row("decode", "attention_decode", kind, parameters, BN=(64 if head_dim <= 256 else 16), HEAD_DIM=head_dim, EXACT=exact)
