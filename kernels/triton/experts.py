"""The frozen products of a layer of experts with the low-rank products of many adapters in them, forward and backward.

    experts_forward     y[p, n]  = sum_k x[i, k] w[e, n, k] + bias[e, n] + scale[l, g] sum_r s[p, r] b[e, r, n]
    experts_backward    dx[p, k] = sum_n dy[i, n] w[e, n, k] + sum_g sum_r ds[p, r] a[e, r, k]

p is a sorted row of route.py, e its expert, l its adapter (-1: the base alone), g the linear that owns column n as in
linear.py. i is p, or with `gathers` > 0 the row source[p] / gathers of the batch.

Shapes: x c[M or P, K], dy c[M or P, N]; w c[rows, K], an expert's N rows at (e - first_expert) pitch, of experts first_expert
.. last_expert - 1 alone; bias c[E, N]; y c[P, N]; dx c[P, K]; s, ds c[P, W], of a row as many columns as its adapter's padded
ranks; factors, ranks and scale as adapters.py has them, strides i32[L, G, 2]: elements from an expert's A, and B, to the next
one's. Needs: N, K and firstColumn multiples of 8, 16-byte alignment. What lies beyond the last sorted row is not written.

Launch: grid min(SMs, (ceil(P / BM) + E) ceil(columns / BN)); route.py's `blocks` say which tiles there are. DESC variants take
a tensor descriptor of w: [BN, BK] forward and [BK, BN] backward. No scratch.

Why so: a tile holds rows of one expert and of any adapters, so nothing is padded for each of them, and a row's sums do not
depend on the rows next to it. The low-rank part of several adapters is one more step of the sum: a row's own columns and zeros.
x is read by pointers, for no tensor descriptor of Hopper gathers rows.
"""
import triton
import triton.language as tl

from adapters import A, B, padded, pick
from tile import halves, load_tile


@triton.jit
def block_of(blocks, tile, E):
    """Expert of a tile, its first sorted row and the last + 1."""
    at = blocks + E + 1 + 2 * tile
    return tl.load(at), tl.load(at + 1), tl.load(at + 3)


@triton.jit
def rows_of(source, p, end, gathers):
    """Which sorted rows are there, and the rows that are read for them."""
    real = p < end
    pair = tl.load(source + p, mask=real, other=0)
    return real, tl.where(gathers > 0, pair // tl.maximum(gathers, 1), tl.minimum(p, end - 1))


@triton.jit
def expert_factor(factors, factors_stride, strides, strides_stride, adapter, g, rank, expert, which, side, dtype: tl.constexpr):
    """A pointer to an expert's factor of linear g, null without a rank. `which`: a column of the table; side: A or B."""
    address = tl.load(factors + tl.cast(adapter, tl.int64) * factors_stride + g * 4 + which, mask=rank > 0, other=0)
    stride = tl.load(strides + tl.cast(adapter, tl.int64) * strides_stride + g * 2 + side) // 8 * 8
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16) + tl.cast(expert, tl.int64) * stride


@triton.jit
def column_of(ranks_row, g):
    """Where the columns of linear g begin in s, and its rank."""
    r0 = tl.load(ranks_row, mask=g > 0, other=0)
    r1 = tl.load(ranks_row + 1, mask=g > 1, other=0)
    return padded(r0) + padded(r1), tl.load(ranks_row + g)


@triton.jit
def next_run(adapter_M, after, BM: tl.constexpr):
    """The first row after `after` that has an adapter, BM without one, and that adapter."""
    at = tl.arange(0, BM)
    first = tl.min(tl.where((adapter_M >= 0) & (at > after), at, BM))
    return first, tl.max(tl.where(at == first, adapter_M, -1))


@triton.jit
def last_of(adapter_M, adapter, BM: tl.constexpr):
    """The last row of an adapter, whose rows are side by side."""
    return tl.max(tl.where(adapter_M == adapter, tl.arange(0, BM), -1))


