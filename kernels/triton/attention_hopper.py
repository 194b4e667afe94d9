"""attention.py for Hopper: the same kernels with the same arguments, in Gluon, for bf16 and heads of HEAD_DIM = 64, 128 or 256
(EXACT is 1, CAP 0). attention_backward_kv is in attention_hopper_keys.py.

One warp loads tiles by TMA into rings of buffers; two warp groups, 64 rows each, compute. They share what is loaded and wait
for nothing else of each other: while one is busy with exponentials, the tensor cores serve the other. A ring has two barriers
for each of its buffers: `full` (its bytes have come) and `empty` (both groups have read it).

What is summed in which order, and why other adapters change nothing, is as attention.py says. Descriptors: q_rows and do_rows
[64, HEAD_DIM] in the kernels of queries and [BM, HEAD_DIM] in attention_backward_kv; kv_rows [BN, HEAD_DIM] and there [64,
HEAD_DIM]; out and dqkv that are written [64, HEAD_DIM]; lse and delta that attention_backward_kv reads, as matrices [Q, M], [1,
BM].

ptxas moves a wait for a matrix product before arithmetic that does not need it, and would so end the overlap of exponentials
and products; it does not move it over the loop that waits for a barrier. So each loop waits for its next keys before it waits
for the product that ran meanwhile. A product in flight from one iteration to the next makes ptxas serialise all (C7512).
"""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from attention import LN2, LOG2E, LOWEST, first_seen, place

ROWS = gl.constexpr(64)  # of a warp group
LOADER_REGISTERS = gl.constexpr(24)


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers, each passed when ARRIVALS have come."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), ARRIVALS)
    return made


@gluon.jit
def tile_ring(like, STAGES: gl.constexpr, HEIGHT: gl.constexpr):
    """(buffers, full, empty): a ring of STAGES tiles of HEIGHT rows of a descriptor's matrix."""
    buffers = gl.allocate_shared_memory(like.dtype, [STAGES, HEIGHT, like.block_shape[1]], like.layout)
    return buffers, barriers(STAGES, 1), barriers(STAGES, 2)


