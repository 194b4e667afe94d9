"""Rows by index: the embedding table, and the rows that have a target. Copies of bits: one kernel for every element type.

    rows_gather     y[t] = x[rows[t]], zeros where rows[t] < 0       embed_forward: x is the table, rows the ids
    rows_fetch      the same for rows[t] >= 0 of an x in the host's memory, by as few programs as a bus needs
    rows_scatter    dx[rows[t]] = dy[t] where rows[t] >= 0           other rows of dx stay as they are

Shapes, in words of 4 bytes: x, dx i32[.., W]; y, dy i32[T, W]; rows i32[T], distinct in rows_scatter. W = bytes of a row / 4, a
multiple of 4: hidden sizes are multiples of 8.

Launch: grid (T, ceil(W / BLOCK)), of rows_fetch any number of programs; no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def rows_gather(x, rows, y, W, BLOCK: tl.constexpr):
    """y[t] = x[rows[t]] or zeros. See the top of the file."""
    W = W // 4 * 4  # as it is: tells the compiler that rows are aligned to 16 bytes
    t, w = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + t)
    words = tl.load(x + row.to(tl.int64) * W + w, mask=(w < W) & (row >= 0), other=0)
    tl.store(y + t * W + w, words, mask=w < W)


@triton.jit
def rows_fetch(x, rows, y, T, W, BLOCK: tl.constexpr):
    """y[t] = x[rows[t]]. See the top of the file."""
    W = W // 4 * 4
    pieces = tl.cdiv(W, BLOCK)
    for i in range(tl.program_id(0), T * pieces, tl.num_programs(0)):
        t, w = (i // pieces).to(tl.int64), i % pieces * BLOCK + tl.arange(0, BLOCK)
        row = tl.load(rows + t)
        words = tl.load(x + row.to(tl.int64) * W + w, mask=w < W)
        tl.store(y + t * W + w, words, mask=w < W)


@triton.jit
def rows_scatter(dy, rows, dx, W, BLOCK: tl.constexpr):
    """dx[rows[t]] = dy[t]. See the top of the file."""
    W = W // 4 * 4
    t, w = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + t)
    if row >= 0:
        words = tl.load(dy + t * W + w, mask=w < W)
        tl.store(dx + row.to(tl.int64) * W + w, words, mask=w < W)


# What is compiled.

from variants import row


def variants():
    yield row("embed", "rows_gather", None, "x:*i32 rows:*i32 y:*i32 W:i32", BLOCK=2048)
    yield row("embed", "rows_fetch", None, "x:*i32 rows:*i32 y:*i32 T:i32 W:i32", BLOCK=2048)
    yield row("embed", "rows_scatter", None, "dy:*i32 rows:*i32 dx:*i32 W:i32", BLOCK=2048)
