"""fewrows_product of fewrows.py for Hopper, in Gluon: the same sums with the same bits, of one piece of K in a program. And

    fewrows_gated     h[m, i] = silu(y[m, i]) y[m, I + i] of y = x w^T in one piece, N = 2 I: as fewrows_swiglu of its parts

The weight comes by TMA into a ring of buffers that is filled before the kernel waits for the launch before it (overlap.py): a
weight is no activation. So the kernels between two products, which read little, run while the next weight is on its way, and a
product finds its first STAGES tiles in shared memory. Rows of x have a ring of their own, which begins after that wait.

Descriptors: rows [BM, BK], w [BN, BK]. All four warps issue, multiply and store; a barrier among them says that a buffer has
been read. Launch of fewrows_gated: grid (ceil(I / BN), ceil(M / BM)).
"""
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from fewrows import low_rows, piece_of
from overlap import begin_next, wait_for_previous


@gluon.jit
def ring(like, STAGES: gl.constexpr):
    """(buffers, full): tiles of a descriptor's matrix, and what says that one has come."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), 1)
    return gl.allocate_shared_memory(like.dtype, [STAGES] + like.block_shape, like.layout), full


@gluon.jit
def load(tiles, matrix, i, row, column, there):
    """Begins to load the i-th tile of a ring, whose buffer is free, where `there`."""
    buffers, full = tiles
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.expect(full.index(i % STAGES), matrix.block_type.nbytes, pred=there)
    tma.async_copy_global_to_shared(matrix, [row, column], full.index(i % STAGES), buffers.index(i % STAGES), pred=there)


@gluon.jit
def arrived(tiles, i):
    """The i-th tile, once it has come."""
    buffers, full = tiles
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.wait(full.index(i % STAGES), i // STAGES & 1)
    return buffers.index(i % STAGES)


@gluon.jit
def part_tile(rows, w, part, tile, M, N, K, piece,
              BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, ROW_STAGES: gl.constexpr, OVERLAPS: gl.constexpr):
    """One piece of the product of BM rows and BN columns."""
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    p, tile_m, tile_n, blocks = piece_of(tile, M, N, K, piece, BM, BN, BK, False)
    m0, n0 = tile_m * BM, tile_n * BN
    first = p * piece
    count = gl.minimum(piece, blocks - first)
    weights, xs = ring(w, STAGES), ring(rows, ROW_STAGES)
    for i in gl.static_range(STAGES):
        load(weights, w, i, n0, (first + i) * BK, i < count)
    wait_for_previous(OVERLAPS)
    for i in gl.static_range(ROW_STAGES):
        load(xs, rows, i, m0, (first + i) * BK, i < count)
    acc = gl.zeros([BN, BM], gl.float32, ACC)
    for i in range(count):
        w_NK = arrived(weights, i)
        x_MK = arrived(xs, i)
        acc = warpgroup_mma_wait(0, [warpgroup_mma(w_NK, x_MK.permute((1, 0)), acc, is_async=True)])
        gl.thread_barrier()  # all warps have read both
        load(weights, w, i + STAGES, n0, (first + i + STAGES) * BK, i + STAGES < count)
        load(xs, rows, i + ROW_STAGES, m0, (first + i + ROW_STAGES) * BK, i + ROW_STAGES < count)
    n, m = n0 + gl.arange(0, BN, gl.SliceLayout(1, ACC)), m0 + gl.arange(0, BM, gl.SliceLayout(0, ACC))
    at = (p * M + m).to(gl.int64)[None, :] * N + n[:, None]
    gl.store(part + at, acc, mask=(n < N)[:, None] & (m < M)[None, :])


@gluon.jit
def copy_rows(into, row, there, k, end, PIECES: gl.constexpr, LK: gl.constexpr):
    """Begins to copy rows from column k on, LK columns at a time; zeros where there are none and from column `end` on."""
    for i in gl.static_range(PIECES):
        column = (k + i * LK)[None, :]
        async_copy.async_copy_global_to_shared(into.index(i), row + column, mask=there & (column < end))
    async_copy.commit_group()


@gluon.jit
def low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G,
             LM: gl.constexpr, LJ: gl.constexpr, LK: gl.constexpr, PART: gl.constexpr, OVERLAPS: gl.constexpr):
    """As low_tile of fewrows.py. The first adapter's rows of A come before x does, those of the next one after a product."""
    PIECES: gl.constexpr = PART // LK
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // LK, LK // 8], [4, 1], [1, 0])
    ACC: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8])
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    dtype: gl.constexpr = x.dtype.element_ty
    tiles_m, tiles_j = gl.cdiv(M, LM), gl.cdiv(W, LJ)
    m0, j0 = tile % tiles_m * LM, tile // tiles_m % tiles_j * LJ
    p = tile // (tiles_m * tiles_j)
    k, end = p * PART + gl.arange(0, LK, gl.SliceLayout(0, COPY)), gl.minimum(K, p * PART + PART)
    x_m, a_j = m0 + gl.arange(0, LM, gl.SliceLayout(1, COPY)), (j0 + gl.arange(0, LJ, gl.SliceLayout(1, COPY)))[:, None]
    m, j = m0 + gl.arange(0, LM, gl.SliceLayout(1, ACC)), j0 + gl.arange(0, LJ, gl.SliceLayout(0, ACC))
    xs, own = gl.allocate_shared_memory(dtype, [PIECES, LM, LK], SHARED), gl.allocate_shared_memory(dtype, [PIECES, LJ, LK], SHARED)
    here = gl.load(row_adapter + m, mask=m < M, other=-1)
    left = here
    adapter = gl.max(left, axis=0)
    width, a_row, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, a_j, K, G, dtype)
    copy_rows(own, a_row, there, k, end, PIECES, LK)
    wait_for_previous(OVERLAPS)
    copy_rows(xs, x + x_m.to(gl.int64)[:, None] * K, (x_m < M)[:, None], k, end, PIECES, LK)
    while adapter >= 0:
        async_copy.wait_group(0)
        gl.thread_barrier()
        acc = gl.zeros([LM, LJ], gl.float32, ACC)
        for i in gl.static_range(PIECES):
            x_MK = xs.index(i).load(gl.DotOperandLayout(0, ACC, 2))
            a_KJ = own.index(i).permute((1, 0)).load(gl.DotOperandLayout(1, ACC, 2))
            acc = mma_v2(x_MK, a_KJ, acc)
        at = (p * M + m).to(gl.int64)[:, None] * W + j[None, :]
        gl.store(low + at, acc, mask=(here == adapter)[:, None] & (j < width)[None, :])
        left = gl.where(left == adapter, -1, left)
        adapter = gl.max(left, axis=0)
        width, a_row, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, a_j, K, G, dtype)
        gl.thread_barrier()  # all warps have read the last one's
        copy_rows(own, a_row, there, k, end, PIECES, LK)
    async_copy.wait_group(0)