@gluon.jit
def claim(ring, i):
    """The buffer of the i-th tile and its barrier, once both groups have read what it held."""
    buffers, full, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.wait(empty.index(i % STAGES), (i // STAGES & 1) ^ 1)
    return buffers.index(i % STAGES), full.index(i % STAGES)


@gluon.jit
def arrived(ring, i, needed=True):
    """Waits until the i-th tile has come."""
    buffers, full, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.wait(full.index(i % STAGES), i // STAGES & 1, pred=needed)


@gluon.jit
def tile_of(ring, i):
    """The i-th tile."""
    buffers, full, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    return buffers.index(i % STAGES)


@gluon.jit
def release(ring, i):
    """Says that this group has read the i-th tile."""
    buffers, full, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.arrive(empty.index(i % STAGES))


@gluon.jit
def pass_over(keys, values, tiles, all_tiles):
    """Says of tiles that this group's rows do not see, once they have come, that it has read them."""
    for j in range(tiles, all_tiles):
        arrived(keys, j)
        release(keys, j)
        arrived(values, j)
        release(values, j)


@gluon.jit
def load_both(rows, row0, column, full, into):
    """Both groups' rows of a matrix; `full` expects their bytes already."""
    tma.async_copy_global_to_shared(rows, [row0, column], full, into.index(0))
    tma.async_copy_global_to_shared(rows, [row0 + ROWS, column], full, into.index(1))


@gluon.jit
def load_tile(ring, i, rows, row0, column):
    """The i-th tile of a ring, from a matrix."""
    into, full = claim(ring, i)
    mbarrier.expect(full, rows.block_type.nbytes)
    tma.async_copy_global_to_shared(rows, [row0, column], full, into)


@gluon.jit
def write_rows(rows, row0, column, through, value):
    """Rounds f32[64, HEAD_DIM] to bf16 and writes it, by way of a buffer that is not read any more."""
    through.store(value.to(gl.bfloat16))
    fence_async_shared()
    tma.async_copy_shared_to_global(rows, [row0, column], through)


@gluon.jit
def key_range(bounds, m0, M, window, BM: gl.constexpr, BN: gl.constexpr):
    """The first key tile's row, the number of tiles (at least one), from where on every row of a sequence sees all up to m0,
    and the number of tiles that the first group's rows see (at least one)."""
    m = m0 + gl.arange(0, BM, gl.BlockedLayout([1], [32], [4], [0]))
    begin, real = first_seen(bounds, m, M, window)
    lo = gl.minimum(gl.min(begin, 0), m0) // BN * BN
    hi = gl.max(gl.where(real, m + 1, 0), 0)
    first = gl.max(gl.where(real & (m < m0 + ROWS), m + 1, 0), 0)
    whole = gl.max(gl.where(real, begin, 0), 0)
    return lo, gl.maximum(gl.cdiv(hi - lo, BN), 1), whole, gl.maximum(gl.cdiv(first - lo, BN), 1)


@gluon.jit
def mask_keys(s, begin, m, m0, n0, whole, BN: gl.constexpr, S: gl.constexpr):
    """Scores of rows m from m0 and keys from n0: -inf where a row does not see a key."""
    if (n0 < whole) | (n0 + BN > m0 + 1):
        n = n0 + gl.arange(0, BN, gl.SliceLayout(0, S))
        s = gl.where((n[None, :] >= begin[:, None]) & (n[None, :] <= m[:, None]), s, float("-inf"))
    return s


@gluon.jit
def softmax(s, high, total, to_log2):
    """Of one more tile of scores: the tile's exponentials, the new maxima and sums, and what the old sums were multiplied
    by."""
    higher = gl.maximum(high, gl.max(s, 1) * to_log2)
    p = gl.exp2(gl.fma(s, to_log2, -higher[:, None]))
    less = gl.exp2(high - higher)
    return p, higher, gl.fma(total, less, gl.sum(p, 1)), less


@gluon.jit
def load_forward(q_rows, kv_rows, q_s, q_full, keys, values, m0, lo, tiles, q_column, k_column, v_column):
    """The loading warp of attention_forward."""
    mbarrier.expect(q_full.index(0), 2 * q_rows.block_type.nbytes)
    load_both(q_rows, m0, q_column, q_full.index(0), q_s)
    for j in range(tiles):
        load_tile(keys, j, kv_rows, lo + j * kv_rows.block_shape[0], k_column)
        load_tile(values, j, kv_rows, lo + j * kv_rows.block_shape[0], v_column)


@gluon.jit
def forward_rows(out, lse, bounds, q_s, q_full, keys, values, M, m0, head, lo, tiles, all_tiles, whole, scale, window,
                 GROUP: gl.constexpr, BN: gl.constexpr, HEAD_DIM: gl.constexpr):
    """One group's rows: scores of a tile are made while the last tile's are multiplied with its values."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    m0 += GROUP * ROWS
    m = m0 + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    begin, real = first_seen(bounds, m, M, window)
    to_log2 = scale * LOG2E
    q = q_s.index(GROUP)
    none = gl.zeros([ROWS, BN], gl.float32, S)
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    high = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))

    mbarrier.wait(q_full.index(0), 0)
    arrived(keys, 0)
    s = warpgroup_mma_wait(0, [warpgroup_mma(q, tile_of(keys, 0).permute((1, 0)), none, use_acc=False, is_async=True)])
    release(keys, 0)
    p, high, total, less = softmax(mask_keys(s, begin, m, m0, lo, whole, BN, S), high, total, to_log2)
    arrived(keys, 1, tiles > 1)
    for j in range(1, tiles):
        p_MN = gl.convert_layout(p.to(gl.bfloat16), P)
        s = warpgroup_mma(q, tile_of(keys, j).permute((1, 0)), none, use_acc=False, is_async=True)
        arrived(values, j - 1)
        acc = warpgroup_mma(p_MN, tile_of(values, j - 1), acc, is_async=True)
        s = warpgroup_mma_wait(1, [s])
        release(keys, j)
        p, high, total, less = softmax(mask_keys(s, begin, m, m0, lo + j * BN, whole, BN, S), high, total, to_log2)
        arrived(keys, j + 1, j + 1 < tiles)
        acc = warpgroup_mma_wait(0, [acc])
        release(values, j - 1)
        acc = acc * gl.convert_layout(less, gl.SliceLayout(1, O))[:, None]
    p_MN = gl.convert_layout(p.to(gl.bfloat16), P)
    arrived(values, tiles - 1)
    acc = warpgroup_mma_wait(0, [warpgroup_mma(p_MN, tile_of(values, tiles - 1), acc, is_async=True)])

    total = gl.where(real, total, 1.0)
    gl.store(lse + head.to(gl.int64) * M + m, gl.where(real, (high + gl.log2(total)) * LN2, 0.0))
    share = gl.convert_layout(gl.where(real, 1.0 / total, 0.0), gl.SliceLayout(1, O))[:, None]
    write_rows(out, m0, head * HEAD_DIM, q, gl.where(share > 0, acc * share, 0.0))
    pass_over(keys, values, tiles, all_tiles)
    tma.store_wait(0)


@gluon.jit
def attention_forward(q_rows, kv_rows, bounds, out, lse, M, D, heads, kv_heads, scale, window, cap,
                      BM: gl.constexpr, BN: gl.constexpr, HEAD_DIM: gl.constexpr, EXACT: gl.constexpr, CAP: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr):
    """One head of BM = 128 rows."""
    tile, head = place(heads)
    m0 = M - BM - tile * BM  # later rows see more
    lo, tiles, whole, first = key_range(bounds, m0, M, window, BM, BN)
    k_head = heads + head * kv_heads // heads
    q_s = gl.allocate_shared_memory(q_rows.dtype, [2, ROWS, HEAD_DIM], q_rows.layout)
    q_full = barriers(1, 1)
    keys, values = tile_ring(kv_rows, STAGES, BN), tile_ring(kv_rows, STAGES, BN)
    gl.warp_specialize([
        (forward_rows, (out, lse, bounds, q_s, q_full, keys, values, M, m0, head, lo, first, tiles, whole, scale, window, 0, BN, HEAD_DIM)),
        (forward_rows, (out, lse, bounds, q_s, q_full, keys, values, M, m0, head, lo, tiles, tiles, whole, scale, window, 1, BN, HEAD_DIM)),
        (load_forward, (q_rows, kv_rows, q_s, q_full, keys, values, m0, lo, tiles, head * HEAD_DIM, k_head * HEAD_DIM, (k_head + kv_heads) * HEAD_DIM)),
    ], [4, 1], [REGISTERS, LOADER_REGISTERS])


@gluon.jit
def load_queries(q_rows, kv_rows, do_rows, q_s, do_s, q_full, keys, values, m0, lo, tiles, q_column, k_column, v_column):
    """The loading warp of attention_backward_q."""
    mbarrier.expect(q_full.index(0), 4 * q_rows.block_type.nbytes)
    load_both(q_rows, m0, q_column, q_full.index(0), q_s)
    load_both(do_rows, m0, q_column, q_full.index(0), do_s)
    for j in range(tiles):
        load_tile(keys, j, kv_rows, lo + j * kv_rows.block_shape[0], k_column)
        load_tile(values, j, kv_rows, lo + j * kv_rows.block_shape[0], v_column)


@gluon.jit
def query_rows(dqkv, out, lse, delta, bounds, q_s, do_s, q_full, keys, values, M, m0, head, heads, lo, tiles, all_tiles, whole, scale, window,
               GROUP: gl.constexpr, BN: gl.constexpr, HEAD_DIM: gl.constexpr):
    """dq and delta of one group's rows."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    m0 += GROUP * ROWS
    m = m0 + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    begin, real = first_seen(bounds, m, M, window)
    to_log2 = scale * LOG2E
    q, do = q_s.index(GROUP), do_s.index(GROUP)
    at = head.to(gl.int64) * M + m
    lse_M = gl.load(lse + at) * LOG2E
    row = (m0 + gl.arange(0, ROWS, gl.SliceLayout(1, WIDE))).to(gl.int64)
    out_MD = gl.load(out + row[:, None] * (heads * HEAD_DIM) + (head * HEAD_DIM + gl.arange(0, HEAD_DIM, gl.SliceLayout(0, WIDE)))[None, :])
    mbarrier.wait(q_full.index(0), 0)
    delta_M = gl.convert_layout(gl.sum(out_MD.to(gl.float32) * do.load(WIDE).to(gl.float32), 1), gl.SliceLayout(1, S))
    gl.store(delta + at, delta_M)

    none = gl.zeros([ROWS, BN], gl.float32, S)
    dq = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    arrived(keys, 0)
    for j in range(tiles):
        k = tile_of(keys, j)
        s = warpgroup_mma(q, k.permute((1, 0)), none, use_acc=False, is_async=True)
        arrived(values, j)
        dp = warpgroup_mma(do, tile_of(values, j).permute((1, 0)), none, use_acc=False, is_async=True)
        s = mask_keys(warpgroup_mma_wait(1, [s]), begin, m, m0, lo + j * BN, whole, BN, S)
        p = gl.exp2(gl.fma(s, to_log2, -lse_M[:, None]))
        arrived(keys, j + 1, j + 1 < tiles)
        dp = warpgroup_mma_wait(0, [dp])
        release(values, j)
        ds = gl.convert_layout((p * (dp - delta_M[:, None])).to(gl.bfloat16), P)
        dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, k, dq, is_async=True)])
        release(keys, j)
    real_O = gl.convert_layout(real.to(gl.int32), gl.SliceLayout(1, O))[:, None] != 0
    write_rows(dqkv, m0, head * HEAD_DIM, q, gl.where(real_O, dq * scale, 0.0))
    pass_over(keys, values, tiles, all_tiles)
    tma.store_wait(0)


