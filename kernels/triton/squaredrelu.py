"""The square of what is above 0, and its gradient.

    squaredrelu_forward     y = max(x, 0)^2
    squaredrelu_backward    dx = 2 max(x, 0) dy

Shapes: x, y, dy, dx c[M, I]. Needs: I a multiple of 8. dx may be x.

Launch: grid (M, ceil(I / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def squaredrelu_forward(x, y, I, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x_I = tl.maximum(tl.load(x + m * I + i, mask=i < I, other=0.0).to(tl.float32), 0.0)
    tl.store(y + m * I + i, (x_I * x_I).to(y.dtype.element_ty), mask=i < I)


@triton.jit
def squaredrelu_backward(dy, x, dx, I, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x_I = tl.maximum(tl.load(x + m * I + i, mask=i < I, other=0.0).to(tl.float32), 0.0)
    dy_I = tl.load(dy + m * I + i, mask=i < I, other=0.0).to(tl.float32)
    tl.store(dx + m * I + i, (2.0 * x_I * dy_I).to(dx.dtype.element_ty), mask=i < I)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("squaredrelu", "squaredrelu_forward", kind, "x:c y:c I:i32", BLOCK=1024)
        yield row("squaredrelu", "squaredrelu_backward", kind, "dy:c x:c dx:c I:i32", BLOCK=1024)
