"""DoRA's part of a linear layer (Liu et al. 2024): the norms of rows, and their lengths as factors. Memory-bound.

    dora_norm        norm[n] = |w[n] + scale[l, g] sum_r b[l, n, r] a[l, g R + r]| of adapters l with stale[l] != 0,
                     in rows first .. last, those of linear g; m[l, n] = norm[n] where stale[l] = 2;
                     gain[l, n] = m[l, n] / norm[n], inverse[l, n] = 1 / norm[n], 0 for rows of zeros
    dora_forward     y[m, n] = gain[l, n] z[m, n] + bias[n] + residual[m, n] in the tiles of decomposed adapters
    dora_backward    dm[l, n] += inverse[l, n] sum_m dy[m, n] z[m, n], z[m, n] = gain[l, n] dy[m, n] there;
                     z = dy in all other tiles

Shapes: w c[N, K]; a c[L, G R, K] and b c[L, N, R], m and dm f32[L, N], L strided; gain, inverse f32[L, N]; dy, z, y, residual
c[M, N]; decomposed, stale i32[L]. Needs: M a multiple of 128, K and N multiples of 8, R 16 to 256, the tiles of an adapter side
by side, 16-byte alignment. A linear that the adapter does not target (rank 0) is left as it is. No scratch.

Order of sums: over k in blocks of BK, and over an adapter's rows from its own first tile on, ROWS lanes apart. So no result
depends on other adapters or on R. Adapters next to each other read a weight's rows at the same time, so from memory once. The
weight is summed with its low-rank product in registers, tile by tile: no cancellation, and W + B A is nowhere.

Launch (T = M / 128):
    dora_norm        a linear at a time, grid (L, ceil((last - first) / BN))
    dora_forward     grid (M / ROWS, ceil(N / BN))
    dora_backward    grid (ceil(N / BN), L + T): adapters, then the tiles that are copied
"""
import triton
import triton.language as tl

from lora import adapter_tiles

ROW_TILE = tl.constexpr(128)  # an adapter's rows begin at a multiple of this


