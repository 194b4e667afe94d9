"""Low-rank rows between those of the batch and the sorted ones of experts, for adapters with a factor that all experts share.

    low_gather    low[m, i] = sum over j of weights[m, j] s[place[m, j], i], slots without a place left out
    low_spread    s[place[m, j], i] = low[m, i] for each slot with a place

Shapes: s c[P, W], place i32[M, k], weights f32[M, k] (weighs = 1, else 1); low c[low_size] and the tables of adapters as
adapters.py has them: i are all columns of an adapter's linears, none where its ranks are 0.

Launch: grid (M / BM, ceil(columns of the widest adapter / CB)), no scratch.
"""
import triton
import triton.language as tl

from adapters import ROW_TILE, UNIT, ends_of, low_begin, ranks_of


@triton.jit
def low_part(low, low_at, ranks, tile_adapter, ranks_stride, G, BM: tl.constexpr, CB: tl.constexpr):
    """A program's rows and columns, how many columns there are, and where they lie in low."""
    tile = tl.program_id(0) * BM // ROW_TILE
    end0, end1, columns = ends_of(ranks_of(ranks, ranks_stride, tl.load(tile_adapter + tile), G))
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    i = tl.program_id(1) * CB + tl.arange(0, CB)
    at = low + low_begin(low_at, tile, columns) + (m % ROW_TILE)[:, None] * columns + i[None, :]
    return m.to(tl.int64), i, columns, at


@triton.jit
def low_gather(s, place, weights, low, low_at, ranks, tile_adapter, ranks_stride, weighs, W, k, G, BM: tl.constexpr, CB: tl.constexpr):
    """BM rows and CB columns. See the top of the file."""
    W = W // UNIT * UNIT  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i, columns, at = low_part(low, low_at, ranks, tile_adapter, ranks_stride, G, BM, CB)
    if tl.program_id(1) * CB >= columns:
        return
    total = tl.zeros((BM, CB), tl.float32)
    for j in range(k):
        p = tl.load(place + m * k + j)
        weight = tl.load(weights + m * k + j, mask=(p >= 0) & (weighs != 0), other=1.0)
        inside = (p >= 0)[:, None] & (i < columns)[None, :]
        total += weight[:, None] * tl.load(s + p.to(tl.int64)[:, None] * W + i[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(at, total.to(low.dtype.element_ty), mask=(i < columns)[None, :])


@triton.jit
def low_spread(s, place, low, low_at, ranks, tile_adapter, ranks_stride, W, k, G, BM: tl.constexpr, CB: tl.constexpr):
    """BM rows and CB columns. See the top of the file."""
    W = W // UNIT * UNIT
    m, i, columns, at = low_part(low, low_at, ranks, tile_adapter, ranks_stride, G, BM, CB)
    if tl.program_id(1) * CB >= columns:
        return
    value = tl.load(at, mask=(i < columns)[None, :])
    for j in range(k):
        p = tl.load(place + m * k + j)
        tl.store(s + p.to(tl.int64)[:, None] * W + i[None, :], value, mask=(p >= 0)[:, None] & (i < columns)[None, :])


# What is compiled.

from variants import row


def variants():
    tables = "low_at:*i32 ranks:*i32 tile_adapter:*i32 ranks_stride:i32"
    for kind in ("ptr", "f32"):
        yield row("expert-rows", "low_gather", kind, f"s:c place:*i32 weights:*fp32 low:c {tables} weighs:i32 W:i32 k:i32 G:i32", BM=32, CB=32)
        yield row("expert-rows", "low_spread", kind, f"s:c place:*i32 low:c {tables} W:i32 k:i32 G:i32", BM=32, CB=32)
