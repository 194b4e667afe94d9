"""The frozen linear layer with the low-rank products of many adapters in it, forward and backward with respect to x.

    linear_forward    y[m, n]  = sum_k x[m, k] w[n, k] + bias[n] + residual[m, n] + scale[l, g] sum_r s[m, g R + r] b[l, n, r]
    linear_backward   dx[m, k] = sum_n dy[m, n] w[n, k] + drop'(sum_j ds[m, j] a[l, j, k]),  j over all G R

l is the adapter of row m's tile (-1: the base alone), g the linear that owns column n: firstColumn = [0, first1, first2, N]
(first1 = first2 = N for one linear, first2 = N for two). drop' is the mask of lora_down, times 1 / (1 - p).

Shapes: x, dx c[M, K]; w c[N, K]; y, dy, residual c[M, N]; bias c[N]; s, ds c[M, G R]; a c[L, G R, K] and b c[L, N, R], L
strided. Needs: M a multiple of 128, K, N and firstColumn multiples of 8, R 16, 32, 64, 128 or 256; b zero beyond an adapter's
rank; s and ds finite everywhere (lora_down and lora_up_grad write zeros where there is no adapter); 16-byte alignment. residual
may be y.

Launch: one persistent program for each multiprocessor (fewer when there are fewer tiles): grid = min(SMs, tiles), tiles =
ceil(M / BM) ceil(columns / BN). No scratch. DESC variants take tensor descriptors: x [BM, BK], w [BN, BK] forward and [BK, BN]
backward, y, dx and residual [BM, BN / 2], s and ds [BM, RB], b [1, BN / 2, RB] of [L, N, R], a [1, RB, BN / 2] of [L, G R, K];
the pointer variants take pointers in the same places. WHOLE = 1 is for G = 1 and for boundaries that are multiples of BN / 2:
then each half of a tile belongs to one linear.

RB, columns of s and ds read at a time: forward min(R, 64), backward the power of two from G R when that is at most 64, else
min(R, 64); forward 32 at most with a residual or when WHOLE = 0, as shared memory asks.

Why so: the accumulator fills the registers, so the low-rank product is made in two halves after the frozen one, each masked,
scaled and added in f32. Loading it by descriptors keeps the wgmma pipeline of the flattened tile loop intact (pointer loads
there make ptxas serialise it), and rows of adapter -1 read b and a outside of the tensor: exact zeros, whatever adapter 0
holds.
"""
import triton
import triton.language as tl

from dropout import dropout_keep, dropout_row_key, dropout_settings
from tile import halves, load_stacked, load_tile, store_tile, tile_place

ROW_TILE = tl.constexpr(128)  # an adapter's rows begin at a multiple of this


@triton.jit
def low_rank(s, b, adapter, b_stride, m0, n0, column, M, N, rank, G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, H: tl.constexpr, DESC: tl.constexpr):
    """f32[BM, H] = s[m, column ..] b[adapter, n, ..]^T over the blocks of R that hold the adapter's rank."""
    out = tl.zeros((BM, H), tl.float32)
    if R == RB:
        s_MR = load_tile(s, m0, column, M, G * R, BM, RB, DESC)
        b_NR = load_stacked(b, adapter, b_stride, n0, 0, N, R, H, RB, DESC)
        out = tl.dot(s_MR, b_NR.T, out, input_precision="ieee")
    else:
        for r0 in tl.range(0, rank, RB, num_stages=1):
            s_MR = load_tile(s, m0, column + r0, M, G * R, BM, RB, DESC)
            b_NR = load_stacked(b, adapter, b_stride, n0, r0, N, R, H, RB, DESC)
            out = tl.dot(s_MR, b_NR.T, out, input_precision="ieee")
    return out


@triton.jit
def forward_half(acc, y, bias, residual, s, b, scale, ranks, adapter, b_stride, m0, n0, first1, first2, M, N,
                 G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, H: tl.constexpr,
                 BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr):
    """Adds to f32[BM, H] what is not the frozen product and writes it."""
    n = n0 + tl.arange(0, H)
    if LORA:
        some = tl.maximum(adapter, 0) * G
        if WHOLE:
            g = 0
            if G > 1:
                g = (n0 >= first1).to(tl.int32) + (n0 >= first2).to(tl.int32)
                g = tl.minimum(g, G - 1)  # a half that lies wholly beyond N
            rank = tl.where(adapter < 0, 0, tl.load(ranks + some + g))
            acc += low_rank(s, b, adapter, b_stride, m0, n0, g * R, M, N, rank, G, R, RB, BM, H, DESC) * tl.load(scale + some + g)
        else:
            for g in tl.static_range(G):
                first = 0 if g == 0 else (first1 if g == 1 else first2)
                last = first1 if g == 0 else (first2 if g == 1 else N)
                rank = tl.where(adapter < 0, 0, tl.load(ranks + some + g))
                part = low_rank(s, b, adapter, b_stride, m0, n0, g * R, M, N, rank, G, R, RB, BM, H, DESC) * tl.load(scale + some + g)
                acc += tl.where(((n >= first) & (n < last))[None, :], part, 0.0)
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        acc += load_tile(residual, m0, n0, M, N, BM, H, DESC).to(tl.float32)
    store_tile(y, m0, n0, M, N, acc, BM, H, DESC)


