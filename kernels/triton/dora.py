"""DoRA's part of a linear layer (Liu et al. 2024): the norms of rows, and their lengths as factors. Memory-bound.

    dora_norm        norm[n] = |w[n] + scale[l, g] sum_r b[r, n] a[r]| of adapters l with stale[l] != 0, in rows first .. last,
                     those of linear g; m[n] = norm[n] where stale[l] = 2;
                     gain[n] = m[n] / norm[n], inverse[n] = 1 / norm[n], 0 for rows of zeros
    dora_forward     y[m, n] = gain[n] z[m, n] + bias[n] + residual[m, n] in the tiles of decomposed adapters
    dora_backward    dm[n] += inverse[n] sum_m dy[m, n] z[m, n], z[m, n] = gain[n] dy[m, n] there;
                     z = dy in all other tiles

Shapes: w c[N, K]; a = A_g [r, K] and b [r, N_g] as adapters.py has them; vectors i64[L, G, 4], L strided: in its first row the
addresses of the adapter's m, dm, gain and inverse, f32[N] each, of all linears; dy, z, y, residual c[M, N]; decomposed, stale
i32[L]. Needs: M a multiple of 128, K and N multiples of 8, the tiles of an adapter side by side, 16-byte alignment. A linear
that the adapter does not target (rank 0) is left as it is. No scratch.

Order of sums: over k in blocks of BK, and over an adapter's rows from its own first tile on, ROWS lanes apart. So no result
depends on other adapters or on RB. Adapters next to each other read a weight's rows at the same time, so from memory once. The
weight is summed with its low-rank product in registers, tile by tile: no cancellation, and W + B A is nowhere.

Launch (T = M / 128):
    dora_norm        a linear at a time, grid (L, as many as there are to be); WIDE = 0 where no rank is above RB
    dora_forward     grid (M / ROWS, ceil(N / BN))
    dora_backward    grid (ceil(N / BN), T): the first tile's program computes all tiles of an adapter
"""
import triton
import triton.language as tl

from adapters import A, B, ROW_TILE, factor
from lora import adapter_tiles

M_AT, DM_AT, GAIN_AT, INVERSE_AT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # columns of `vectors`


@triton.jit
def vector(vectors, vectors_stride, slot, which: tl.constexpr):
    """A pointer to an f32 vector of an adapter."""
    address = tl.load(vectors + tl.cast(slot, tl.int64) * vectors_stride + which)
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 256)


