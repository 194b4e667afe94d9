"""attention_decode of decode.py where each query head has keys of its own (BM = 1), without tensor cores, of whose tiles of 16
rows one would be used. A row's numbers depend on nothing but its own keys.

A block of BN keys, a divisor of PAGE, comes from memory while the one before is computed: by STAGES of loads to shared memory,
or with EARLY = 1 to registers. HEAD_DIM is a multiple of 8, and D is HEAD_DIM.

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


RUN = tl.constexpr(8)  # features that a thread has of a key, 16 bytes


@triton.jit
def multiplied(q, k, acc, BN: tl.constexpr, RUNS: tl.constexpr, OF: tl.constexpr):
    """acc[BN, RUNS] with the sums over runs of features q[RUNS, OF] k[BN, RUNS, OF]."""
    if OF == 1:
        acc = tl.fma(tl.broadcast_to(tl.reshape(q, (1, RUNS)), (BN, RUNS)), tl.reshape(k, (BN, RUNS)).to(tl.float32), acc)
    else:
        q0, q1 = tl.split(tl.reshape(q, (RUNS, OF // 2, 2)))
        k0, k1 = tl.split(tl.reshape(k, (BN, RUNS, OF // 2, 2)))
        acc = multiplied(q0, k0, acc, BN, RUNS, OF // 2)
        acc = multiplied(q1, k1, acc, BN, RUNS, OF // 2)
    return acc


@triton.jit
def weighted(p, v, acc, EACH: tl.constexpr, PLACES: tl.constexpr, HEAD_DIM: tl.constexpr):
    """acc[PLACES, HEAD_DIM] with the sum over keys of p v, one after the other."""
    if EACH == 1:
        acc = tl.fma(tl.broadcast_to(tl.reshape(p, (PLACES, 1)), (PLACES, HEAD_DIM)), tl.reshape(v, (PLACES, HEAD_DIM)).to(tl.float32), acc)
    else:
        p0, p1 = tl.split(tl.permute(tl.reshape(p, (2, EACH // 2, PLACES)), (1, 2, 0)))
        v0, v1 = tl.split(tl.permute(tl.reshape(v, (2, EACH // 2, PLACES, HEAD_DIM)), (1, 2, 3, 0)))
        acc = weighted(p0, v0, acc, EACH // 2, PLACES, HEAD_DIM)
        acc = weighted(p1, v1, acc, EACH // 2, PLACES, HEAD_DIM)
    return acc


@triton.jit
def block_of(cache, row, key_at, at_ND, inside, width, values_at):
    """Keys and values of a block from a row of the cache on."""
    block = cache + (row.to(tl.int64) * width + key_at)
    k_ND = tl.load(block + at_ND)  # whatever a page has after the last key is masked in the scores
    return k_ND, tl.load(block + values_at + at_ND, mask=inside[:, None], other=0.0)


@triton.jit
def attended_alone(q_D, cache, pages, row, key_at, first, low, end, D, width, values_at, scale, cap, sink, has_sinks,
                   BN: tl.constexpr, PLACES: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr):
    """
    f32[HEAD_DIM]: what a row q sees of the keys low .. end - 1 of a sequence that begins at `first`; `row` of the cache has the
    first block's first key. Each of PLACES places has a running softmax of its own, over every PLACES-th key, so that a block
    needs no sum across threads but that of its scores; they are joined in the end.
    """
    EACH: tl.constexpr = BN // PLACES
    RUNS: tl.constexpr = HEAD_DIM // RUN
    q = tl.reshape(q_D, (RUNS, RUN))
    d, n = tl.arange(0, HEAD_DIM), tl.arange(0, BN)
    most = tl.full((PLACES,), float("-inf"), tl.float32)
    total = tl.zeros((PLACES,), tl.float32)
    acc = tl.zeros((PLACES, HEAD_DIM), tl.float32)
    at_ND = (n * width)[:, None] + d[None, :]  # of a block, which lies in one page
    begin = first_block(first, low, BN)
    if EARLY:
        next_k, next_v = block_of(cache, row, key_at, at_ND, begin + n < end, width, values_at)
    for at in tl.range(begin, end, BN, num_stages=STAGES):
        if EARLY:
            k_ND, v_ND = next_k, next_v
        else:
            k_ND, v_ND = block_of(cache, row, key_at, at_ND, at + n < end, width, values_at)
        row = cache_row(pages, tl.cast(at + BN, tl.int32), at + BN < end)
        if EARLY:
            next_k, next_v = block_of(cache, row, key_at, at_ND, at + BN + n < end, width, values_at)
        runs = multiplied(q, tl.reshape(k_ND, (BN, RUNS, RUN)), tl.zeros((BN, RUNS), tl.float32), BN, RUNS, RUN)
        s_N = tl.sum(runs, axis=1) * scale
        s = capped(tl.reshape(s_N, (EACH, PLACES)), cap)
        key = at + tl.arange(0, EACH)[:, None] * PLACES + tl.arange(0, PLACES)[None, :]
        s = tl.where((key >= low) & (key < end), s, float("-inf"))
        larger = tl.maximum(most, tl.max(s, axis=0))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # of a place that has seen no key
        kept, p = tl.exp(most - base), tl.exp(s - base[None, :])
        total = tl.fma(total, kept, tl.sum(p, axis=0))
        acc = weighted(p, tl.reshape(v_ND, (EACH, PLACES, HEAD_DIM)), acc * kept[:, None], EACH, PLACES, HEAD_DIM)
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
                     BM: tl.constexpr, BN: tl.constexpr, PLACES: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr, OVERLAPS: tl.constexpr):
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
    result = attended_alone(q_D, cache, pages, row, head * D, first, low, end, D, 2 * kv_heads * D, kv_heads * D, scale, cap, sink, has_sinks, BN, PLACES, HEAD_DIM, STAGES, EARLY)
    tl.store(out + (m * heads + head) * D + d, result.to(out.dtype.element_ty), mask=d < D)
