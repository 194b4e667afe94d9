"""Multiples of values, element by element.

    multiply   x *= factor

Shapes: x, y c[size]. Needs: size a multiple of 8.

Launch: grid (ceil(size / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def multiply(x, factor, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    size = size // 8 * 8  # as it is: tells the compiler that accesses are aligned to 16 bytes
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    products = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32) * factor
    tl.store(x + i, products.to(x.dtype.element_ty), mask=i < size)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("elementwise", "multiply", kind, "x:c factor:fp32 size:i64", BLOCK=1024)
