"""The low-rank products in experts that stand apart from the frozen one, and the gradients of A and B: lora.py for sorted rows.

    expert_low         side A: s[p, j] = sum_k x[i, k] a[e, r, k];  side B: ds[p, j] = scale[l, g] sum_n dy[i, n] b[e, r, n]
    expert_weigh       out[p, j] = s[p, j] weights[source[p]]
    expert_gram        side A: da[e, r, k] += sum_p ds[p, j] x[i, k];  side B: db[e, r, n] += scale[l, g] sum_p s[p, j] dy[i, n]

p, e, l, i, tables and shapes as in experts.py (x, dy here x of `width` columns); j is column r of linear g. Of side A all
columns belong to every linear, of side B those of g = first .. last. low: s or ds c[P, W]; weights f32[M, k]. counts, starts
i32[L + 1, E] of route.py.

Each expert has a factor of its own: the ranks of adapters of which all experts share the factor are 0 here (expert-rows.py).

Order of sums. The rows of an (expert, adapter) are summed by one program for each block of columns, BM at a time from their
own first row. So no result depends on other adapters.

Launch (r the widest adapter's rank, n the most columns of a linear):
    expert_low         grid (ceil(height / ROWS) (ceil(P / height) + E), G, ceil(r / CB))
    expert_weigh       grid (ceil(P W / BLOCK))
    expert_gram        grid (ceil(n / BN) ceil(r / RB), L G, E), n passed as pitch; no scratch
"""
import triton
import triton.language as tl

from adapters import padded, pick
from experts import block_of, column_of, expert_factor, last_of, next_run, rows_of


@triton.jit
def columns_of(side, g, first1, first2, width):
    """First and last column that linear g reads or makes."""
    first = tl.where(side == 1, pick(g, (0, first1, first2)), 0)
    return first, tl.where(side == 1, pick(g, (first1, first2, width)), width)


@triton.jit
def scale_of(scale, scale_stride, adapter, g, side):
    """What a product of side B is multiplied by, 1 of side A."""
    return tl.where(side == 1, tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g, mask=side == 1, other=1.0), 1.0)


@triton.jit
def expert_low(x, low, factors, strides, scale, ranks, source, row_adapter, blocks, factors_stride, strides_stride, scale_stride, ranks_stride,
               E, height, gathers, side, W, width, first1, first2, ROWS: tl.constexpr, BK: tl.constexpr, CB: tl.constexpr):
    """CB columns of linear g of low, of ROWS sorted rows. See the top of the file."""
    width, W = width // 8 * 8, W // 16 * 16  # as they are: tells the compiler that rows are aligned to 16 bytes
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    parts = tl.cdiv(height, ROWS)
    tile = tl.program_id(0) // parts
    if tile >= tl.load(blocks + E):
        return
    expert, p0, end = block_of(blocks, tile, E)
    p0 += tl.program_id(0) % parts * ROWS
    if p0 >= end:
        return
    g, j = tl.program_id(1), tl.program_id(2) * CB + tl.arange(0, CB)
    p = p0 + tl.arange(0, ROWS)
    real, row = rows_of(source, p, end, gathers)
    x_row = x + row.to(tl.int64)[:, None] * width
    first, last = columns_of(side, g, first1, first2, width)
    adapter_M = tl.load(row_adapter + p, mask=real, other=-1)
    at, adapter = next_run(adapter_M, -1, ROWS)
    while at < ROWS:
        mine = adapter_M == adapter
        column, rank = column_of(ranks + tl.cast(adapter, tl.int64) * ranks_stride, g)
        factor = expert_factor(factors, factors_stride, strides, strides_stride, adapter, g, rank, expert, side, side, low.dtype.element_ty)
        acc = tl.zeros((ROWS, CB), tl.float32)
        for n0 in range(first, tl.where(rank > tl.program_id(2) * CB, last, first), BK):
            n = n0 + tl.arange(0, BK)
            x_MN = tl.load(x_row + n[None, :], mask=(n < last)[None, :], other=0.0)
            f_JN = tl.load(factor + j[:, None] * (last - first) + (n - first)[None, :], mask=(j < rank)[:, None] & (n < last)[None, :], other=0.0)
            acc = tl.dot(x_MN, f_JN.T, acc, input_precision="ieee")
        acc *= scale_of(scale, scale_stride, adapter, g, side)
        to = low + p.to(tl.int64)[:, None] * W + (column + j)[None, :]
        tl.store(to, acc.to(low.dtype.element_ty), mask=mine[:, None] & (j < padded(rank))[None, :])
        at, adapter = next_run(adapter_M, last_of(adapter_M, adapter, ROWS), ROWS)