@gluon.jit
def fewrows_product(x, rows, w, part, low, factors, ranks, row_adapter, factors_stride, ranks_stride, M, N, K, W, G, piece, lows,
                    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, SUMS: gl.constexpr, LOW: gl.constexpr, DESC: gl.constexpr,
                    LM: gl.constexpr, LJ: gl.constexpr, LK: gl.constexpr, PART: gl.constexpr, OVERLAPS: gl.constexpr,
                    STAGES: gl.constexpr, ROW_STAGES: gl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    begin_next(OVERLAPS)
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    tile = gl.program_id(0)
    if LOW:
        if tile < lows:
            low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART, OVERLAPS)
        else:
            part_tile(rows, w, part, tile - lows, M, N, K, piece, BM, BN, BK, STAGES, ROW_STAGES, OVERLAPS)
    else:
        part_tile(rows, w, part, tile, M, N, K, piece, BM, BN, BK, STAGES, ROW_STAGES, OVERLAPS)


@triton.jit
def gated(gate, up, dtype: tl.constexpr):
    """silu(gate) up of both as they would be kept: as fewrows_swiglu."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate * tl.sigmoid(gate) * up).to(dtype)


@gluon.jit
def fewrows_gated(rows, w, h, M, N, K,
                  BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, ROW_STAGES: gl.constexpr, OVERLAPS: gl.constexpr):
    """BN columns of BM rows of gate and of up: of a block of x's columns the ring has the tile of gate, then that of up."""
    begin_next(OVERLAPS)
    K, N = K // 8 * 8, N // 16 * 16  # as they are
    I, blocks = N // 2, gl.cdiv(K, BK)
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    STORED: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
    i0, m0 = gl.program_id(0) * BN, gl.program_id(1) * BM
    weights, xs = ring(w, 2 * STAGES), ring(rows, ROW_STAGES)
    for j in gl.static_range(STAGES):
        load(weights, w, 2 * j, i0, j * BK, j < blocks)
        load(weights, w, 2 * j + 1, I + i0, j * BK, j < blocks)
    wait_for_previous(OVERLAPS)
    for j in gl.static_range(ROW_STAGES):
        load(xs, rows, j, m0, j * BK, j < blocks)
    gate, up = gl.zeros([BN, BM], gl.float32, ACC), gl.zeros([BN, BM], gl.float32, ACC)
    for j in range(blocks):
        x_KM = arrived(xs, j).permute((1, 0))
        gate = warpgroup_mma(arrived(weights, 2 * j), x_KM, gate, is_async=True)
        up = warpgroup_mma(arrived(weights, 2 * j + 1), x_KM, up, is_async=True)
        gate, up = warpgroup_mma_wait(0, [gate, up])
        gl.thread_barrier()  # all warps have read them
        load(weights, w, 2 * (j + STAGES), i0, (j + STAGES) * BK, j + STAGES < blocks)
        load(weights, w, 2 * (j + STAGES) + 1, I + i0, (j + STAGES) * BK, j + STAGES < blocks)
        load(xs, rows, j + ROW_STAGES, m0, (j + ROW_STAGES) * BK, j + ROW_STAGES < blocks)
    # A sum that begins with a zero has no -0: as one of parts.
    made = gl.convert_layout(gated(gate + 0.0, up + 0.0, h.dtype.element_ty), STORED)
    i, m = i0 + gl.arange(0, BN, gl.SliceLayout(1, STORED)), m0 + gl.arange(0, BM, gl.SliceLayout(0, STORED))
    gl.store(h + m.to(gl.int64)[None, :] * I + i[:, None], made, mask=(i < I)[:, None] & (m < M)[None, :])
