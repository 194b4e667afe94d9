"""A linear layer over few rows, each with its own adapter: what a generated token passes. Bound by reading the weight once.

    fewrows_product   part[p, m, n] = sum_k x[m, k] w[n, k]                 over the blocks of k of piece p
                      low[p, m, j]  = sum_k x[m, k] a[j, k]                 over the columns of k of piece p, where LOW = 1
    fewrows_sum       y[m, n] = (sum_p part[p, m, n] + scale[l, g] sum_r low[m, column + r] b[r, n]) gain[n] + bias[n]
                                + residual[m, n], gain that of dora.py where decomposed[l] = 1, else 1
    fewrows_swiglu    h[m, i] = silu(y[m, i]) y[m, I + i], without a residual, N = 2 I
    fewrows_rope      of y = heads of q, k and v, those of q and k rotated as rope_forward does: q to `out`, k and v to the
                      place of the row in the cache (decode.py), without a residual
    fewrows_norm      y = residual + weight x / sqrt(mean(x^2) + eps), with the bits of rmsnorm_forward

l = row_adapter[m] is the adapter of row m (-1: the base alone), g the linear that owns column n, low[m, j] the sum over p.

Shapes: x c[M, K]; w c[N, K]; y, residual c[M, N]; bias c[N]; row_adapter i32[M]; part f32[P, M, N]; low f32[Q, M, W], W at
least the columns of any adapter; factors, ranks and scale as adapters.py has them; vectors and decomposed as dora.py, not read
where has_gains = 0. M is any; K, N and firstColumn = [0,
first1, first2, N] are multiples of 8. residual may be y; out c[M, N] of heads and kv_heads of D features, tables as rope.py's.

Order of sums. The pieces of k depend on K and N alone, a piece is summed in blocks of 16 columns by the tensor cores, one after
the other, and pieces in their order: by fewrows_sum, or, where SUMS = 1, by the product, which leaves a single part. What
adapters add is a product of 16 rows for each adapter that has some of them, of which each row takes its own. So a row's
numbers depend on no other row and on no number of rows. What follows a sum in its kernel reads it as the compute type has it.

The weight's rows are the tall side of the product: 64 or 128 of them against 8 to 256 rows of x.

`rows` is x. DESC variants take tensor descriptors: rows [BM, BK] and w [BN, BK].

Launch: fewrows_product grid (lows + tiles): lows = ceil(M / 16) ceil(W / 16) ceil(K / 1024) where LOW = 1, else 0; tiles =
ceil(N / BN) P ceil(M / BM), P = ceil(ceil(K / BK) / piece), with SUMS = 1 a P of 1 here. fewrows_sum grid (sum over g of
ceil(columns of g / BN), ceil(M / BM)); fewrows_swiglu grid (ceil(I / BN), ceil(M / BM)); fewrows_rope grid (heads + 2
kv_heads, ceil(M / BM)); fewrows_norm grid (M), the variant with the least BLOCK >= H.

A pass of a few rows is a chain of short kernels, whose time is that of loads that wait for each other. So on Hopper the kernels
overlap (overlap.py): a row's adapter, its ranks, addresses of factors and what else is no activation is read, and weights and
factors come to L2, while the kernel before still runs.
"""
import triton
import triton.language as tl

from adapters import A, B, ends_of, factor_rows, pick, ranks_of
from decode import cache_row
from dora import GAIN_AT
from overlap import begin_next, prefetch, wait_for_previous
from rmsnorm import normed
from rope import pairs_of
from tile import halves, load_tile

LINE = tl.constexpr(64)  # columns of bf16 that come to L2 together
AHEAD = tl.constexpr(512)  # columns of a weight's tile that come to L2 before x is there


@triton.jit
def low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j, K, G, dtype: tl.constexpr):
    """Columns that an adapter has in s, and rows j[:, 1] of A of all linears: their addresses, and which of them there are."""
    three = ranks_of(ranks, ranks_stride, adapter, G)
    ends = ends_of(three)
    end0, end1, width = ends
    a_row, there = factor_rows(factors, factors_stride, adapter, j, three, ends, K, A, dtype)
    return width, a_row.to(tl.int64), there


