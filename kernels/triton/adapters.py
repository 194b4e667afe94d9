"""How kernels find an adapter through the tables of a group of linears. Helpers only, no kernel.

    factors        i64[L, G, 4]   addresses of A_g c[r, K] and B_g c[r, N_g] (B transposed), and of their gradients f32, alike;
                                  each begins at a multiple of 256 bytes, and what lies after its last row is not read
    ranks, scale   i32, f32[L, G] r of each linear, 0 where the adapter does not target it; what multiplies B A x
    low_at         i32[T]         where the part of a tile begins in s and in ds, in units of 16 elements

L strided, G from 1 to 3. s and ds are flat. The part of a tile is [128, W]: its linears side by side, each padded to 16
columns, so W is the sum of the padded ranks. Columns beyond a rank are zeros. Tiles of no adapter (-1) have no part, and the
parts of an adapter's tiles are equally far apart.

The W columns of all linears count as one dimension, j: a block of it may hold rows of several linears, so that one product of
matrices serves them.
"""
import triton
import triton.language as tl

ROW_TILE = tl.constexpr(128)  # an adapter's rows begin at a multiple of this
UNIT = tl.constexpr(16)  # elements that low_at counts in, and that ranks are padded to
A, B, DA, DB = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # columns of `factors`


@triton.jit
def ranks_of(ranks, ranks_stride, adapter, G):
    """The ranks of three linears; 0 from G on, and for adapter -1."""
    at = ranks + tl.cast(adapter, tl.int64) * ranks_stride
    there = adapter >= 0
    return tl.load(at, mask=there, other=0), tl.load(at + 1, mask=there & (G > 1), other=0), tl.load(at + 2, mask=there & (G > 2), other=0)


@triton.jit
def padded(rank):
    """Columns of a linear in s and ds."""
    return (rank + UNIT - 1) // UNIT * UNIT


@triton.jit
def ends_of(three):
    """Where the columns of each of three linears end in s; the last is W."""
    r0, r1, r2 = three
    end0 = padded(r0)
    end1 = end0 + padded(r1)
    return end0, end1, end1 + padded(r2)


@triton.jit
def pick(g, three):
    """One of three numbers."""
    v0, v1, v2 = three
    return tl.where(g == 0, v0, tl.where(g == 1, v1, v2))


@triton.jit
def linear_of(g, ends, first1, first2, N):
    """First and last column of linear g in y, and its first in s."""
    end0, end1, W = ends
    return pick(g, (0, first1, first2)), pick(g, (first1, first2, N)), pick(g, (0, end0, end1))


@triton.jit
def factor(factors, factors_stride, adapter, g, rank, which: tl.constexpr, dtype: tl.constexpr):
    """A pointer to a factor of linear g, null without a rank; `which`: a column of the table."""
    address = tl.load(factors + tl.cast(adapter, tl.int64) * factors_stride + g * 4 + which, mask=rank > 0, other=0)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 256)


@triton.jit
def factor_rows(factors, factors_stride, adapter, j, three, ends, width, which: tl.constexpr, dtype: tl.constexpr):
    """Rows j[:, 1] of a factor of all linears, `width` elements each: pointers to them, and which of them there are."""
    r0, r1, r2 = three
    end0, end1, W = ends
    row = factors + tl.cast(adapter, tl.int64) * factors_stride + which
    address0 = tl.load(row, mask=r0 > 0, other=0)
    address1 = tl.load(row + 4, mask=r1 > 0, other=0)
    address2 = tl.load(row + 8, mask=r2 > 0, other=0)
    first, second = j < end0, j < end1
    r = j - tl.where(first, 0, tl.where(second, end0, end1))
    there = r < tl.where(first, r0, tl.where(second, r1, r2))
    size: tl.constexpr = dtype.primitive_bitwidth // 8
    address = tl.where(first, address0, tl.where(second, address1, address2)) + r.to(tl.int64) * (width * size)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), (16, 16)), there


@triton.jit
def low_begin(low_at, tile, W):
    """Where the part of a tile begins, in elements; W = 0: it has none."""
    return tl.load(low_at + tile, mask=W > 0, other=0).to(tl.int64) * UNIT


@triton.jit
def low_step(low_at, tile, more):
    """Elements from the part of a tile to that of the adapter's next tile, where there are more."""
    here = tl.load(low_at + tile, mask=more, other=0)
    return (tl.load(low_at + tile + 1, mask=more, other=0) - here).to(tl.int64) * UNIT
