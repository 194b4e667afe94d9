"""Layers of experts over few rows, each with its own adapter: what a generated token passes. Bound by reading each chosen
expert's weights once.

    fewexperts_sort       place, source: pairs of a row and an expert, sorted by expert and then as they come; blocks: tiles of
                          `height` sorted rows of one expert
    fewexperts_product    part[p, n] = sum_k x[i, k] w[e, n, k], i the row of sorted row p, or p itself where it gathers not
                          low[q, p, j] = sum_k x[i, k] a[l, e, j, k]            over the columns of k of piece q
    fewexperts_act        act, as expert-act.py has it, of y[p, n] = part[p, n] + bias[e, n] as the compute type has it
                          + scale[l, g] sum_r low[p, column + r] b[l, e, r, n]
    fewexperts_combine    out[m] = residual[m] + sum over j of weights[m, j] y[place[m, j]], y the same without an activation

e is the expert of a sorted row, l = row_adapter[m] the adapter of its row m (-1: the base alone), g the linear that owns n,
low the sum over q.

Shapes: x, act, out, residual as c; experts, place i32[M, k], -1 for none; weights f32[M, k]; source i32[P], P = M k; blocks
i32[slots, 4]: expert, first sorted row, end of the expert's, -1 from the last on; w c[rows, K], expert e from row e pitch on,
or packed, each part of an expert `step` bytes after that of the one before; bias c[E, N]; part f32[P, N]; low f32[Q, P, W];
factors, ranks, scale as adapters.py has them, strides i32[L, G, 2]: elements from an expert's A, and B, to the next one's. K, N
and firstColumn multiples of 8, of 16 where w is packed.

Order of sums: an element is summed over k by the tensor cores in the order of columns, w's rows the tall side, whatever rows
are next to it; what adapters add is a product of 16 rows for each adapter of the expert's that has some of them. A row's
numbers depend on no other row.

Launch: sort grid (E); product grid (lows + slots ceil(N / BN)), lows = slots ceil(height / 16) ceil(W / 16) ceil(K / PART), 0
without adapters; act grid (ceil(I / BN), slots ceil(height / 16)); combine grid (ceil(H / BN), M). slots >= E' + P / height, E'
the experts that have rows, at most min(E, P).
"""
import triton
import triton.language as tl

from adapters import A, B, ends_of, pick, ranks_of
from clamp import clamped
from fewrows_sums import linear_at, product_of
from overlap import begin_next, wait_for_previous
from packed import power_of_2
from unpack import blocks_of_rows, load_codes, load_scales, times_of, unpacked

ROWS = tl.constexpr(16)  # of a product with what adapters have