@triton.jit
def dora_norm(w, factors, vectors, scale, ranks, stale, factors_stride, vectors_stride, scale_stride, ranks_stride, g, first, last, K,
              RB: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Blocks of BN rows of one linear of one adapter. See the top of the file."""
    # As they are: tells the compiler that rows are aligned to 16 bytes.
    K, first, last = K // 8 * 8, first // 8 * 8, last // 8 * 8
    slot = tl.program_id(0)
    kind = tl.load(stale + slot)
    rank = tl.load(ranks + tl.cast(slot, tl.int64) * ranks_stride + g)
    if (kind == 0) | (rank == 0):
        return
    a = factor(factors, factors_stride, slot, g, rank, A, w.dtype.element_ty)
    b = factor(factors, factors_stride, slot, g, rank, B, w.dtype.element_ty)
    scale_of = tl.load(scale + tl.cast(slot, tl.int64) * scale_stride + g)
    for n0 in range(first + tl.program_id(1) * BN, last, tl.num_programs(1) * BN):
        norm_block(w, a, b, vectors, slot, kind, rank, scale_of, vectors_stride, n0, first, last, K, RB, WIDE, BN, BK)


@triton.jit
def low_weight(a, b, r0, rank, n, k, first, last, K, RB: tl.constexpr):
    """b[r, n] and a[r, k] for RB ranks from r0 on."""
    r = r0 + tl.arange(0, RB)
    there = (r < rank)[:, None]
    b_RN = tl.load(b + r.to(tl.int64)[:, None] * (last - first) + (n - first)[None, :], mask=there & (n < last)[None, :], other=0.0)
    a_RK = tl.load(a + r.to(tl.int64)[:, None] * K + k[None, :], mask=there & (k < K)[None, :], other=0.0)
    return b_RN, a_RK


@triton.jit
def norm_block(w, a, b, vectors, slot, kind, rank, scale_of, vectors_stride, n0, first, last, K,
               RB: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """BN rows from n0 on."""
    n = n0 + tl.arange(0, BN)
    inside = n < last
    w_row = w + n.to(tl.int64)[:, None] * K
    squares = tl.zeros((BN, BK), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        b_RN, a_RK = low_weight(a, b, 0, rank, n, k, first, last, K, RB)
        low = tl.dot(b_RN.T, a_RK, tl.zeros((BN, BK), tl.float32), input_precision="ieee")
        if WIDE:  # a loop within keeps the compiler from loading ahead, so there is none where it is not wanted
            for r0 in range(RB, rank, RB):
                b_RN, a_RK = low_weight(a, b, r0, rank, n, k, first, last, K, RB)
                low = tl.dot(b_RN.T, a_RK, low, input_precision="ieee")
        value = tl.load(w_row + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0).to(tl.float32) + scale_of * low
        squares += value * value
    norm = tl.sqrt_rn(tl.sum(squares, axis=1))
    m_at = vector(vectors, vectors_stride, slot, M_AT) + n
    length = tl.load(m_at, mask=inside, other=0.0)
    if kind == 2:
        length = norm
        tl.store(m_at, norm, mask=inside)
    some = norm > 0
    safe = tl.where(some, norm, 1.0)
    gain, inverse = vector(vectors, vectors_stride, slot, GAIN_AT), vector(vectors, vectors_stride, slot, INVERSE_AT)
    tl.store(gain + n, tl.where(some, tl.div_rn(length, safe), 0.0), mask=inside)
    tl.store(inverse + n, tl.where(some, tl.div_rn(tl.full((BN,), 1.0, tl.float32), safe), 0.0), mask=inside)


@triton.jit
def dora_forward(z, bias, residual, vectors, decomposed, y, tile_adapter, vectors_stride, decomposed_stride, N,
                 ROWS: tl.constexpr, BN: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    """ROWS rows and BN columns of y. See the top of the file."""
    N = N // 8 * 8
    m0 = tl.program_id(0) * ROWS
    adapter = tl.load(tile_adapter + m0 // ROW_TILE)
    if adapter < 0:
        return
    if tl.load(decomposed + adapter * decomposed_stride) != 1:
        return
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
    inside = (n < N)[None, :]
    value = tl.load(z + at, mask=inside, other=0.0).to(tl.float32) * tl.load(vector(vectors, vectors_stride, adapter, GAIN_AT) + n, mask=n < N, other=0.0)[None, :]
    if BIAS:
        value += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def dora_backward(dy, z, vectors, decomposed, tile_adapter, vectors_stride, decomposed_stride, M, N, ROWS: tl.constexpr, BN: tl.constexpr):
    """BN columns of one adapter, or of one tile that is copied. See the top of the file."""
    N = N // 8 * 8
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = (n < N)[None, :]
    tile = tl.program_id(1)
    adapter = tl.load(tile_adapter + tile)
    scaled = tl.load(decomposed + tl.maximum(adapter, 0) * decomposed_stride) == 1
    if (adapter < 0) | (scaled == 0):
        for m0 in range(tile * ROW_TILE, (tile + 1) * ROW_TILE, ROWS):
            at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
            tl.store(z + at, tl.load(dy + at, mask=inside, other=0.0), mask=inside)
        return
    first, count = adapter_tiles(tile_adapter, adapter, M // ROW_TILE)
    if tile != first:
        return
    factor_N = tl.load(vector(vectors, vectors_stride, adapter, GAIN_AT) + n, mask=n < N, other=0.0)[None, :]
    sums = tl.zeros((ROWS, BN), tl.float32)
    for m0 in range(first * ROW_TILE, (first + count) * ROW_TILE, ROWS):
        at = (m0 + tl.arange(0, ROWS)).to(tl.int64)[:, None] * N + n[None, :]
        dy_MN = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        z_MN = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
        sums += dy_MN * z_MN
        tl.debug_barrier()  # all have read what is written now, whatever layout the compiler gives the store
        tl.store(z + at, (factor_N * dy_MN).to(z.dtype.element_ty), mask=inside)
    dm_at = vector(vectors, vectors_stride, adapter, DM_AT) + n
    inverse = tl.load(vector(vectors, vectors_stride, adapter, INVERSE_AT) + n, mask=n < N, other=0.0)
    tl.store(dm_at, tl.load(dm_at, mask=n < N, other=0.0) + inverse * tl.sum(sums, axis=0), mask=n < N)

# What is compiled.

from variants import row

BLOCKS = {"ptr": dict(BN=32, BK=64), "f32": dict(BN=32, BK=32)}  # of dora_norm
NORM = "w:c factors:*i64 vectors:*i64 scale:*fp32 ranks:*i32 stale:*i32 " \
    "factors_stride:i32 vectors_stride:i32 scale_stride:i32 ranks_stride:i32 g:i32 first:i32 last:i32 K:i32"
FORWARD = "z:c bias:c residual:c vectors:*i64 decomposed:*i32 y:c tile_adapter:*i32 vectors_stride:i32 decomposed_stride:i32 N:i32"
BACKWARD = "dy:c z:c vectors:*i64 decomposed:*i32 tile_adapter:*i32 vectors_stride:i32 decomposed_stride:i32 M:i32 N:i32"


def variants():
    for kind in BLOCKS:
        for RB, wide in ((16, 0), (64, 1)) if kind == "ptr" else ((16, 1),):
            yield row("dora", "dora_norm", kind, NORM, stages=4, RB=RB, WIDE=wide, **BLOCKS[kind])
        for bias in (0, 1):
            for residual in (0, 1):
                yield row("dora", "dora_forward", kind, FORWARD, ROWS=16, BN=256, BIAS=bias, RESIDUAL=residual)
        yield row("dora", "dora_backward", kind, BACKWARD, stages=2, ROWS=64, BN=32)
