"""The walk along chunks of C = 64 tokens of packed sequences, which recurrences share. Helpers only, no kernel.

A program of a grid over tiles of 64 rows takes the chunks, or the sequences, that begin in its tile, one after the other. A
chunk that is not its sequence's first follows 64 rows of it, so that the state before it has a place of its own, begin // 64.
bounds i32[M, 2] has each row's sequence, first row and end, equal in padding rows, which reach to the end of a tile.

    row, stop = tile_rows(tile, M)
    while row < stop:
        here = row
        first, end, begin, row = next_chunk(bounds, row, stop)
        if end <= first:   # rows from `here` to `stop` are padding
        elif begin < end:  # the chunk of rows from `begin` on
"""
import triton
import triton.language as tl


@triton.jit
def product(a, b):
    """a b, f32; f32 factors as three products of their tf32 parts."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def bounded(g):
    """A logarithm of a decay, no less than -90: f32 has nothing of what is left, and sums along a chunk keep their digits for
    rows that forget little. NaN stays NaN."""
    return tl.where(g < -90.0, -90.0, g)


@triton.jit
def tile_rows(tile, M):
    """The rows of a tile, first and end."""
    return tile * 64, tl.minimum(tile * 64 + 64, M)


@triton.jit
def next_chunk(bounds, row, stop):
    """(first, end) of a row's sequence; where the first chunk from the row on begins, `end` if none of the sequence begins
    before `stop`; the row that follows."""
    first, end = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    begin = first + (row - first + 63) // 64 * 64
    none = (begin >= end) | (begin >= stop)
    after = tl.where(end <= first, stop, tl.where(none, tl.minimum(end, stop), tl.minimum(begin + 64, end)))
    return first, end, tl.where(none, end, begin), after


@triton.jit
def next_sequence(bounds, row, stop):
    """(first, end) of the sequence that begins with a row, equal where none does; the row that follows."""
    first, end = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    return first, tl.where(first == row, end, first), tl.where(end <= first, stop, tl.minimum(end, stop))


@triton.jit
def chunk_rows(x, begin, stride):
    """Where the rows of a chunk begin, [64, 1]; rows are `stride` elements apart."""
    return x + (begin + tl.arange(0, 64)).to(tl.int64)[:, None] * stride
