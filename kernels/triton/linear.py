"""The frozen linear layer with the low-rank products of many adapters in it, forward and backward with respect to x.

    linear_forward    y[m, n]  = sum_k x[m, k] w[n, k] + bias[n] + residual[m, n] + scale[l, g] sum_r s[m, r] b[r, n]
    linear_backward   dx[m, k] = sum_n dy[m, n] w[n, k] + drop'(sum_j ds[m, j] a[j, k]),  j over the columns of all linears

l is the adapter of row m's tile (-1: the base alone), g the linear that owns column n: firstColumn = [0, first1, first2, N]
(first1 = first2 = N for one linear, first2 = N for two). drop' is the mask of lora_down, times 1 / (1 - p).

Shapes: x, dx c[M, K]; w c[N, K]; y, dy, residual c[M, N]; bias c[N]; s, ds and the tables that a and b are found by as
adapters.py has them. Needs: M a multiple of 128, K, N and firstColumn multiples of 8, 16-byte alignment. residual may be y.

Launch: one persistent program for each multiprocessor (fewer when there are fewer tiles): grid = min(SMs, tiles), tiles =
ceil(M / BM) ceil(columns / BN). No scratch. DESC variants take tensor descriptors: x [BM, BK], w [BN, BK] forward and [BK, BN]
backward, y, dx and residual [BM, BN / 2]; the pointer variants take pointers in the same places. WHOLE = 1 is for boundaries
that are multiples of BN / 2: then each half of a tile belongs to one linear. RB: ranks forward, columns of s backward that one
product takes; WIDE = 1 where an adapter has more, in a loop. FLAT = 1 lets a tile's products begin while the last one is
written, which that loop forbids.

Why so: the accumulator fills the registers, so the low-rank product is made in two halves after the frozen one, each masked,
scaled and added in f32. Its factors are small and read by pointers, each adapter's within its own rank: a rank of 5 is
multiplied as 16 with zeros that were not read. A product of 64 ranks of which 16 are there gives the bits of one of 16, so the
variant, which the widest adapter of the micro-batch decides, changes nothing for the others.
"""
import triton
import triton.language as tl

from adapters import A, B, ROW_TILE, ends_of, factor, factor_rows, linear_of, low_begin, padded, pick, ranks_of
from dropout import dropout_keep, dropout_row_key, dropout_settings
from tile import halves, load_tile, store_tile, tile_place


@triton.jit
def keep_apart(DESC: tl.constexpr):
    """
    A loop of one turn that ptxas does not see through. Without it ptxas gives the low-rank product accumulators that it has to
    move, and runs all products of the kernel one by one (its note C7515).
    """
    if DESC:
        tl.inline_asm_elementwise("{ .reg .pred p; .reg .b32 t; again: mov.u32 t, %clock; setp.eq.u32 p, t, 0; @p bra.uni again; mov.b32 $0, $1; }",
                                  "=r,r", [0], tl.int32, is_pure=False, pack=1)


@triton.jit
def low_rank_block(s_row, b, r0, n, first, last, column, rank, RB: tl.constexpr):
    """s[m, r] and b[r, n] for RB ranks of a linear from r0 on, zeros where it has none and outside of columns first .. last."""
    r = r0 + tl.arange(0, RB)
    s_MR = tl.load(s_row + (column + r)[None, :], mask=(r < padded(rank))[None, :], other=0.0)
    inside = (r < rank)[:, None] & ((n >= first) & (n < last))[None, :]
    b_RN = tl.load(b + r.to(tl.int64)[:, None] * (last - first) + (n - first)[None, :], mask=inside, other=0.0)
    return s_MR, b_RN


@triton.jit
def low_rank(s_row, factors, adapter, g, n0, three, ends, factors_stride, first1, first2, N, BM: tl.constexpr, H: tl.constexpr,
             RB: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr):
    """f32[BM, H] = s[m, :] b[:, n] of linear g, zero outside of its columns."""
    n = n0 + tl.arange(0, H)
    first, last, column = linear_of(g, ends, first1, first2, N)
    rank = pick(g, three)
    if not WHOLE:
        rank = tl.where((first < n0 + H) & (last > n0), rank, 0)
    b = factor(factors, factors_stride, adapter, g, rank, B, s_row.dtype.element_ty)
    out = tl.zeros((BM, H), tl.float32)
    if WIDE:
        for r0 in tl.range(0, rank, RB, num_stages=1):
            s_MR, b_RN = low_rank_block(s_row, b, r0, n, first, last, column, rank, RB)
            out = tl.dot(s_MR, b_RN, out, input_precision="ieee")
    else:
        s_MR, b_RN = low_rank_block(s_row, b, 0, n, first, last, column, rank, RB)
        keep_apart(DESC)
        out = tl.dot(s_MR, b_RN, out, input_precision="ieee")
    return out


