"""Generation: keys and values are kept in pages, and each new row attends over those of its sequence. Deterministic, a row by
itself.

    cache_write        cache[place of m] = k and v of row m of qkv, nothing where places[m] < 0: a copy of bits
    attention_decode   out[m] = softmax(scale q K^T) V, with a cap > 0 of scores s cap tanh(s / cap), over the keys
                       max(bounds[m, 0], bounds[m, 1] - window) .. bounds[m, 1] - 1; zeros where there are none; window 0 has no
                       limit. Query head h reads key head h C / Q. With has_sinks = 1 the softmax has another score sinks[h],
                       without a value
    attention_extend   the same of tiles of rows: tiles[t] = the first row and how many rows, all of one sequence. They
                       have ~bounds[m, 0] in place of bounds[m, 0], by which attention_decode leaves them out

Shapes: qkv c[M, (Q + 2C) D], heads of q, then k, then v; cache c[S, 2 C D], heads of k, then v; pages i32[..]; places i32[M],
distinct; bounds i32[M, 2]; tiles i32[T, 2]; out c[M, Q D]; sinks f32[Q]. Places and bounds count rows as if a sequence's lay
next to each other: row r is row pages[r / PAGE] PAGE + r % PAGE of the cache, and bounds[m, 0] is a multiple of PAGE.
cache_write takes rows in words of 4 bytes: W = 2 C D and skip = Q D, both multiples of 4 words. D is at most HEAD_DIM, and
equal to it where EXACT = 1.

Sums are f32, with a running softmax over blocks of BN keys that are counted from a sequence's first. A block of which a row
sees no key changes no bit of it, so a row's numbers depend neither on the others of its tile nor on where pages lie.

Launch, no scratch: cache_write grid (M, ceil(W / BLOCK)); attention_decode grid (M, C, ceil(Q / C / BM)); attention_extend
grid (T, Q, ceil(largest tile / BM)). Where each query head has keys of its own, decode_alone.py
has an attention_decode.
"""
import triton
import triton.language as tl

from overlap import begin_next, wait_for_previous

PAGE = tl.constexpr(32)


@triton.jit
def cache_row(pages, row, there):
    """Where rows that count as if a sequence's lay next to each other are in the cache."""
    return tl.load(pages + row // PAGE, mask=there, other=0) * PAGE + row % PAGE


@triton.jit
def cache_write(qkv, places, pages, cache, W, skip, BLOCK: tl.constexpr):
    """A row's keys and values to their place. See the top of the file."""
    W, skip = W // 4 * 4, skip // 4 * 4  # as they are: tells the compiler that rows are aligned to 16 bytes
    m, w = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + m)
    if place >= 0:
        words = tl.load(qkv + m * (W + skip) + skip + w, mask=w < W)
        tl.store(cache + cache_row(pages, place, True).to(tl.int64) * W + w, words, mask=w < W)


@triton.jit
def capped(s, cap):
    """Scores, with a cap > 0 within it."""
    if cap > 0:
        s = cap * (2.0 * tl.sigmoid(2.0 * s / cap) - 1.0)
    return s


@triton.jit
def seen_from(first, end, window):
    """The first key that a row sees of those of its sequence."""
    low = first
    if window > 0:
        low = tl.maximum(first, end - window)
    return low