@gluon.jit
def attention_backward_q(q_rows, kv_rows, do_rows, bounds, out, lse, delta, dqkv, M, D, heads, kv_heads, scale, window, cap,
                         BM: gl.constexpr, BN: gl.constexpr, HEAD_DIM: gl.constexpr, EXACT: gl.constexpr, CAP: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr):
    """dq and delta of one head of BM = 128 rows."""
    tile, head = place(heads)
    m0 = M - BM - tile * BM
    lo, tiles, whole, first = key_range(bounds, m0, M, window, BM, BN)
    k_head = heads + head * kv_heads // heads
    q_s = gl.allocate_shared_memory(q_rows.dtype, [2, ROWS, HEAD_DIM], q_rows.layout)
    do_s = gl.allocate_shared_memory(q_rows.dtype, [2, ROWS, HEAD_DIM], q_rows.layout)
    q_full = barriers(1, 1)
    keys, values = tile_ring(kv_rows, STAGES, BN), tile_ring(kv_rows, STAGES, BN)
    gl.warp_specialize([
        (query_rows, (dqkv, out, lse, delta, bounds, q_s, do_s, q_full, keys, values, M, m0, head, heads, lo, first, tiles, whole, scale, window, 0, BN, HEAD_DIM)),
        (query_rows, (dqkv, out, lse, delta, bounds, q_s, do_s, q_full, keys, values, M, m0, head, heads, lo, tiles, tiles, whole, scale, window, 1, BN, HEAD_DIM)),
        (load_queries, (q_rows, kv_rows, do_rows, q_s, do_s, q_full, keys, values, m0, lo, tiles, head * HEAD_DIM, k_head * HEAD_DIM, (k_head + kv_heads) * HEAD_DIM)),
    ], [4, 1], [REGISTERS, LOADER_REGISTERS])
