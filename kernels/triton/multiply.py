"""Rows times a number that lies on the device.

    rows_multiply    y = factor x

Shapes: x, y c[M, H], which may be the same; factor f32[1]. Needs: M H a multiple of 8.

Launch: grid (ceil(M H / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def rows_multiply(x, factor, y, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size // 8 * 8  # as it is: tells the compiler that the end is aligned to 16 bytes
    x_I = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + i, (x_I * tl.load(factor)).to(y.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("multiply", "rows_multiply", kind, "x:c factor:*fp32 y:c size:i64", BLOCK=2048)