@triton.jit
def store_half(acc, y, bias, residual, m0, n0, M, N, BM: tl.constexpr, H: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, DESC: tl.constexpr):
    """Adds bias and residual to f32[BM, H] and writes it."""
    if BIAS:
        n = n0 + tl.arange(0, H)
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        acc += load_tile(residual, m0, n0, M, N, BM, H, DESC).to(tl.float32)
    store_tile(y, m0, n0, M, N, acc, BM, H, DESC)


@triton.jit
def forward_half(acc, y, bias, residual, s_row, factors, scale, adapter, three, ends, factors_stride, scale_stride, m0, n0, first1, first2, M, N, G,
                 BM: tl.constexpr, H: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr):
    """Adds to f32[BM, H] what is not the frozen product and writes it."""
    if LORA:
        if WHOLE:
            g = tl.minimum((n0 >= first1).to(tl.int32) + (n0 >= first2).to(tl.int32), G - 1)  # the last beyond N
            part = low_rank(s_row, factors, adapter, g, n0, three, ends, factors_stride, first1, first2, N, BM, H, RB, WIDE, WHOLE, DESC)
            acc = tl.fma(part, tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g, mask=adapter >= 0, other=0.0), acc)
        else:
            for g in tl.static_range(3):
                part = low_rank(s_row, factors, adapter, g, n0, three, ends, factors_stride, first1, first2, N, BM, H, RB, WIDE, WHOLE, DESC)
                acc = tl.fma(part, tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g, mask=(adapter >= 0) & (g < G), other=0.0), acc)
    store_half(acc, y, bias, residual, m0, n0, M, N, BM, H, BIAS, RESIDUAL, DESC)


@triton.jit
def low_of_tile(low, low_at, ranks, tile_adapter, ranks_stride, m0, G, BM: tl.constexpr, LORA: tl.constexpr):
    """The adapter of BM rows from m0 on, its ranks, where its columns end, and pointers to the rows of s or ds [:, 1]."""
    adapter = -1
    three = 0, 0, 0
    ends = 0, 0, 0
    row = low
    if LORA:
        tile = m0 // ROW_TILE
        adapter = tl.load(tile_adapter + tile)
        three = ranks_of(ranks, ranks_stride, adapter, G)
        ends = ends_of(three)
        end0, end1, W = ends
        row = low + low_begin(low_at, tile, W) + (m0 % ROW_TILE + tl.arange(0, BM))[:, None] * W
    return adapter, three, ends, row