@triton.jit
def not_finite(x):
    """Of bf16 or f32, whether all bits of the exponent are set."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True) & 0x7F80) == 0x7F80
    else:
        return (x.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000


@triton.jit
def add_low(acc, s, W, factors, strides, scale, ranks, row_adapter, p, real, expert, factors_stride, strides_stride, scale_stride, ranks_stride,
            n0, first1, first2, width, G, side: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr):
    """f32[BM, BN] + the low-rank product, adapter by adapter, with zeros in the rows of others. What is not finite in a factor
    becomes NaN in its own rows of s instead, so that zeros stay zeros."""
    adapter_M = tl.load(row_adapter + p, mask=real, other=-1)
    at, adapter = next_run(adapter_M, -1, BM)
    n = n0 + tl.arange(0, BN)
    while at < BM:
        mine = adapter_M == adapter
        for g in tl.range(0, G, num_stages=1):
            column, rank = column_of(ranks + tl.cast(adapter, tl.int64) * ranks_stride, g)
            first, last = 0, width
            times = 1.0
            if side == B:
                first, last = pick(g, (0, first1, first2)), pick(g, (first1, first2, width))
                times = tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g)
            rank = tl.where((first < n0 + BN) & (last > n0), rank, 0)
            factor = expert_factor(factors, factors_stride, strides, strides_stride, adapter, g, rank, expert, side, side, s.dtype.element_ty)
            s_row = s + p.to(tl.int64) * W + column
            for r0 in tl.range(0, rank, RB, num_stages=1):
                r = r0 + tl.arange(0, RB)
                s_MR = tl.load(s_row[:, None] + r[None, :], mask=mine[:, None] & (r < padded(rank))[None, :], other=0.0)
                inside = (r < rank)[:, None] & ((n >= first) & (n < last))[None, :]
                f_RN = tl.load(factor + r[:, None] * (last - first) + (n - first)[None, :], mask=inside, other=0.0)
                is_odd = not_finite(f_RN)
                odd_R = tl.max(is_odd.to(tl.int32), 1) > 0
                f_RN = tl.where(is_odd, 0.0, f_RN)
                s_MR = tl.where(mine[:, None] & odd_R[None, :], float("nan"), (s_MR.to(tl.float32) * times).to(f_RN.dtype))
                acc = tl.dot(s_MR, f_RN, acc, input_precision="ieee")
        at, adapter = next_run(adapter_M, last_of(adapter_M, adapter, BM), BM)
    return acc


@triton.jit
def store_rows(y, acc, p, real, n, width):
    """Rounds f32[BM, Q] to the matrix's type and writes the rows that are there."""
    tl.store(y + p.to(tl.int64)[:, None] * width + n[None, :], acc.to(y.dtype.element_ty), mask=real[:, None] & (n < width)[None, :])


