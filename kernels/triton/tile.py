"""Tiles of matrices, by tensor descriptor (TMA: DESC, sm_90a only) or by pointers. Helpers only, no kernel.

A matrix is row-major and contiguous, its number of columns a multiple of 8. What lies outside reads as zero and is not written.
Rows times columns in int64: 128k tokens of 28k features pass 2^31.
"""
import triton
import triton.language as tl


@triton.jit
def load_tile(base, row0, col0, rows, cols, BR: tl.constexpr, BC: tl.constexpr, DESC: tl.constexpr):
    """[BR, BC] of a matrix."""
    if DESC:
        return base.load([row0, col0])
    else:
        row = row0 + tl.arange(0, BR)
        col = col0 + tl.arange(0, BC)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        return tl.load(base + row.to(tl.int64)[:, None] * cols + col[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(base, row0, col0, rows, cols, value, BR: tl.constexpr, BC: tl.constexpr, DESC: tl.constexpr):
    """Rounds f32[BR, BC] to the matrix's type and writes it."""
    if DESC:
        base.store([row0, col0], value.to(base.dtype))
    else:
        row = row0 + tl.arange(0, BR)
        col = col0 + tl.arange(0, BC)
        inside = (row < rows)[:, None] & (col < cols)[None, :]
        tl.store(base + row.to(tl.int64)[:, None] * cols + col[None, :], value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def tile_place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile: GROUP rows of tiles are walked column by column, so that what is read stays in L2."""
    in_group = GROUP * tiles_n
    first = (tile // in_group) * GROUP
    height = min(tiles_m - first, GROUP)
    return first + (tile % in_group) % height, (tile % in_group) // height


@triton.jit
def halves(acc, BM: tl.constexpr, BN: tl.constexpr):
    """The left and the right half of the columns of [BM, BN], without moving a register."""
    return tl.split(acc.reshape(BM, 2, BN // 2).permute(0, 2, 1))