@triton.jit
def linear_forward(x, w, y, bias, residual, s, b, scale, ranks, tile_adapter, b_stride, M, N, K, first1, first2,
                   G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                   BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """y = x w^T + bias + residual + scale s b^T. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    H: tl.constexpr = BN // 2
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_n = tile_place(tile, tiles_m, tiles_n, GROUP)
        m0, n0 = tile_m * BM, tile_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(tl.cdiv(K, BK)):
            x_MK = load_tile(x, m0, k * BK, M, K, BM, BK, DESC)
            w_NK = load_tile(w, n0, k * BK, N, K, BN, BK, DESC)
            acc = tl.dot(x_MK, w_NK.T, acc, input_precision="ieee")
        adapter = -1
        if LORA:
            adapter = tl.load(tile_adapter + m0 // ROW_TILE)
        left, right = halves(acc, BM, BN)
        forward_half(left, y, bias, residual, s, b, scale, ranks, adapter, b_stride, m0, n0, first1, first2, M, N,
                     G, R, RB, BM, H, BIAS, RESIDUAL, LORA, WHOLE, DESC)
        forward_half(right, y, bias, residual, s, b, scale, ranks, adapter, b_stride, m0, n0 + H, first1, first2, M, N,
                     G, R, RB, BM, H, BIAS, RESIDUAL, LORA, WHOLE, DESC)


@triton.jit
def backward_half(acc, dx, ds, a, ranks, adapter, a_stride, row_key0, row_key1, threshold, inverse, m0, k0, M, K,
                  G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, H: tl.constexpr, LORA: tl.constexpr, DESC: tl.constexpr):
    """Adds drop'(ds a) to f32[BM, H] and writes it."""
    if LORA:
        GR: tl.constexpr = G * R
        part = tl.zeros((BM, H), tl.float32)
        if GR <= RB:
            ds_MR = load_tile(ds, m0, 0, M, GR, BM, RB, DESC)
            a_RK = load_stacked(a, adapter, a_stride, 0, k0, GR, K, RB, H, DESC)
            part = tl.dot(ds_MR, a_RK, part, input_precision="ieee")
        else:
            for g in tl.static_range(G):
                rank = tl.where(adapter < 0, 0, tl.load(ranks + tl.maximum(adapter, 0) * G + g))
                for r0 in tl.range(0, rank, RB, num_stages=1):
                    ds_MR = load_tile(ds, m0, g * R + r0, M, GR, BM, RB, DESC)
                    a_RK = load_stacked(a, adapter, a_stride, g * R + r0, k0, GR, K, RB, H, DESC)
                    part = tl.dot(ds_MR, a_RK, part, input_precision="ieee")
        if threshold != 0:
            k = k0 + tl.arange(0, H)
            part = tl.where(dropout_keep(row_key0[:, None], row_key1[:, None], k[None, :], threshold), part * inverse, 0.0)
        acc += part
    store_tile(dx, m0, k0, M, K, acc, BM, H, DESC)


@triton.jit
def linear_backward(dy, w, dx, ds, a, ranks, tile_adapter, row_number, dropout, module, a_stride, M, N, K,
                    G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                    LORA: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """dx = dy w + drop'(ds a). See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    H: tl.constexpr = BN // 2
    tiles_m, tiles_k = tl.cdiv(M, BM), tl.cdiv(K, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_k, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_k = tile_place(tile, tiles_m, tiles_k, GROUP)
        m0, k0 = tile_m * BM, tile_k * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for n in range(tl.cdiv(N, BK)):
            dy_MN = load_tile(dy, m0, n * BK, M, N, BM, BK, DESC)
            w_NK = load_tile(w, n * BK, k0, N, K, BK, BN, DESC)
            acc = tl.dot(dy_MN, w_NK, acc, input_precision="ieee")
        adapter = -1
        row_key0 = 0
        row_key1 = 0
        threshold = 0
        inverse = 1.0
        if LORA:
            adapter = tl.load(tile_adapter + m0 // ROW_TILE)
            seed, step, threshold, inverse = dropout_settings(dropout, tl.maximum(adapter, 0))
            row_key0, row_key1 = dropout_row_key(seed, step, module, tl.load(row_number + m0 + tl.arange(0, BM)))
        left, right = halves(acc, BM, BN)
        backward_half(left, dx, ds, a, ranks, adapter, a_stride, row_key0, row_key1, threshold, inverse, m0, k0, M, K, G, R, RB, BM, H, LORA, DESC)
        backward_half(right, dx, ds, a, ranks, adapter, a_stride, row_key0, row_key1, threshold, inverse, m0, k0 + H, M, K, G, R, RB, BM, H, LORA, DESC)