@triton.jit
def fewexperts_sort(experts, place, source, blocks, pairs, E, height, slots, BLOCK: tl.constexpr, EXPERTS: tl.constexpr, OVERLAPS: tl.constexpr):
    """The pairs of one expert. See the top of the file."""
    begin_next(OVERLAPS)
    wait_for_previous(OVERLAPS)
    e, all = tl.program_id(0), tl.arange(0, EXPERTS)
    count = tl.zeros((EXPERTS,), tl.int32)
    for i0 in range(0, pairs, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        expert = tl.load(experts + i, mask=i < pairs, other=-1)
        count += tl.histogram(tl.maximum(expert, 0), EXPERTS, mask=expert >= 0)
    at = tl.sum(tl.where(all < e, count, 0))
    end = at + tl.sum(tl.where(all == e, count, 0))
    tile = tl.sum(tl.where(all < e, tl.cdiv(count, height), 0))
    four = tl.arange(0, 4)
    for first in range(at, end, height):
        value = tl.where(four == 0, e, tl.where(four == 1, first, end))
        tl.store(blocks + 4 * tile + four, value)
        tile += 1
    if e == E - 1:
        for rest in range(tile, slots):
            tl.store(blocks + 4 * rest + four, tl.full((4,), -1, tl.int32))
    for i0 in range(0, pairs, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        mine = (tl.load(experts + i, mask=i < pairs, other=-1) == e).to(tl.int32)
        p = at + tl.cumsum(mine, 0) - mine
        tl.store(place + i, p, mask=mine != 0)
        tl.store(source + p, i, mask=mine != 0)
        at += tl.sum(mine)


@triton.jit
def rows_of(source, row_adapter, p, end, k):
    """Rows of the batch of sorted rows, and their adapters, -1 beyond the last."""
    row = tl.load(source + p, mask=p < end, other=0) // k
    return row, tl.load(row_adapter + row, mask=p < end, other=-1)


@triton.jit
def step_of(strides, strides_stride, adapter, g, side, expert, there):
    """Elements from the first expert's factor of a linear to this one's."""
    stride = tl.load(strides + tl.cast(adapter, tl.int64) * strides_stride + g * 2 + side, mask=there, other=0)
    return expert.to(tl.int64) * (stride // 8 * 8)


@triton.jit
def expert_rows(factors, factors_stride, strides, strides_stride, adapter, expert, j, three, ends, K, dtype: tl.constexpr):
    """Rows j of A of all linears of an expert: pointers to them, and which of them there are."""
    end0, end1, width = ends
    r0, r1, r2 = three
    size: tl.constexpr = dtype.primitive_bitwidth // 8
    table = factors + tl.cast(adapter, tl.int64) * factors_stride + A
    first, second = j < end0, j < end1
    r = j - tl.where(first, 0, tl.where(second, end0, end1))
    there = (r < tl.where(first, r0, tl.where(second, r1, r2))) & (j < width)
    begin0 = tl.load(table, mask=r0 > 0, other=0) + size * step_of(strides, strides_stride, adapter, 0, A, expert, r0 > 0)
    begin1 = tl.load(table + 4, mask=r1 > 0, other=0) + size * step_of(strides, strides_stride, adapter, 1, A, expert, r1 > 0)
    begin2 = tl.load(table + 8, mask=r2 > 0, other=0) + size * step_of(strides, strides_stride, adapter, 2, A, expert, r2 > 0)
    address = tl.where(first, begin0, tl.where(second, begin1, begin2)) + r.to(tl.int64) * (K * size)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), (16, 16)), there


@triton.jit
def low_piece(x, low, source, blocks, factors, strides, ranks, row_adapter, factors_stride, strides_stride, ranks_stride, tile, slots, height, gathers, k, P, K, W, G,
              LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr):
    """One piece of LJ columns of s of 16 sorted rows, adapter by adapter."""
    slot = tile % slots
    expert, end = tl.load(blocks + 4 * slot), tl.load(blocks + 4 * slot + 2)
    per_slot, tiles_j = tl.cdiv(height, ROWS), tl.cdiv(W, LJ)
    tile = tile // slots
    p0 = tl.maximum(tl.load(blocks + 4 * slot + 1), 0) + tile % per_slot * ROWS
    p = p0 + tl.arange(0, ROWS)
    j0, part = tile // per_slot % tiles_j * LJ, tile // (per_slot * tiles_j)
    j = j0 + tl.arange(0, LJ)
    row, here = rows_of(source, row_adapter, p, tl.where(expert < 0, 0, end), k)
    x_row = x + tl.where(gathers != 0, row, tl.minimum(p, P - 1)).to(tl.int64)[:, None] * K
    left = here
    adapter = tl.max(left, axis=0)
    while adapter >= 0:
        three = ranks_of(ranks, ranks_stride, adapter, G)
        ends = ends_of(three)
        end0, end1, width = ends
        if j0 < width:
            a_row, there = expert_rows(factors, factors_stride, strides, strides_stride, adapter, expert, j[:, None], three, ends, K, x.dtype.element_ty)
            acc = tl.zeros((ROWS, LJ), tl.float32)
            for k0 in tl.range(part * PART, tl.minimum(K, part * PART + PART), LK, num_stages=3):
                column = k0 + tl.arange(0, LK)
                x_MK = tl.load(x_row + column[None, :], mask=(column < K)[None, :] & (here >= 0)[:, None], other=0.0)
                a_JK = tl.load(a_row + column[None, :], mask=there & (column < K)[None, :], other=0.0)
                acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
            at = (part * P + p).to(tl.int64)[:, None] * W + j[None, :]
            tl.store(low + at, acc, mask=(here == adapter)[:, None] & (j < width)[None, :])
        left = tl.where(left == adapter, -1, left)
        adapter = tl.max(left, axis=0)


@triton.jit
def fewexperts_product(x, w, scales, nested, mean, part, low, source, blocks, factors, strides, ranks, row_adapter, factors_stride, strides_stride, ranks_stride,
                       slots, height, gathers, k, P, N, K, W, G, lows, pitch, step, first1, first2, absmax1, absmax2, nested1, nested2,
                       BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FORMAT: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """BM sorted rows and BN columns of one expert, or a tile of s. See the top of the file."""
    begin_next(OVERLAPS)
    wait_for_previous(OVERLAPS)
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    if FORMAT == 2:
        K = K // 64 * 64
    elif FORMAT > 0:
        K = K // 16 * 16
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    tile = tl.program_id(0)
    if tile < lows:
        low_piece(x, low, source, blocks, factors, strides, ranks, row_adapter, factors_stride, strides_stride, ranks_stride, tile, slots, height, gathers, k, P, K, W, G, LJ, LK, PART)
        return
    tile -= lows
    slot, n0 = tile % slots, tile // slots * BN  # tiles that read the same weight follow each other
    expert, first, end = tl.load(blocks + 4 * slot), tl.load(blocks + 4 * slot + 1), tl.load(blocks + 4 * slot + 2)
    if expert < 0:
        return
    n, p = n0 + tl.arange(0, BN), first + tl.arange(0, BM)
    there, real = n < N, p < tl.minimum(end, first + BM)
    row = tl.where(gathers != 0, tl.load(source + p, mask=real, other=0) // k, tl.minimum(p, P - 1))
    x_row = x + row.to(tl.int64)[:, None] * K
    dtype: tl.constexpr = x.dtype.element_ty
    total = tl.zeros((BN, BM), tl.float32)
    count = tl.cdiv(K, BK)
    tl.assume(count > 0)
    if FORMAT == 0:
        w_row = w + (expert.to(tl.int64) * pitch + n)[:, None] * K
        for block in range(count):
            column = block * BK + tl.arange(0, BK)
            w_NK = tl.load(w_row + column[None, :], mask=there[:, None] & (column < K)[None, :], other=0.0)
            x_MK = tl.load(x_row + column[None, :], mask=real[:, None] & (column < K)[None, :], other=0.0)
            total = tl.dot(w_NK, x_MK.T, total, input_precision="ieee")
    else:
        bytes = expert.to(tl.int64) * (step // 256 * 256)
        w, scales, nested, mean = w + bytes, scales + bytes, nested + bytes // 4, mean + bytes // 4
        n_there = tl.minimum(n, N - 1)
        of_rows = blocks_of_rows(n_there, K, first1, first2, absmax1, absmax2, nested1, nested2, FORMAT)
        means = mean
        if FORMAT == 2:
            means = tl.load(mean + of_rows[3])
        now = load_scales(scales, nested, of_rows, 0, K, BK, FORMAT)  # a block early: no stages fetch them
        for block in range(count):
            column = block * BK + tl.arange(0, BK)
            codes = load_codes(w, n_there, block * BK, K, BK, FORMAT)
            x_MK = tl.load(x_row + column[None, :], mask=real[:, None] & (column < K)[None, :], other=0.0)
            later = load_scales(scales, nested, of_rows, (block + 1) * BK, K, BK, FORMAT)
            if FORMAT == 2:
                own = tl.dot(unpacked(codes, now, BN, BK, FORMAT, dtype), x_MK.T, input_precision="ieee")  # of a block
                total = tl.fma(own, times_of(now, means, FORMAT) + tl.zeros_like(own), total)
            elif FORMAT == 4:
                total = tl.dot(unpacked(codes, times_of(now, means, FORMAT), BN, BK, FORMAT, dtype), x_MK.T, total, input_precision="ieee")
            else:
                total = tl.dot(unpacked(codes, now, BN, BK, FORMAT, dtype), x_MK.T, total, input_precision="ieee")
            now = later
        if FORMAT == 1:
            total *= tl.load(scales.to(tl.pointer_type(tl.float32)) + n, mask=there, other=0.0)[:, None]
        elif FORMAT == 3:
            total *= power_of_2(tl.load(scales + n, mask=there, other=127).to(tl.int32) - 127)[:, None]
    tl.store(part + p.to(tl.int64)[None, :] * N + n[:, None], total, mask=there[:, None] & real[None, :])


@triton.jit
def expert_columns(part, low, bias, factors, strides, scale, ranks, here, factors_stride, strides_stride, scale_stride, ranks_stride, has_bias,
                   p, n, real, expert, g, first, last, P, N, low_pieces, W, G, BN: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, dtype: tl.constexpr):
    """f32[16, BN]: y at sorted rows p and columns n of linear g of an expert, which has columns first .. last."""
    inside = real[:, None] & (n < last)[None, :]
    acc = tl.load(part + p.to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
    size: tl.constexpr = dtype.primitive_bitwidth // 8
    if LORA:
        left = here
        adapter = tl.max(left, axis=0)
        while adapter >= 0:
            three = ranks_of(ranks, ranks_stride, adapter, G)
            end0, end1, width = ends_of(three)
            rank, column = pick(g, three), pick(g, (0, end0, end1))
            if rank > 0:
                mine = here == adapter
                address = tl.load(factors + tl.cast(adapter, tl.int64) * factors_stride + g * 4 + B)
                b = (address + size * step_of(strides, strides_stride, adapter, g, B, expert, rank > 0)).to(tl.pointer_type(dtype))
                out = tl.zeros((ROWS, BN), tl.float32)
                for r0 in range(0, rank, RB):
                    r = r0 + tl.arange(0, RB)
                    s_MR = tl.zeros((ROWS, RB), tl.float32)
                    for q in range(low_pieces):
                        at = (q * P + p).to(tl.int64)[:, None] * W + column + r[None, :]
                        s_MR += tl.load(low + at, mask=mine[:, None] & (r < rank)[None, :], other=0.0)
                    b_RN = tl.load(b + r.to(tl.int64)[:, None] * (last - first) + (n - first)[None, :], mask=(r < rank)[:, None] & (n < last)[None, :], other=0.0)
                    out = product_of(s_MR, b_RN, out)
                times = tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g)
                # Another's factors may hold anything.
                acc = tl.where(mine[:, None], tl.fma(out, tl.zeros_like(out) + times, acc), acc)
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
    return acc + tl.load(bias + expert.to(tl.int64) * N + n, mask=(n < last) & (has_bias != 0), other=0.0).to(tl.float32)[None, :]


@triton.jit
def fewexperts_act(part, low, act, bias, factors, strides, scale, ranks, row_adapter, source, blocks, factors_stride, strides_stride, scale_stride, ranks_stride, has_bias,
                   slots, height, k, P, N, I, low_pieces, W, first1, first2, G, limit, alpha, interleaved,
                   BN: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, SQUARES: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN features of 16 sorted rows. See the top of the file."""
    begin_next(OVERLAPS)
    wait_for_previous(OVERLAPS)
    N, I, first1, first2 = N // 8 * 8, I // 8 * 8, first1 // 8 * 8, first2 // 8 * 8  # as they are
    slot, i0 = tl.program_id(1) % slots, tl.program_id(0) * BN
    expert, end = tl.load(blocks + 4 * slot), tl.load(blocks + 4 * slot + 2)
    begin = tl.load(blocks + 4 * slot + 1)
    p0 = begin + tl.program_id(1) // slots * ROWS
    end = tl.minimum(end, begin + height)
    if (expert < 0) | (p0 >= end):
        return
    p, i = p0 + tl.arange(0, ROWS), i0 + tl.arange(0, BN)
    real = p < end
    row, here = rows_of(source, row_adapter, p, end, k)
    dtype: tl.constexpr = act.dtype.element_ty
    inside = real[:, None] & (i < I)[None, :]
    if SQUARES:
        g, first, last = linear_at(i0, first1, first2, N)
        x = expert_columns(part, low, bias, factors, strides, scale, ranks, here, factors_stride, strides_stride, scale_stride, ranks_stride, has_bias,
                           p, i, real, expert, g, first, last, P, N, low_pieces, W, G, BN, LORA, RB, dtype)
        x = tl.maximum(x.to(dtype).to(tl.float32), 0.0)
        h = x * x
    else:
        n_gate, n_up = tl.where(interleaved != 0, 2 * i, i), tl.where(interleaved != 0, 2 * i + 1, I + i)
        n_gate, n_up = tl.where(i < I, n_gate, N), tl.where(i < I, n_up, N)
        g, first, last = linear_at(tl.where(interleaved != 0, 2 * i0, i0), first1, first2, N)
        gate = expert_columns(part, low, bias, factors, strides, scale, ranks, here, factors_stride, strides_stride, scale_stride, ranks_stride, has_bias,
                              p, n_gate, real, expert, g, first, last, P, N, low_pieces, W, G, BN, LORA, RB, dtype)
        g, first, last = linear_at(tl.where(interleaved != 0, 2 * i0, I + i0), first1, first2, N)
        up = expert_columns(part, low, bias, factors, strides, scale, ranks, here, factors_stride, strides_stride, scale_stride, ranks_stride, has_bias,
                            p, n_up, real, expert, g, first, last, P, N, low_pieces, W, G, BN, LORA, RB, dtype)
        gate, up = clamped(gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32), limit)
        h = gate * tl.sigmoid(alpha * gate) * up
    tl.store(act + p.to(tl.int64)[:, None] * I + i[None, :], h.to(dtype), mask=inside)


@triton.jit
def fewexperts_combine(part, low, out, residual, bias, weights, place, experts, factors, strides, scale, ranks, row_adapter, factors_stride, strides_stride, scale_stride, ranks_stride,
                       has_bias, has_residual, k, P, H, low_pieces, W, BN: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, OVERLAPS: tl.constexpr):
    """BN columns of one row. See the top of the file."""
    begin_next(OVERLAPS)
    H = H // 8 * 8  # as it is
    m, h = tl.program_id(1).to(tl.int64), tl.program_id(0) * BN + tl.arange(0, BN)
    inside = h < H
    dtype: tl.constexpr = out.dtype.element_ty
    size: tl.constexpr = dtype.primitive_bitwidth // 8
    adapter, rank = -1, 0
    address, times = tl.zeros((), tl.int64), 0.0
    if LORA:
        adapter = tl.load(row_adapter + m)
        slot = tl.cast(adapter, tl.int64)
        rank = tl.load(ranks + slot * ranks_stride, mask=adapter >= 0, other=0)
        address = tl.load(factors + slot * factors_stride + B, mask=rank > 0, other=0)
        times = tl.load(scale + slot * scale_stride, mask=rank > 0, other=0.0)
    wait_for_previous(OVERLAPS)
    total = tl.load(residual + m * H + h, mask=inside & (has_residual != 0), other=0.0).to(tl.float32)
    for j in range(k):
        p = tl.load(place + m * k + j)
        if p >= 0:
            expert = tl.load(experts + m * k + j)
            y = tl.load(part + p.to(tl.int64) * H + h, mask=inside, other=0.0)
            if LORA:
                b = (address + size * step_of(strides, strides_stride, adapter, 0, B, expert, rank > 0)).to(tl.pointer_type(dtype))
                for r0 in range(0, rank, RB):
                    r = r0 + tl.arange(0, RB)
                    s = tl.zeros((RB,), tl.float32)
                    for q in range(low_pieces):
                        s += tl.load(low + (q * P + p).to(tl.int64) * W + r, mask=r < rank, other=0.0)
                    b_RN = tl.load(b + r.to(tl.int64)[:, None] * H + h[None, :], mask=(r < rank)[:, None] & inside[None, :], other=0.0).to(tl.float32)
                    y = tl.fma(times + tl.zeros_like(y), tl.sum(s[:, None] * b_RN, axis=0), y)
            y += tl.load(bias + expert.to(tl.int64) * H + h, mask=inside & (has_bias != 0), other=0.0).to(tl.float32)
            total = tl.fma(tl.load(weights + m * k + j) + tl.zeros_like(y), y, total)
    tl.store(out + m * H + h, total.to(dtype), mask=inside)


# What is compiled.

# BN, BK, warps and stages of fewexperts_product by the rows of a tile.
BLOCKS = {
    "tma": {16: (64, 128, 4, 4), 64: (128, 64, 8, 4)},
    "ptr": {16: (64, 128, 4, 3), 64: (128, 64, 8, 3)},
    "f32": {16: (64, 32, 4, 2), 64: (64, 32, 4, 2)},
}
PACKED = {16: (128, 128, 8, 4), 64: (128, 128, 8, 3)}
FORMATS = {"dense": 0, "int8": 1, "nf4": 2, "fp8": 3, "mxfp4": 4}
CODES = {"int8": "*i8", "nf4": "*u8", "fp8": "*u8", "mxfp4": "*u8"}
LOW = dict(LJ=16, LK=128, PART=1024)
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
PRODUCT = "x:{c} w:{w} scales:*u8 nested:*fp32 mean:*fp32 part:*fp32 low:*fp32 source:*i32 blocks:*i32 factors:*i64 strides:*i32 ranks:*i32 row_adapter:*i32 "
PRODUCT += "factors_stride:i32 strides_stride:i32 ranks_stride:i32 slots:i32 height:i32 gathers:i32 k:i32 P:i32 N:i32 K:i32 W:i32 G:i32 lows:i32 pitch:i32 step:i64 "
PRODUCT += "first1:i32 first2:i32 absmax1:i32 absmax2:i32 nested1:i32 nested2:i32"
STRIDES = "factors_stride:i32 strides_stride:i32 scale_stride:i32 ranks_stride:i32 has_bias:i32"
ACT = "part:*fp32 low:*fp32 act:c bias:c factors:*i64 strides:*i32 scale:*fp32 ranks:*i32 row_adapter:*i32 source:*i32 blocks:*i32 " + STRIDES
ACT += " slots:i32 height:i32 k:i32 P:i32 N:i32 I:i32 low_pieces:i32 W:i32 first1:i32 first2:i32 G:i32 limit:fp32 alpha:fp32 interleaved:i32"
COMBINE = "part:*fp32 low:*fp32 out:c residual:c bias:c weights:*fp32 place:*i32 experts:*i32 factors:*i64 strides:*i32 scale:*fp32 ranks:*i32 row_adapter:*i32 "
COMBINE += STRIDES + " has_residual:i32 k:i32 P:i32 H:i32 low_pieces:i32 W:i32"


def product(kind, name, BM, BN, BK, warps, stages):
    c = "*fp32" if kind == "f32" else "*bf16"
    parameters = PRODUCT.format(c=c, w=CODES.get(name, c))
    BK = 64 if name == "nf4" else BK  # a block
    constants = dict(BM=BM, BN=BN, BK=BK, FORMAT=FORMATS[name], OVERLAPS=int(kind == "tma"), **LOW)
    return dict(module="fewexperts", kernel="fewexperts_product", kinds=[kind], launch={}, arch=ARCH[kind], dtype=c[1:], constants=constants, warps=warps, stages=stages,
                signature=dict(parameter.split(":") for parameter in parameters.split()))


from variants import overlapping, row


def variants():
    for kind, blocks in BLOCKS.items():
        for BM, of in blocks.items():
            yield product(kind, "dense", BM, *of)
        if kind != "f32":
            for name in CODES:
                for BM, of in PACKED.items():
                    yield product(kind, name, BM, *of[:3], min(of[3], 3) if kind == "ptr" else of[3])
    for experts in (128, 512):
        yield from overlapping(row("fewexperts", "fewexperts_sort", None, "experts:*i32 place:*i32 source:*i32 blocks:*i32 pairs:i32 E:i32 height:i32 slots:i32", BLOCK=1024, EXPERTS=experts))
    for kind in ("ptr", "f32"):
        for lora in (0, 1):
            for squares in (0, 1):
                yield from overlapping(row("fewexperts", "fewexperts_act", kind, ACT, BN=128, LORA=lora, RB=16, SQUARES=squares))
            yield from overlapping(row("fewexperts", "fewexperts_combine", kind, COMBINE, BN=512, LORA=lora, RB=16))