@triton.jit
def linear_forward(x, w, y, bias, residual, s, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride, M, N, K, first1, first2, G,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                   BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """y = x w^T + bias + residual + scale s b. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    H: tl.constexpr = BN // 2
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    blocks = tl.cdiv(K, BK)
    tl.assume(blocks > 0)  # else FLAT makes a second loop, for no blocks
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_n = tile_place(tile, tiles_m, tiles_n, GROUP)
        m0, n0 = tile_m * BM, tile_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(blocks):
            x_MK = load_tile(x, m0, k * BK, M, K, BM, BK, DESC)
            w_NK = load_tile(w, n0, k * BK, N, K, BN, BK, DESC)
            acc = tl.dot(x_MK, w_NK.T, acc, input_precision="ieee")
        adapter, three, ends, s_row = low_of_tile(s, low_at, ranks, tile_adapter, ranks_stride, m0, G, BM, LORA)
        left, right = halves(acc, BM, BN)
        forward_half(left, y, bias, residual, s_row, factors, scale, adapter, three, ends, factors_stride, scale_stride, m0, n0, first1, first2, M, N, G,
                     BM, H, BIAS, RESIDUAL, LORA, RB, WIDE, WHOLE, DESC)
        forward_half(right, y, bias, residual, s_row, factors, scale, adapter, three, ends, factors_stride, scale_stride, m0, n0 + H, first1, first2, M, N, G,
                     BM, H, BIAS, RESIDUAL, LORA, RB, WIDE, WHOLE, DESC)


@triton.jit
def low_backward_block(ds_row, factors, adapter, j0, k, three, ends, factors_stride, K, RB: tl.constexpr):
    """ds[m, j] and a[j, k] for RB columns j of all linears from j0 on, zeros beyond them."""
    end0, end1, W = ends
    j = j0 + tl.arange(0, RB)
    ds_MJ = tl.load(ds_row + j[None, :], mask=(j < W)[None, :], other=0.0)
    a_row, there = factor_rows(factors, factors_stride, adapter, j[:, None], three, ends, K, A, ds_row.dtype.element_ty)
    return ds_MJ, tl.load(a_row + k[None, :], mask=there & (k < K)[None, :], other=0.0)


@triton.jit
def backward_half(acc, dx, ds_row, factors, adapter, three, ends, drop, factors_stride, m0, k0, M, K,
                  BM: tl.constexpr, H: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, DESC: tl.constexpr):
    """Adds drop'(ds a) to f32[BM, H] and writes it."""
    if LORA:
        end0, end1, W = ends
        row_key0, row_key1, threshold, inverse = drop
        k = k0 + tl.arange(0, H)
        part = tl.zeros((BM, H), tl.float32)
        if WIDE:
            for j0 in tl.range(0, W, RB, num_stages=1):
                ds_MJ, a_JK = low_backward_block(ds_row, factors, adapter, j0, k, three, ends, factors_stride, K, RB)
                part = tl.dot(ds_MJ, a_JK, part, input_precision="ieee")
        else:
            ds_MJ, a_JK = low_backward_block(ds_row, factors, adapter, 0, k, three, ends, factors_stride, K, RB)
            keep_apart(DESC)
            part = tl.dot(ds_MJ, a_JK, part, input_precision="ieee")
        if threshold != 0:
            part = tl.where(dropout_keep(row_key0[:, None], row_key1[:, None], k[None, :], threshold), part * inverse, 0.0)
        acc += part
    store_tile(dx, m0, k0, M, K, acc, BM, H, DESC)


@triton.jit
def dropout_of_tile(dropout, row_number, adapter, module, m0, BM: tl.constexpr, LORA: tl.constexpr):
    """The keys of BM rows from m0 on, threshold and 1 / (1 - p)."""
    row_key0 = 0
    row_key1 = 0
    threshold = 0
    inverse = 1.0
    if LORA:
        seed, step, threshold, inverse = dropout_settings(dropout, tl.maximum(adapter, 0))
        row_key0, row_key1 = dropout_row_key(seed, step, module, tl.load(row_number + m0 + tl.arange(0, BM)))
    return row_key0, row_key1, threshold, inverse


@triton.jit
def linear_backward(dy, w, dx, ds, low_at, factors, ranks, tile_adapter, row_number, dropout, module, factors_stride, ranks_stride, M, N, K, G,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                    LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """dx = dy w + drop'(ds a). See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    H: tl.constexpr = BN // 2
    tiles_m, tiles_k = tl.cdiv(M, BM), tl.cdiv(K, BN)
    blocks = tl.cdiv(N, BK)
    tl.assume(blocks > 0)  # as above
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_k, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_k = tile_place(tile, tiles_m, tiles_k, GROUP)
        m0, k0 = tile_m * BM, tile_k * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for n in range(blocks):
            dy_MN = load_tile(dy, m0, n * BK, M, N, BM, BK, DESC)
            w_NK = load_tile(w, n * BK, k0, N, K, BK, BN, DESC)
            acc = tl.dot(dy_MN, w_NK, acc, input_precision="ieee")
        adapter, three, ends, ds_row = low_of_tile(ds, low_at, ranks, tile_adapter, ranks_stride, m0, G, BM, LORA)
        drop = dropout_of_tile(dropout, row_number, adapter, module, m0, BM, LORA)
        left, right = halves(acc, BM, BN)
        backward_half(left, dx, ds_row, factors, adapter, three, ends, drop, factors_stride, m0, k0, M, K, BM, H, LORA, RB, WIDE, DESC)
        backward_half(right, dx, ds_row, factors, adapter, three, ends, drop, factors_stride, m0, k0 + H, M, K, BM, H, LORA, RB, WIDE, DESC)
