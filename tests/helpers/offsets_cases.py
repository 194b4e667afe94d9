"""Kernels for tests/cpu/offsets.test.ts: some whose addresses pass 2^31 in a large pass, and some whose numbers are as large
where no address depends on them, or where they are of 64 bits."""
import triton
import triton.language as tl


@triton.jit
def narrow_rows(x, y, H, BLOCK: tl.constexpr):
    """A row times a width in 32 bits."""
    m, h = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + m * H + h, tl.load(x + m * H + h))


@triton.jit
def narrow_walk(x, y, M, H, BLOCK: tl.constexpr):
    """The same, carried by a loop."""
    at = tl.program_id(0)
    for m in range(M):
        tl.store(y + at * H + tl.arange(0, BLOCK), tl.load(x + at * H + tl.arange(0, BLOCK)))
        at += 1


@triton.jit
def narrow_places(x, rows, y, H, BLOCK: tl.constexpr):
    """A row that is read from a table, times a width."""
    row = tl.load(rows + tl.program_id(0))
    tl.store(y + row * H + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK)))


@triton.jit
def narrow_flat(x, y, M, H, BLOCK: tl.constexpr):
    """A bound of a loop over elements that is of 32 bits."""
    for i in range(tl.program_id(0) * BLOCK, M * H, tl.num_programs(0) * BLOCK):
        tl.store(y + i + tl.arange(0, BLOCK), tl.load(x + i + tl.arange(0, BLOCK)))


@triton.jit
def wide_rows(x, y, H, BLOCK: tl.constexpr):
    """A row times a width in 64 bits."""
    m, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tl.store(y + m * H + h, tl.load(x + m * H + h))


@triton.jit
def wide_places(x, rows, y, H, BLOCK: tl.constexpr):
    """The same of a row from a table; a hash of 32 bits decides what is written, not where."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    bits = (tl.program_id(0).to(tl.uint32) * 0x7FEB352D) >> 16
    tl.store(y + row * H + tl.arange(0, BLOCK), bits.to(tl.float32) + tl.load(x + tl.arange(0, BLOCK)))


X, Y, ROWS, SIZE = {"x": "*fp32"}, {"y": "*fp32"}, {"rows": "*i32"}, {"H": "i32"}
BLOCK, GRID = dict(BLOCK=1024), [131072, 1, 1]
LAUNCHES = {
    "narrow_rows": (X | Y | SIZE, BLOCK, GRID, dict(H=28672)),
    "narrow_walk": (X | Y | {"M": "i32"} | SIZE, BLOCK, [1, 1, 1], dict(M=131072, H=28672)),
    "narrow_places": (X | ROWS | Y | SIZE, BLOCK, GRID, dict(H=28672)),
    "narrow_flat": (X | Y | {"M": "i32"} | SIZE, BLOCK, [132, 1, 1], dict(M=131072, H=28672)),
    "wide_rows": (X | Y | SIZE, BLOCK, GRID, dict(H=28672)),
    "wide_places": (X | ROWS | Y | SIZE, BLOCK, GRID, dict(H=28672)),
}
