"""Sums of values, element by element: y += x.

Shapes: x, y c[size]. Needs: size a multiple of 8.

Launch: grid (ceil(size / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def add_to(x, y, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    size = size // 8 * 8  # as it is: tells the compiler that accesses are aligned to 16 bytes
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.load(y + i, mask=i < size, other=0.0).to(tl.float32) + tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    tl.store(y + i, sums.to(y.dtype.element_ty), mask=i < size)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("add", "add_to", kind, "x:c y:c size:i64", BLOCK=1024)