@triton.jit
def low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G,
             LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """One piece of LJ columns of s of LM rows, adapter by adapter. What it needs of the first one's tables comes before x."""
    tiles_m, tiles_j = tl.cdiv(M, LM), tl.cdiv(W, LJ)
    m, j0 = tile % tiles_m * LM + tl.arange(0, LM), tile // tiles_m % tiles_j * LJ
    part = tile // (tiles_m * tiles_j)
    j = j0 + tl.arange(0, LJ)
    dtype: tl.constexpr = x.dtype.element_ty
    here = tl.load(row_adapter + m, mask=m < M, other=-1)
    x_row = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    left = here
    adapter = tl.max(left, axis=0)
    width, address, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j[:, None], K, G, dtype)
    if OVERLAPS:
        line = part * PART + tl.arange(0, PART // LINE)[None, :] * LINE
        prefetch(address + line * 2, there & (line < K))
    wait_for_previous(OVERLAPS)
    while adapter >= 0:
        if j0 < width:
            a_row = tl.multiple_of(address.to(tl.pointer_type(dtype)), (16, 16))
            acc = tl.zeros((LM, LJ), tl.float32)
            for k0 in tl.range(part * PART, tl.minimum(K, part * PART + PART), LK, num_stages=3):
                k = k0 + tl.arange(0, LK)
                x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
                a_JK = tl.load(a_row + k[None, :], mask=there & (k < K)[None, :], other=0.0)
                acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
            at = (part * M + m).to(tl.int64)[:, None] * W + j[None, :]
            tl.store(low + at, acc, mask=(here == adapter)[:, None] & (j < width)[None, :])
        left = tl.where(left == adapter, -1, left)
        adapter = tl.max(left, axis=0)
        width, address, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j[:, None], K, G, dtype)


