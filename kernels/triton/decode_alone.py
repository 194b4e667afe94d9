"""attention_decode of decode.py where each query head has keys of its own (BM = 1), without tensor cores, of whose tiles of 16
rows one would be used. A row's numbers depend on nothing but its own keys.

Launch: grid (M, Q), no scratch.
"""
import triton
import triton.language as tl

from decode import cache_row, capped, seen_from
from overlap import begin_next, wait_for_previous


@triton.jit
def first_block(first, low, BN: tl.constexpr):
    """Where the block of the first key that is seen begins."""
    return first + (low - first) // BN * BN


@triton.jit
def attended_alone(q_D, cache, pages, row, key_at, first, low, end, D, width, values_at, scale, cap, sink, has_sinks,
                   BN: tl.constexpr, PLACES: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr):
    """
    f32[HEAD_DIM]: what a row q sees of the keys low .. end - 1 of a sequence that begins at `first`; `row` of the cache has the
    first block's first key. Each of PLACES places has a running softmax of its own, over every PLACES-th key, so that a block of
    keys needs no sum across threads but those of its scores; they are joined in the end.
    """
    EACH: tl.constexpr = BN // PLACES
    d, n = tl.arange(0, HEAD_DIM), tl.arange(0, BN)
    most = tl.full((PLACES,), float("-inf"), tl.float32)
    total = tl.zeros((PLACES,), tl.float32)
    acc = tl.zeros((PLACES, HEAD_DIM), tl.float32)
    inside_D = (d < D)[None, :]
    begin = first_block(first, low, BN)
    for at in tl.range(begin, end, BN, num_stages=STAGES):
        here = (row + n).to(tl.int64)[:, None] * width + key_at
        inside = (at + n < end)[:, None] & inside_D
        k_ND = tl.load(cache + here + d[None, :], mask=inside, other=0.0)
        v_ND = tl.load(cache + here + values_at + d[None, :], mask=inside, other=0.0)
        row = cache_row(pages, tl.cast(at + BN, tl.int32), at + BN < end)
        s_N = tl.sum(q_D[None, :] * k_ND.to(tl.float32), axis=1) * scale
        s = capped(tl.reshape(s_N, (EACH, PLACES)), cap)
        key = at + tl.arange(0, EACH)[:, None] * PLACES + tl.arange(0, PLACES)[None, :]
        s = tl.where((key >= low) & (key < end), s, float("-inf"))
        larger = tl.maximum(most, tl.max(s, axis=0))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # of a place that has seen no key
        kept, p = tl.exp(most - base), tl.exp(s - base[None, :])
        total = tl.fma(total, kept, tl.sum(p, axis=0))
        values = tl.reshape(v_ND, (EACH, PLACES, HEAD_DIM)).to(tl.float32)
        acc = tl.fma(acc, tl.broadcast_to(kept[:, None], (PLACES, HEAD_DIM)), tl.sum(p[:, :, None] * values, axis=0))
        most = larger
    larger = tl.max(most, axis=0)
    if has_sinks != 0:
        larger = tl.maximum(larger, sink)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    kept = tl.exp(most - base)
    sum_of = tl.sum(total * kept, axis=0)
    if has_sinks != 0:
        sum_of += tl.exp(sink - base)
    return tl.sum(acc * kept[:, None], axis=0) / tl.where(sum_of > 0.0, sum_of, 1.0)


@triton.jit
def attention_decode(qkv, cache, pages, bounds, sinks, out, D, heads, kv_heads, scale, window, cap, has_sinks,
                     BM: tl.constexpr, BN: tl.constexpr, PLACES: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, OVERLAPS: tl.constexpr):
    """One head of one row. See the top of the file."""
    begin_next(OVERLAPS)
    if EXACT:
        D = HEAD_DIM
    m, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM)
    first, end = tl.load(bounds + 2 * m), tl.load(bounds + 2 * m + 1)
    sink = tl.load(sinks + head, mask=has_sinks != 0, other=0.0)
    low = seen_from(first, end, window)
    begin = first_block(first, low, BN)
    row = cache_row(pages, begin, (first >= 0) & (begin < end))  # no launch of a record changes which pages are whose
    wait_for_previous(OVERLAPS)
    if first < 0:  # of a tile
        return
    q_D = tl.load(qkv + (m * (heads + 2 * kv_heads) + head) * D + d, mask=d < D, other=0.0).to(tl.float32)
    result = attended_alone(q_D, cache, pages, row, head * D, first, low, end, D, 2 * kv_heads * D, kv_heads * D, scale, cap, sink, has_sinks, BN, PLACES, HEAD_DIM, STAGES)
    tl.store(out + (m * heads + head) * D + d, result.to(out.dtype.element_ty), mask=d < D)