@triton.jit
def dora_norm(w, a, b, scale, ranks, m, gain, inverse, stale, a_stride, b_stride, m_stride, g, G, first, last, N, K,
              R: tl.constexpr, RB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """BN rows of one linear of one adapter. See the top of the file."""
    # As they are: tells the compiler that rows are aligned to 16 bytes.
    K, a_stride, b_stride = K // 8 * 8, a_stride // 8 * 8, b_stride // 8 * 8
    slot = tl.program_id(0)
    kind = tl.load(stale + slot)
    rank = tl.load(ranks + slot * G + g)
    if (kind == 0) | (rank == 0):
        return
    n = first + tl.program_id(1) * BN + tl.arange(0, BN)
    inside = n < last
    factor = tl.load(scale + slot * G + g)
    a_g = a + tl.cast(slot, tl.int64) * a_stride + tl.cast(g * R, tl.int64) * K
    b_row = b + tl.cast(slot, tl.int64) * b_stride + n.to(tl.int64)[:, None] * R
    w_row = w + n.to(tl.int64)[:, None] * K
    squares = tl.zeros((BN, BK), tl.float32)
    r = tl.arange(0, RB)
    b_NR = tl.load(b_row + r[None, :], mask=inside[:, None], other=0.0)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a_RK = tl.load(a_g + r.to(tl.int64)[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
        low = tl.dot(b_NR, a_RK, tl.zeros((BN, BK), tl.float32), input_precision="ieee")
        if R > RB:  # a loop within keeps the compiler from loading ahead, so there is none where it is not wanted
            for r0 in range(RB, rank, RB):
                more = r0 + tl.arange(0, RB)
                b_more = tl.load(b_row + more[None, :], mask=inside[:, None], other=0.0)
                a_more = tl.load(a_g + more.to(tl.int64)[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
                low = tl.dot(b_more, a_more, low, input_precision="ieee")
        value = tl.load(w_row + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0).to(tl.float32) + factor * low
        squares += value * value
    norm = tl.sqrt_rn(tl.sum(squares, axis=1))
    at = tl.cast(slot, tl.int64) * N + n
    m_at = m + tl.cast(slot, tl.int64) * m_stride + n
    length = tl.load(m_at, mask=inside, other=0.0)
    if kind == 2:
        length = norm
        tl.store(m_at, norm, mask=inside)
    some = norm > 0
    safe = tl.where(some, norm, 1.0)
    tl.store(gain + at, tl.where(some, tl.div_rn(length, safe), 0.0), mask=inside)
    tl.store(inverse + at, tl.where(some, tl.div_rn(tl.full((BN,), 1.0, tl.float32), safe), 0.0), mask=inside)


@triton.jit
def dora_forward(z, bias, residual, gain, decomposed, y, tile_adapter, N,
                 ROWS: tl.constexpr, BN: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    """ROWS rows and BN columns of y. See the top of the file."""
    N = N // 8 * 8
    m0 = tl.program_id(0) * ROWS
    adapter = tl.load(tile_adapter + m0 // ROW_TILE)
    if adapter < 0:
        return
    if tl.load(decomposed + adapter) != 1:
        return
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
    inside = (n < N)[None, :]
    value = tl.load(z + at, mask=inside, other=0.0).to(tl.float32) * tl.load(gain + tl.cast(adapter, tl.int64) * N + n, mask=n < N, other=0.0)[None, :]
    if BIAS:
        value += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def dora_backward(dy, z, gain, inverse, decomposed, dm, tile_adapter, dm_stride, L, M, N, ROWS: tl.constexpr, BN: tl.constexpr):
    """BN columns of one adapter, or of one tile that is copied. See the top of the file."""
    N = N // 8 * 8
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = (n < N)[None, :]
    which = tl.program_id(1)
    if which >= L:  # a tile
        tile = which - L
        adapter = tl.load(tile_adapter + tile)
        scaled = tl.load(decomposed + tl.maximum(adapter, 0)) == 1
        if (adapter < 0) | (scaled == 0):
            for m0 in range(tile * ROW_TILE, (tile + 1) * ROW_TILE, ROWS):
                at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
                tl.store(z + at, tl.load(dy + at, mask=inside, other=0.0), mask=inside)
        return
    if tl.load(decomposed + which) != 1:
        return
    first, count = adapter_tiles(tile_adapter, which, M // ROW_TILE)
    if count == 0:
        return
    row = tl.cast(which, tl.int64) * N + n
    factor = tl.load(gain + row, mask=n < N, other=0.0)[None, :]
    sums = tl.zeros((ROWS, BN), tl.float32)
    for m0 in range(first * ROW_TILE, (first + count) * ROW_TILE, ROWS):
        at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
        dy_MN = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        z_MN = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
        sums += dy_MN * z_MN
        tl.debug_barrier()  # all have read what is written now, whatever layout the compiler gives the store
        tl.store(z + at, (factor * dy_MN).to(z.dtype.element_ty), mask=inside)
    dm_at = dm + tl.cast(which, tl.int64) * dm_stride + n
    total = tl.load(dm_at, mask=n < N, other=0.0) + tl.load(inverse + row, mask=n < N, other=0.0) * tl.sum(sums, axis=0)
    tl.store(dm_at, total, mask=n < N)


# What is compiled.

from linear_variants import RANKS, rank_block
from variants import row

BLOCKS = {"ptr": dict(BN=32, BK=64), "f32": dict(BN=32, BK=32)}  # of dora_norm
NORM = "w:c a:c b:c scale:*fp32 ranks:*i32 m:*fp32 gain:*fp32 inverse:*fp32 stale:*i32 " \
    "a_stride:i64 b_stride:i64 m_stride:i64 g:i32 G:i32 first:i32 last:i32 N:i32 K:i32"
FORWARD = "z:c bias:c residual:c gain:*fp32 decomposed:*i32 y:c tile_adapter:*i32 N:i32"
BACKWARD = "dy:c z:c gain:*fp32 inverse:*fp32 decomposed:*i32 dm:*fp32 tile_adapter:*i32 dm_stride:i64 L:i32 M:i32 N:i32"


def variants():
    for kind in BLOCKS:
        for R in RANKS[kind]:
            yield row("dora", "dora_norm", kind, NORM, stages=4, R=R, RB=rank_block(R), **BLOCKS[kind])
        for bias in (0, 1):
            for residual in (0, 1):
                yield row("dora", "dora_forward", kind, FORWARD, ROWS=16, BN=256, BIAS=bias, RESIDUAL=residual)
        yield row("dora", "dora_backward", kind, BACKWARD, stages=2, ROWS=64, BN=32)
