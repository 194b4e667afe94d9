"""The sums of fewrows.py, and what follows them in their kernels: see the top of that file, which lists what is compiled.

What a row comes to must not depend on other rows, nor on which of these kernels sums it. So each sum with a product is tl.fma:
a compiler may fuse x cos + y sin in one way here and in another there; and no tl.sum is over columns, whose order is that of a
tensor's layout. Whether there are a bias and a residual is an argument: without them what they add is 0. Without LORA a kernel
has a third of the registers.
"""
import triton
import triton.language as tl

from adapters import B, ends_of, pick, ranks_of
from decode import cache_row
from dora import GAIN_AT
from overlap import begin_next, wait_for_previous
from rope import pairs_of
from tile import halves


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
        # Another's factors may hold anything.
        acc = tl.where(mine[:, None], tl.fma(out, tl.zeros((BM, BN), tl.float32) + times, acc), acc)
        if gain != 0:
            gain_N = tl.load(gain.to(tl.pointer_type(tl.float32)) + n, mask=n < last, other=1.0)
            acc = tl.where(mine[:, None], acc * gain_N[None, :], acc)
    return acc


@triton.jit
def fewrows_sum(part, low, y, bias, residual, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, has_bias, has_residual,
                M, N, pieces, low_pieces, W, first1, first2, G,
                BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN columns of BM rows, all of one linear. See the top of fewrows.py."""
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
    bias_N = tl.load(bias + n, mask=(n < last) & (has_bias != 0), other=0.0)
    wait_for_previous(OVERLAPS)
    residual_MN = tl.load(residual + at, mask=inside & (has_residual != 0), other=0.0)
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
    tl.store(y + at, (acc + bias_N.to(tl.float32)[None, :] + residual_MN.to(tl.float32)).to(dtype), mask=inside)


@triton.jit
def linear_at(n, first1, first2, N):
    """The linear that owns column n, and its first and last column."""
    g = (n >= first1).to(tl.int32) + (n >= first2).to(tl.int32)
    return g, pick(g, (0, first1, first2)), pick(g, (first1, first2, N))


@triton.jit
def fewrows_swiglu(part, low, h, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, has_bias,
                   M, N, pieces, low_pieces, W, first1, first2, G,
                   BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN columns of BM rows of gate and of up. See the top of fewrows.py."""
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
    has = (i < I) & (has_bias != 0)
    bias_0, bias_1 = tl.load(bias + i, mask=has, other=0.0), tl.load(bias + I + i, mask=has, other=0.0)
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
    gate, up = gate + bias_0.to(tl.float32)[None, :], up + bias_1.to(tl.float32)[None, :]
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    tl.store(h + m.to(tl.int64)[:, None] * I + i[None, :], (gate * tl.sigmoid(gate) * up).to(dtype), mask=inside)


@triton.jit
def sums_of(x, BM: tl.constexpr, SIZE: tl.constexpr):
    """f32[BM] of f32[BM, SIZE]: one half is added to the other, again and again."""
    if SIZE == 1:
        return x.reshape(BM)
    else:
        one, other = halves(x, BM, SIZE)
        return sums_of(one + other, BM, SIZE // 2)


@triton.jit
def fewrows_rope(part, low, out, cache, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, has_bias,
                 M, N, pieces, low_pieces, W, first1, first2, G,
                 positions, places, pages, cos, sin, q_scale, q_weight, k_weight, heads, kv_heads, D, R, scaled, eps,
                 BM: tl.constexpr, HALF: tl.constexpr, RB: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr, LORA: tl.constexpr, OVERLAPS: tl.constexpr):
    """One head of BM rows. See the top of fewrows.py."""
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
    bias_N = tl.load(bias + n, mask=(n < last) & (has_bias != 0), other=0.0)
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