@triton.jit
def experts_forward(x, w, y, bias, s, factors, strides, scale, ranks, source, row_adapter, blocks, factors_stride, strides_stride, scale_stride, ranks_stride,
                    first_expert, last_expert, pitch, E, gathers, has_bias, W, N, K, first1, first2, G,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, DESC: tl.constexpr):
    """y = x w[e]^T + bias + scale s b[e]. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    W, first1, first2 = W // 16 * 16, first1 // 8 * 8, first2 // 8 * 8
    H: tl.constexpr = BN // 2
    first, last = tl.load(blocks + first_expert), tl.load(blocks + last_expert)
    tiles_n = tl.cdiv(N, BN)
    for index in tl.range(tl.program_id(0), (last - first) * tiles_n, tl.num_programs(0)):
        expert, p0, end = block_of(blocks, first + index // tiles_n, E)
        n0 = index % tiles_n * BN
        p = p0 + tl.arange(0, BM)
        real, row = rows_of(source, p, end, gathers)
        x_row = x + row.to(tl.int64)[:, None] * K
        w_row = (expert - first_expert) * pitch
        acc = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
            w_NK = load_tile(w, w_row + n0, k0, w_row + N, K, BN, BK, DESC)
            acc = tl.dot(x_MK, w_NK.T, acc, input_precision="ieee")
        if LORA:
            acc = add_low(acc, s, W, factors, strides, scale, ranks, row_adapter, p, real, expert, factors_stride, strides_stride, scale_stride, ranks_stride,
                          n0, first1, first2, N, G, B, BM, BN, RB)
        own = bias + expert.to(tl.int64) * N
        left, right = halves(acc, BM, BN)
        for half in tl.static_range(2):
            n = n0 + half * H + tl.arange(0, H)
            part = (left if half == 0 else right) + tl.load(own + n, mask=n < N * has_bias, other=0.0).to(tl.float32)[None, :]
            store_rows(y, part, p, real, n, N)


@triton.jit
def experts_backward(dy, w, dx, ds, factors, strides, ranks, source, row_adapter, blocks, factors_stride, strides_stride, ranks_stride,
                     first_expert, last_expert, pitch, E, gathers, W, N, K, G,
                     BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, DESC: tl.constexpr):
    """dx = dy w[e] + ds a[e]. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    N = N // 8 * 8
    W = W // 16 * 16
    H: tl.constexpr = BN // 2
    first, last = tl.load(blocks + first_expert), tl.load(blocks + last_expert)
    tiles_k = tl.cdiv(K, BN)
    for index in tl.range(tl.program_id(0), (last - first) * tiles_k, tl.num_programs(0)):
        expert, p0, end = block_of(blocks, first + index // tiles_k, E)
        k0 = index % tiles_k * BN
        p = p0 + tl.arange(0, BM)
        real, row = rows_of(source, p, end, gathers)
        dy_row = dy + row.to(tl.int64)[:, None] * N
        w_row = (expert - first_expert) * pitch
        acc = tl.zeros((BM, BN), tl.float32)
        for n0 in range(0, N, BK):
            n = n0 + tl.arange(0, BK)
            dy_MN = tl.load(dy_row + n[None, :], mask=(n < N)[None, :], other=0.0)
            w_NK = load_tile(w, w_row + n0, k0, w_row + N, K, BK, BN, DESC)
            acc = tl.dot(dy_MN, w_NK, acc, input_precision="ieee")
        if LORA:
            acc = add_low(acc, ds, W, factors, strides, ds, ranks, row_adapter, p, real, expert, factors_stride, strides_stride, 0, ranks_stride,
                          k0, K, K, K, G, A, BM, BN, RB)
        left, right = halves(acc, BM, BN)
        for half in tl.static_range(2):
            store_rows(dx, left if half == 0 else right, p, real, k0 + half * H + tl.arange(0, H), K)


# What is compiled.

from variants import row

TABLES = "factors:*i64 strides:*i32{} ranks:*i32 source:*i32 row_adapter:*i32 blocks:*i32 factors_stride:i32 strides_stride:i32{} ranks_stride:i32 "
PLACES = "first_expert:i32 last_expert:i32 pitch:i32 E:i32 gathers:i32 "
FORWARD = "x:c w:c y:c bias:c s:c " + TABLES.format(" scale:*fp32", " scale_stride:i32") + PLACES + "has_bias:i32 W:i32 N:i32 K:i32 first1:i32 first2:i32 G:i32"
BACKWARD = "dy:c w:c dx:c ds:c " + TABLES.format("", "") + PLACES + "W:i32 N:i32 K:i32 G:i32"
CONFIG = {"tma": (128, 256, 64, 8, 4), "ptr": (128, 128, 32, 8, 3), "f32": (32, 64, 32, 4, 2)}  # BM, BN, BK, warps, stages


def product(kernel, kind, config, lora):
    """One row."""
    BM, BN, BK, warps, stages = config
    is_forward, desc = kernel == "experts_forward", kind == "tma"
    made = row("experts", kernel, "ptr" if desc else kind, FORWARD if is_forward else BACKWARD, warps, stages, BM=BM, BN=BN, BK=BK, LORA=lora, RB=16, DESC=int(desc))
    made["kinds"] = [kind]
    if desc:
        made["arch"] = "sm_90a"
        made["signature"]["w"] = f"tensordesc<bf16[{BN if is_forward else BK},{BK if is_forward else BN}]>"
    return made


def variants():
    for kind, config in CONFIG.items():
        for kernel in ("experts_forward", "experts_backward"):
            for lora in (0, 1):
                yield product(kernel, kind, config, lora)