@triton.jit
def attended(q_MD, cache, pages, key_at, first, low_M, end_M, D, width, values_at, scale, cap, sink_M, has_sinks,
             BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr):
    """f32[BM, HEAD_DIM]: what rows q see of the keys low .. end - 1 of a sequence that begins at `first`."""
    d, n = tl.arange(0, HEAD_DIM), tl.arange(0, BN)
    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, HEAD_DIM), tl.float32)
    last = tl.max(end_M, axis=0)
    lowest = tl.min(tl.where(end_M > low_M, low_M, last), axis=0)
    for begin in range(first + (lowest - first) // BN * BN, last, BN):
        key = begin + n
        row = cache_row(pages, key, key < last).to(tl.int64)[:, None] * width + key_at
        inside = (key < last)[:, None] & (d < D)[None, :]
        k_ND = tl.load(cache + row + d[None, :], mask=inside, other=0.0)
        v_ND = tl.load(cache + row + values_at + d[None, :], mask=inside, other=0.0)
        s = capped(tl.dot(q_MD, k_ND.T, input_precision="ieee") * scale, cap)
        s = tl.where((key[None, :] >= low_M[:, None]) & (key[None, :] < end_M[:, None]), s, float("-inf"))
        larger = tl.maximum(most, tl.max(s, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # of a row that has seen no key
        kept = tl.exp(most - base)
        p = tl.exp(s - base[:, None])
        total = total * kept + tl.sum(p, axis=1)
        high = p.to(v_ND.dtype)
        acc = tl.dot(high, v_ND, acc * kept[:, None], input_precision="ieee")
        if v_ND.dtype == tl.bfloat16:  # what rounding took of the weights
            acc = tl.dot((p - high.to(tl.float32)).to(v_ND.dtype), v_ND, acc, input_precision="ieee")
        most = larger
    if has_sinks != 0:
        larger = tl.maximum(most, sink_M)
        kept = tl.exp(most - larger)
        total = total * kept + tl.exp(sink_M - larger)
        acc *= kept[:, None]
    return acc / tl.where(total > 0.0, total, 1.0)[:, None]  # of no keys: 0


@triton.jit
def attention_decode(qkv, cache, pages, bounds, sinks, out, D, heads, kv_heads, scale, window, cap, has_sinks,
                     BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, OVERLAPS: tl.constexpr):
    """BM query heads of one row, which read one key head. See the top of the file."""
    begin_next(OVERLAPS)
    if EXACT:
        D = HEAD_DIM
    m, key_head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM)
    group = heads // kv_heads
    within = tl.program_id(2) * BM + tl.arange(0, BM)
    head, there = key_head * group + within, within < group
    first, end = tl.load(bounds + 2 * m), tl.load(bounds + 2 * m + 1)
    sink_M = tl.load(sinks + head, mask=there & (has_sinks != 0), other=0.0)
    wait_for_previous(OVERLAPS)
    if first < 0:  # of a tile
        return
    low = seen_from(first, end, window)
    inside = there[:, None] & (d < D)[None, :]
    q_MD = tl.load(qkv + (m * (heads + 2 * kv_heads) + head[:, None]) * D + d[None, :], mask=inside, other=0.0)
    low_M, end_M = tl.zeros((BM,), tl.int32) + low, tl.zeros((BM,), tl.int32) + end
    result = attended(q_MD, cache, pages, key_head * D, first, low_M, end_M, D, 2 * kv_heads * D, kv_heads * D, scale, cap, sink_M, has_sinks, BM, BN, HEAD_DIM)
    tl.store(out + (m * heads + head[:, None]) * D + d[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attention_extend(qkv, cache, pages, bounds, tiles, sinks, out, D, heads, kv_heads, scale, window, cap, has_sinks,
                     BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr):
    """One query head of a tile of rows. See the top of the file."""
    if EXACT:
        D = HEAD_DIM
    tile, head, d, i = tl.program_id(0), tl.program_id(1), tl.arange(0, HEAD_DIM), tl.arange(0, BM)
    before = tl.program_id(2) * BM
    begin, count = tl.load(tiles + 2 * tile) + before, tl.load(tiles + 2 * tile + 1) - before
    if count <= 0:
        return
    m, there = (begin + i).to(tl.int64), i < count
    first = ~tl.load(bounds + 2 * begin)
    end_M = tl.load(bounds + 2 * m + 1, mask=there, other=0)
    end_M = tl.where(there, end_M, first)
    low_M = tl.zeros((BM,), tl.int32) + first
    if window > 0:
        low_M = tl.maximum(low_M, end_M - window)
    key_head = head * kv_heads // heads
    inside = there[:, None] & (d < D)[None, :]
    q_MD = tl.load(qkv + (m * (heads + 2 * kv_heads) + head)[:, None] * D + d[None, :], mask=inside, other=0.0)
    sink_M = tl.zeros((BM,), tl.float32) + tl.load(sinks + head, mask=has_sinks != 0, other=0.0)
    result = attended(q_MD, cache, pages, key_head * D, first, low_M, end_M, D, 2 * kv_heads * D, kv_heads * D, scale, cap, sink_M, has_sinks, BM, BN, HEAD_DIM)
    tl.store(out + (m * heads + head)[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=inside)


# What is compiled.

from variants import overlapping, row

# HEAD_DIM and EXACT, keys at once, rows of a tile of attention_extend, warps of it and stages.
HEADS = {
    "ptr": ((64, 1, 64, 64, 4, 3), (128, 1, 64, 64, 4, 3), (256, 1, 32, 64, 4, 2), (512, 1, 16, 16, 4, 2), (128, 0, 32, 32, 4, 2), (256, 0, 32, 32, 8, 2)),
    "f32": ((128, 0, 32, 32, 8, 2), (256, 0, 16, 16, 8, 2), (512, 0, 16, 16, 4, 1)),
}
# Keys at once and stages of attention_decode, by HEAD_DIM where EXACT = 1: many programs share a multiprocessor.
FEW = {128: (32, 2)}
# Heads, where each has keys of its own, that decode_alone.py attends: keys at once, places, warps, stages and EARLY of each
# size. Of a size of 128 each thread's keys are those of a place, so that 118 registers hold all: 16 programs share a
# multiprocessor, all of 64 sequences of a 7B at once.
ALONE = {"ptr": {64: (16, 8, 2, 1, 0), 128: (8, 2, 1, 2, 0)}, "f32": {}}
PARAMETERS = "qkv:c cache:c pages:*i32 bounds:*i32 {}sinks:*fp32 out:c D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32 cap:fp32 has_sinks:i32"


def variants():
    """A launcher of attention chooses by the head's size as it does for attention.py."""
    yield row("decode", "cache_write", None, "qkv:*i32 places:*i32 pages:*i32 cache:*i32 W:i32 skip:i32", BLOCK=2048)
    for kind in HEADS:
        for head_dim, exact, keys, rows, warps, stages in HEADS[kind]:
            few, few_stages = FEW.get(head_dim, (keys, stages)) if exact else (keys, stages)
            found = row("decode", "attention_decode", kind, PARAMETERS.format(""), 4, few_stages, BM=16, BN=few, HEAD_DIM=head_dim, EXACT=exact)
            yield from overlapping(found)
            if exact and head_dim in ALONE[kind]:
                keys_alone, places, warps_alone, stages_alone, early = ALONE[kind][head_dim]
                yield from overlapping(row("decode_alone", "attention_decode", kind, PARAMETERS.format(""), warps_alone, 1, BM=1, BN=keys_alone, PLACES=places, HEAD_DIM=head_dim, EXACT=1, STAGES=stages_alone, EARLY=early))
            yield row("decode", "attention_extend", kind, PARAMETERS.format("tiles:*i32 "), warps, stages, BM=rows, BN=keys, HEAD_DIM=head_dim, EXACT=exact)