@triton.jit
def fewrows_product(x, rows, w, part, low, factors, ranks, row_adapter, factors_stride, ranks_stride, M, N, K, W, G, piece, lows,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, LOW: tl.constexpr, DESC: tl.constexpr,
                    LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    begin_next(OVERLAPS)
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    tile = tl.program_id(0)
    if LOW:
        if tile < lows:
            low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART, OVERLAPS)
            return
        tile -= lows
    tiles_n, blocks = tl.cdiv(N, BN), tl.cdiv(K, BK)
    pieces = tl.cdiv(blocks, piece)
    if SUMS:  # rows of tiles that read the same weight follow each other
        tiles_m = tl.cdiv(M, BM)
        p, tile_m, tile_n = 0, tile % tiles_m, tile // tiles_m
    else:
        p, tile_m, tile_n = tile // tiles_n % pieces, tile // (tiles_n * pieces), tile % tiles_n
    m0, n0 = tile_m * BM, tile_n * BN
    first = p * piece
    if OVERLAPS and not SUMS and not DESC:  # the beginning of the weight's rows, while what makes x still runs
        row = n0 + tl.arange(0, BN)[:, None]
        line = first * BK + tl.arange(0, AHEAD // LINE)[None, :] * LINE
        prefetch(w.to(tl.int64) + (row.to(tl.int64) * K + line) * 2, (row < N) & (line < tl.minimum(K, (first + piece) * BK)))
    wait_for_previous(OVERLAPS)
    total = tl.zeros((BN, BM), tl.float32)
    if SUMS:
        acc = tl.zeros((BN, BM), tl.float32)
        tl.assume(blocks > 0)
        for block in range(0, blocks):
            w_NK, x_MK = load_tile(w, n0, block * BK, N, K, BN, BK, DESC), load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
            acc = tl.dot(w_NK, x_MK.T, acc, input_precision="ieee")
            if (block + 1) % piece == 0:
                total += acc
                acc = tl.zeros((BN, BM), tl.float32)
        if blocks % piece != 0:
            total += acc
    else:
        end = tl.minimum(first + piece, blocks)
        tl.assume(first < end)  # else ptxas runs the products of large tiles one by one (its note C7515)
        for block in range(first, end):
            w_NK, x_MK = load_tile(w, n0, block * BK, N, K, BN, BK, DESC), load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
            total = tl.dot(w_NK, x_MK.T, total, input_precision="ieee")
    n, m = n0 + tl.arange(0, BN), m0 + tl.arange(0, BM)
    at = (p * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(part + at, total, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def first_of(parts, at, step, pieces, inside):
    """The sum of the first four pieces, `step` elements apart, in their order; a zero more changes no sum."""
    acc = tl.zeros(inside.shape, tl.float32)
    for p in tl.static_range(4):
        acc += tl.load(parts + p * step + at, mask=inside & (p < pieces), other=0.0)
    return acc


@triton.jit
def rest_of(acc, parts, at, step, pieces, inside):
    """acc and the other pieces. Apart, so that loads of several sums are under way at once."""
    for p in range(4, pieces):
        acc += tl.load(parts + p * step + at, mask=inside, other=0.0)
    return acc


@triton.jit
def adapter_at(adapter, n, g, first, last, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G,
               RB: tl.constexpr, dtype: tl.constexpr):
    """
    An adapter at linear g, which has columns first .. last: its rank, its first column of s, the address of B and its first RB
    rows at columns n, what scales it, and the address of its gain, 0 without one.
    """
    three = ranks_of(ranks, ranks_stride, adapter, G)
    end0, end1, width = ends_of(three)
    rank, column = pick(g, three), pick(g, (0, end0, end1))
    slot, there = tl.cast(adapter, tl.int64), adapter >= 0
    address = tl.load(factors + slot * factors_stride + g * 4 + B, mask=there, other=0)
    times = tl.load(scale + slot * scale_stride + g, mask=there, other=0.0)
    has_gain = tl.load(decomposed + slot * decomposed_stride, mask=there & (has_gains != 0), other=0)
    gain = tl.load(vectors + slot * vectors_stride + GAIN_AT, mask=has_gain != 0, other=0)
    return rank, column, address, factor_at(address, 0, rank, n, first, last, RB, dtype), times, gain


@triton.jit
def factor_at(address, r0, rank, n, first, last, RB: tl.constexpr, dtype: tl.constexpr):
    """RB rows of B from r0 on, at columns n."""
    b, r = tl.multiple_of(address.to(tl.pointer_type(dtype)), 256), r0 + tl.arange(0, RB)
    inside = (r < rank)[:, None] & (n < last)[None, :]
    return tl.load(b + r.to(tl.int64)[:, None] * (last - first) + (n - first)[None, :], mask=inside, other=0.0)


@triton.jit
def low_at(m, column, r0, rank, mine, W, RB: tl.constexpr):
    """Where RB columns of s of an adapter's rows are in a piece, from r0 on, and which of them there are."""
    r = r0 + tl.arange(0, RB)
    return m.to(tl.int64)[:, None] * W + column + r[None, :], mine[:, None] & (r < rank)[None, :]


@triton.jit
def low_of(low, m, column, rank, mine, M, low_pieces, W, RB: tl.constexpr):
    """The first pieces of the first RB columns of s of an adapter's rows."""
    at, inside = low_at(m, column, 0, rank, mine, W, RB)
    return first_of(low, at, tl.cast(M, tl.int64) * W, low_pieces, inside)


@triton.jit
def product_of(s_MR, b_RN, out):
    """out + s B, to the precision of s."""
    high = s_MR.to(b_RN.dtype)
    out = tl.dot(high, b_RN, out, input_precision="ieee")
    if b_RN.dtype == tl.bfloat16:  # what rounding took of s
        out = tl.dot((s_MR - high.to(tl.float32)).to(b_RN.dtype), b_RN, out, input_precision="ieee")
    return out


@triton.jit
def add_adapted(acc, mine, rank, column, address, b_RN, s_MR, times, gain, low, m, n, first, last, M, low_pieces, W,
                BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, dtype: tl.constexpr):
    """acc with what an adapter adds to its rows; s_MR has the first pieces of its first columns of s."""
    if rank > 0:
        step = tl.cast(M, tl.int64) * W
        at, inside = low_at(m, column, 0, rank, mine, W, RB)
        out = product_of(rest_of(s_MR, low, at, step, low_pieces, inside), b_RN, tl.zeros((BM, BN), tl.float32))
        for r0 in range(RB, rank, RB):
            at, inside = low_at(m, column, r0, rank, mine, W, RB)
            s = rest_of(first_of(low, at, step, low_pieces, inside), low, at, step, low_pieces, inside)
            out = product_of(s, factor_at(address, r0, rank, n, first, last, RB, dtype), out)
        # Another's factors may hold anything. A sum with a product is one operation by name here: else the compiler decides, and
        # not alike in all kernels, nor for the first adapter of a tile and those that follow.
        acc = tl.where(mine[:, None], tl.fma(out, tl.zeros((BM, BN), tl.float32) + times, acc), acc)
        if gain != 0:
            gain_N = tl.load(gain.to(tl.pointer_type(tl.float32)) + n, mask=n < last, other=1.0)
            acc = tl.where(mine[:, None], acc * gain_N[None, :], acc)
    return acc


@triton.jit
def fewrows_sum(part, low, y, bias, residual, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                M, N, pieces, low_pieces, W, first1, first2, G,
                BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN columns of BM rows, all of one linear. See the top of the file."""
    begin_next(OVERLAPS)
    N, first1, first2 = N // 8 * 8, first1 // 8 * 8, first2 // 8 * 8  # as they are
    block, m = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM)
    before1 = tl.cdiv(first1, BN)
    before2 = before1 + tl.cdiv(first2 - first1, BN)
    g = (block >= before1).to(tl.int32) + (block >= before2).to(tl.int32)
    block -= pick(g, (0, before1, before2))
    first, last = pick(g, (0, first1, first2)), pick(g, (first1, first2, N))
    n = first + block * BN + tl.arange(0, BN)
    dtype: tl.constexpr = y.dtype.element_ty
    inside = (m < M)[:, None] & (n < last)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if LORA:
        here = tl.load(row_adapter + m, mask=m < M, other=-1)
        left = here
        adapter = tl.max(left, axis=0)
        rank, column, b, b_RN, times, gain = adapter_at(adapter, n, g, first, last, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
    if BIAS:
        bias_N = tl.load(bias + n, mask=n < last, other=0.0)
    wait_for_previous(OVERLAPS)
    if RESIDUAL:
        residual_MN = tl.load(residual + at, mask=inside, other=0.0)
    if LORA:
        s_MR = low_of(low, m, column, rank, here == adapter, M, low_pieces, W, RB)
    step = tl.cast(M, tl.int64) * N
    acc = rest_of(first_of(part, at, step, pieces, inside), part, at, step, pieces, inside)
    if LORA:
        while adapter >= 0:
            acc = add_adapted(acc, here == adapter, rank, column, b, b_RN, s_MR, times, gain, low, m, n, first, last, M, low_pieces, W, BM, BN, RB, dtype)
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
            rank, column, b, b_RN, times, gain = adapter_at(adapter, n, g, first, last, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
            s_MR = low_of(low, m, column, rank, here == adapter, M, low_pieces, W, RB)
    if BIAS:
        acc += bias_N.to(tl.float32)[None, :]
    if RESIDUAL:
        acc += residual_MN.to(tl.float32)
    tl.store(y + at, acc.to(dtype), mask=inside)


@triton.jit
def linear_at(n, first1, first2, N):
    """The linear that owns column n, and its first and last column."""
    g = (n >= first1).to(tl.int32) + (n >= first2).to(tl.int32)
    return g, pick(g, (0, first1, first2)), pick(g, (first1, first2, N))


@triton.jit
def fewrows_swiglu(part, low, h, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                   M, N, pieces, low_pieces, W, first1, first2, G,
                   BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, BIAS: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN columns of BM rows of gate and of up. See the top of the file."""
    begin_next(OVERLAPS)
    N, first1, first2 = N // 16 * 16, first1 // 8 * 8, first2 // 8 * 8  # as they are
    I = N // 2
    i0 = tl.program_id(0) * BN
    i, m = i0 + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (m < M)[:, None] & (i < I)[None, :]
    dtype: tl.constexpr = h.dtype.element_ty
    g0, first_0, last_0 = linear_at(i0, first1, first2, N)
    g1, first_1, last_1 = linear_at(I + i0, first1, first2, N)
    if LORA:
        here = tl.load(row_adapter + m, mask=m < M, other=-1)
        left = here
        adapter = tl.max(left, axis=0)
        rank0, column0, b0, b0_RN, times0, gain0 = adapter_at(adapter, i, g0, first_0, last_0, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
        rank1, column1, b1, b1_RN, times1, gain1 = adapter_at(adapter, I + i, g1, first_1, last_1, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
    if BIAS:
        bias_0, bias_1 = tl.load(bias + i, mask=i < I, other=0.0), tl.load(bias + I + i, mask=i < I, other=0.0)
    wait_for_previous(OVERLAPS)
    at, step = m.to(tl.int64)[:, None] * N + i[None, :], tl.cast(M, tl.int64) * N
    if LORA:
        s0_MR = low_of(low, m, column0, rank0, here == adapter, M, low_pieces, W, RB)
        s1_MR = low_of(low, m, column1, rank1, here == adapter, M, low_pieces, W, RB)
    gate, up = first_of(part, at, step, pieces, inside), first_of(part, at + I, step, pieces, inside)
    gate, up = rest_of(gate, part, at, step, pieces, inside), rest_of(up, part, at + I, step, pieces, inside)
    if LORA:
        while adapter >= 0:
            mine = here == adapter
            gate = add_adapted(gate, mine, rank0, column0, b0, b0_RN, s0_MR, times0, gain0, low, m, i, first_0, last_0, M, low_pieces, W, BM, BN, RB, dtype)
            up = add_adapted(up, mine, rank1, column1, b1, b1_RN, s1_MR, times1, gain1, low, m, I + i, first_1, last_1, M, low_pieces, W, BM, BN, RB, dtype)
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
            rank0, column0, b0, b0_RN, times0, gain0 = adapter_at(adapter, i, g0, first_0, last_0, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
            rank1, column1, b1, b1_RN, times1, gain1 = adapter_at(adapter, I + i, g1, first_1, last_1, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
            s0_MR = low_of(low, m, column0, rank0, here == adapter, M, low_pieces, W, RB)
            s1_MR = low_of(low, m, column1, rank1, here == adapter, M, low_pieces, W, RB)
    if BIAS:
        gate += bias_0.to(tl.float32)[None, :]
        up += bias_1.to(tl.float32)[None, :]
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    tl.store(h + m.to(tl.int64)[:, None] * I + i[None, :], (gate * tl.sigmoid(gate) * up).to(dtype), mask=inside)


@triton.jit
def sums_of(x, BM: tl.constexpr, SIZE: tl.constexpr):
    """
    f32[BM] of f32[BM, SIZE], one half added to the other again and again: tl.sum has an order that depends on where a variant
    holds x, and a row of the base passes that without LORA alone and that with it among others.
    """
    if SIZE == 1:
        return x.reshape(BM)
    else:
        one, other = halves(x, BM, SIZE)
        return sums_of(one + other, BM, SIZE // 2)


@triton.jit
def fewrows_rope(part, low, out, cache, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                 M, N, pieces, low_pieces, W, first1, first2, G,
                 positions, places, pages, cos, sin, q_scale, q_weight, k_weight, heads, kv_heads, D, R, scaled, eps,
                 BM: tl.constexpr, HALF: tl.constexpr, RB: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """One head of BM rows. See the top of the file."""
    begin_next(OVERLAPS)
    N, first1, first2 = N // 8 * 8, first1 // 8 * 8, first2 // 8 * 8  # as they are
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)
    half = D // 2
    head, m = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM)
    i = tl.arange(0, HALF)
    lower, upper = pairs_of(i, R, half, EXACT)
    dtype: tl.constexpr = out.dtype.element_ty
    g, first, last = linear_at(head * D, first1, first2, N)
    j = tl.arange(0, 2 * HALF)
    if EXACT:
        n = head * D + j
    else:  # the first of all pairs, then the second; features that a head has not are beyond the linear
        one, other = pairs_of(j % HALF, R, half, EXACT)
        n = tl.where(j % HALF < half, head * D + tl.where(j < HALF, one, other), last + j)
    is_q, is_v = head < heads, head >= heads + kv_heads
    inside = (m < M)[:, None] & (i < half)[None, :]
    if LORA:
        here = tl.load(row_adapter + m, mask=m < M, other=-1)
        left = here
        adapter = tl.max(left, axis=0)
        rank, column, b, b_RN, times, gain = adapter_at(adapter, n, g, first, last, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
    if BIAS:
        bias_N = tl.load(bias + n, mask=n < last, other=0.0)
    if NORM:
        weight = tl.where(is_q, q_weight, k_weight)
        weight_lo, weight_hi = tl.load(weight + lower, mask=i < half, other=0.0)[None, :], tl.load(weight + upper, mask=i < half, other=0.0)[None, :]
    position = tl.load(positions + m, mask=m < M, other=0)
    angle = position.to(tl.int64)[:, None] * R + i[None, :]
    rotated = (i < R)[None, :] & (m < M)[:, None]
    cos_MI, sin_MI = tl.load(cos + angle, mask=rotated, other=1.0), tl.load(sin + angle, mask=rotated, other=0.0)
    by = tl.load(q_scale + position, mask=(m < M) & (scaled != 0) & is_q, other=1.0)[:, None]
    place = tl.load(places + m, mask=m < M, other=-1)
    row = cache_row(pages, place, place >= 0).to(tl.int64)[:, None] * (2 * kv_heads * D) + (head - heads) * D
    wait_for_previous(OVERLAPS)
    if LORA:
        s_MR = low_of(low, m, column, rank, here == adapter, M, low_pieces, W, RB)
    at, step, both_inside = m.to(tl.int64)[:, None] * N + n[None, :], tl.cast(M, tl.int64) * N, (m < M)[:, None] & (n < last)[None, :]
    both = rest_of(first_of(part, at, step, pieces, both_inside), part, at, step, pieces, both_inside)
    if LORA:
        while adapter >= 0:
            both = add_adapted(both, here == adapter, rank, column, b, b_RN, s_MR, times, gain, low, m, n, first, last, M, low_pieces, W, BM, 2 * HALF, RB, dtype)
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
            rank, column, b, b_RN, times, gain = adapter_at(adapter, n, g, first, last, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, G, RB, dtype)
            s_MR = low_of(low, m, column, rank, here == adapter, M, low_pieces, W, RB)
    if BIAS:
        both += bias_N.to(tl.float32)[None, :]
    lo, hi = halves(both, BM, 2 * HALF)
    lo, hi = lo.to(dtype).to(tl.float32), hi.to(dtype).to(tl.float32)
    x_lo, x_hi = lo, hi
    if NORM:
        mean = tl.div_rn(sums_of(tl.fma(lo, lo, hi * hi), BM, HALF), D.to(tl.float32))
        rstd = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, None]
        x_lo, x_hi = weight_lo * (lo * rstd), weight_hi * (hi * rstd)
    y_lo, y_hi = tl.fma(x_lo, cos_MI, -(x_hi * sin_MI)) * by, tl.fma(x_hi, cos_MI, x_lo * sin_MI) * by
    y_lo, y_hi = tl.where(is_v, lo, y_lo).to(dtype), tl.where(is_v, hi, y_hi).to(dtype)
    if is_q:
        to = out + m.to(tl.int64)[:, None] * N + head * D
        tl.store(to + lower[None, :], y_lo, mask=inside)
        tl.store(to + upper[None, :], y_hi, mask=inside)
    else:
        kept = inside & (place >= 0)[:, None]
        tl.store(cache + row + lower[None, :], y_lo, mask=kept)
        tl.store(cache + row + upper[None, :], y_hi, mask=kept)


@triton.jit
def fewrows_norm(x, weight, residual, y, H, eps, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, OVERLAPS: tl.constexpr):
    """One row. See the top of the file."""
    begin_next(OVERLAPS)
    H = H // 8 * 8  # as it is
    m, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = h < H
    w_H = tl.load(weight + h, mask=inside, other=0.0)
    wait_for_previous(OVERLAPS)
    x_H = tl.load(x + m * H + h, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        residual_H = tl.load(residual + m * H + h, mask=inside, other=0.0)
    y_H = normed(x_H, tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_H * x_H), H.to(tl.float32)) + eps)), w_H)
    if RESIDUAL:
        y_H += residual_H.to(tl.float32)
    tl.store(y + m * H + h, y_H.to(y.dtype.element_ty), mask=inside)


# What is compiled.

# BN, BK, warps and stages of fewrows_product by the rows that it takes at once; with SUMS for many rows. On Hopper by the
# weight's bytes a second: 3.3 TB/s of a 7B's at 64 rows, where cuBLAS has 3.6.
BLOCKS = {
    "tma": {16: (64, 64, 4, 6), 64: (64, 64, 4, 6), 128: (64, 64, 4, 4), 256: (128, 64, 8, 4)},
    "ptr": {16: (64, 64, 4, 4), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    "f32": {16: (64, 32, 4, 2), 64: (64, 32, 4, 2)},
}
MANY = {"tma": (128, 128, 64, 8, 4), "ptr": (128, 128, 32, 8, 3), "f32": (64, 64, 32, 4, 2)}  # BM, BN, BK, warps, stages
# Rows, columns and columns of x that a product of s takes, and columns of x of a piece of it.
LOW = dict(LM=16, LJ=16, LK=128, PART=1024)
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}
# Widest row and warps of fewrows_norm, as of rmsnorm.py.
NORMS = {"tma": ((1024, 1), (4096, 4), (8192, 8), (16384, 16)), "f32": ((16384, 16),)}
NORMS["ptr"] = NORMS["tma"]
# HALF and EXACT of fewrows_rope, as of rope.py.
HALVES = {"bf16": ((32, 1), (64, 1), (128, 0)), "fp32": ((128, 0),)}
OF_DTYPE = "x rows w y h out cache bias residual".split()
POINTERS = {"factors": "*i64", "vectors": "*i64", "decomposed": "*i32", "ranks": "*i32", "row_adapter": "*i32", "positions": "*i32", "weight": "*fp32", "places": "*i32", "pages": "*i32", "eps": "fp32"}
POINTERS |= dict.fromkeys("scale part low cos sin q_scale q_weight k_weight".split(), "*fp32")
SUM = "bias factors scale ranks row_adapter vectors decomposed factors_stride scale_stride ranks_stride vectors_stride decomposed_stride has_gains M N pieces low_pieces W first1 first2 G"
NAMES = {
    "fewrows_product": "x rows w part low factors ranks row_adapter factors_stride ranks_stride M N K W G piece lows",
    "fewrows_sum": SUM.replace("bias", "part low y bias residual"),
    "fewrows_swiglu": f"part low h {SUM}",
    "fewrows_rope": f"part low out cache {SUM} positions places pages cos sin q_scale q_weight k_weight heads kv_heads D R scaled eps",
    "fewrows_norm": "x weight residual y H eps",
}


def made(kernel, kinds, arch, dtype, warps, stages, **constants):
    signature = {name: POINTERS.get(name) or (f"*{dtype}" if name in OF_DTYPE else "i32") for name in NAMES[kernel].split()}
    constants["OVERLAPS"] = int(kinds == ["tma"])
    return dict(module="fewrows", kernel=kernel, kinds=kinds, launch={}, arch=arch, dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def products(kind, BM, BN, BK, warps, stages, sums):
    """With and without low-rank products; of many rows on Hopper by tensor descriptors."""
    desc = int(kind == "tma" and BM >= 128)
    for low in (0, 1):
        found = made("fewrows_product", [kind], ARCH[kind], DTYPE[kind], warps, stages, BM=BM, BN=BN, BK=BK, SUMS=sums, LOW=low, DESC=desc, **LOW)
        if desc:
            found["signature"] |= {"rows": f"tensordesc<bf16[{BM},{BK}]>", "w": f"tensordesc<bf16[{BN},{BK}]>"}
        yield found


def variants():
    for kind, blocks in BLOCKS.items():
        for BM, (BN, BK, warps, stages) in blocks.items():
            yield from products(kind, BM, BN, BK, warps, stages, 0)
        yield from products(kind, *MANY[kind], 1)
    for kind, arch in ARCH.items():
        dtype = DTYPE[kind]
        for bias in (0, 1):
            for lora in (0, 1):
                for residual in (0, 1):
                    yield made("fewrows_sum", [kind], arch, dtype, 4, 1, BM=16, BN=128, RB=16, BIAS=bias, RESIDUAL=residual, LORA=lora)
                yield made("fewrows_swiglu", [kind], arch, dtype, 4, 1, BM=16, BN=64, RB=16, BIAS=bias, LORA=lora)
                for half, exact in HALVES[dtype]:
                    for norm in (0, 1):
                        yield made("fewrows_rope", [kind], arch, dtype, 8 if half == 128 else 4, 1, BM=16, HALF=half, RB=16, EXACT=exact, NORM=norm, BIAS=bias, LORA=lora)
        for block, warps in NORMS[kind]:
            for residual in (0, 1):
                yield made("fewrows_norm", [kind], arch, dtype, warps, 1, BLOCK=block, RESIDUAL=residual)