@triton.jit
def expert_weigh(s, weights, source, out, P, W, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(source + i // W, mask=i < P * W, other=-1)
    weight = tl.load(weights + pair, mask=pair >= 0, other=0.0)
    value = tl.load(s + i, mask=pair >= 0, other=0.0).to(tl.float32) * weight
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < P * W)


@triton.jit
def expert_gram(x, low, factors, strides, scale, ranks, source, counts, starts, factors_stride, strides_stride, scale_stride, ranks_stride,
                E, gathers, side, W, width, first1, first2, G, pitch, RB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """RB ranks and BN columns of the gradient of an expert's factor of linear g. See the top of the file."""
    width, W = width // 8 * 8, W // 16 * 16  # as they are: tells the compiler that rows are aligned to 16 bytes
    first1, first2, pitch = first1 // 8 * 8, first2 // 8 * 8, pitch // 8 * 8
    l, g, expert = tl.program_id(1) // G, tl.program_id(1) % G, tl.program_id(2)
    count = tl.load(counts + l * E + expert)
    blocks = tl.cdiv(pitch, BN)
    column, rank = column_of(ranks + tl.cast(l, tl.int64) * ranks_stride, g)
    first, last = columns_of(side, g, first1, first2, width)
    r = tl.program_id(0) // blocks * RB + tl.arange(0, RB)
    n = first + tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    if (count == 0) | (tl.program_id(0) // blocks * RB >= rank) | (first + tl.program_id(0) % blocks * BN >= last):
        return
    start = tl.load(starts + l * E + expert)
    acc = tl.zeros((BN, RB), tl.float32)
    for p0 in range(start, start + count, BM):
        p = p0 + tl.arange(0, BM)
        real, row = rows_of(source, p, start + count, gathers)
        x_MN = tl.load(x + row.to(tl.int64)[:, None] * width + n[None, :], mask=(n < last)[None, :] & real[:, None], other=0.0)
        low_MR = tl.load(low + p.to(tl.int64)[:, None] * W + (column + r)[None, :], mask=real[:, None] & (r < padded(rank))[None, :], other=0.0)
        acc = tl.dot(x_MN.T, low_MR, acc, input_precision="ieee")
    ours = (r < rank)[:, None] & (n < last)[None, :]
    factor = expert_factor(factors, factors_stride, strides, strides_stride, l, g, rank, expert, side + 2, side, tl.float32)
    at = factor + r[:, None] * (last - first) + (n - first)[None, :]
    tl.store(at, tl.load(at, mask=ours, other=0.0) + acc.T * scale_of(scale, scale_stride, l, g, side), mask=ours)


# What is compiled.

from variants import row

TABLES = "strides:*i32 scale:*fp32 ranks:*i32 source:*i32 "
STRIDES = "factors_stride:i32 strides_stride:i32 scale_stride:i32 ranks_stride:i32 "


# ROWS, BK of expert_low; BM, BN of expert_gram; stages. On Hopper both are assembled for its own tensor cores.
CONFIG = {"tma": (64, 64, 64, 128, 4), "ptr": (64, 64, 64, 128, 3), "f32": (32, 32, 32, 64, 2)}


def variants():
    low = f"x:c low:c factors:*i64 {TABLES}row_adapter:*i32 blocks:*i32 {STRIDES}E:i32 height:i32 gathers:i32 side:i32 W:i32 width:i32 first1:i32 first2:i32"
    gram = f"x:c low:c factors:*i64 {TABLES}counts:*i32 starts:*i32 {STRIDES}E:i32 gathers:i32 side:i32 W:i32 width:i32 first1:i32 first2:i32 G:i32 pitch:i32"
    for kind, (ROWS, BK, BM, BN, stages) in CONFIG.items():
        for made in (
            row("expert-lora", "expert_low", "f32" if kind == "f32" else "ptr", low, 4, stages, ROWS=ROWS, BK=BK, CB=16),
            row("expert-lora", "expert_gram", "f32" if kind == "f32" else "ptr", gram, 4, stages, RB=16, BM=BM, BN=BN),
        ):
            yield made | dict(kinds=[kind], arch="sm_90a" if kind == "tma" else "sm_80")
    for kind in ("ptr", "f32"):
        yield row("expert-lora", "expert_weigh", kind, "s:c weights:*fp32 source:*i32 out:c P:i32 W:i32", BLOCK=1024)
