"""Means of rows, pooled hidden states, and their gradient. Deterministic: a program adds rows in their order.

    pool_forward     y[p] = sum of x[t] over bounds[p, 0] <= t < bounds[p, 1], divided by their number
    pool_backward    dx[t] = dy[p] divided by the number, for the p whose t is

Shapes: x, dx c[T, H]; y, dy c[P, H]; bounds i32[P, 2]: at least one row each, none in two. Sums are f32, rounded to c once.

Launch: grid (P, ceil(H / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def pool_forward(x, bounds, y, H, BLOCK: tl.constexpr):
    """y[p] = the mean of its rows. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned
    p, h = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, end = tl.load(bounds + 2 * p), tl.load(bounds + 2 * p + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(first, end):
        total += tl.load(x + tl.cast(row, tl.int64) * H + h, mask=h < H, other=0.0).to(tl.float32)
    mean = tl.div_rn(total, tl.zeros((BLOCK,), tl.float32) + (end - first))
    tl.store(y + p.to(tl.int64) * H + h, mean.to(y.dtype.element_ty), mask=h < H)


@triton.jit
def pool_backward(dy, bounds, dx, H, BLOCK: tl.constexpr):
    """dx of the rows of p. See the top of the file."""
    H = H // 8 * 8
    p, h = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, end = tl.load(bounds + 2 * p), tl.load(bounds + 2 * p + 1)
    grad = tl.load(dy + p.to(tl.int64) * H + h, mask=h < H, other=0.0).to(tl.float32)
    part = tl.div_rn(grad, tl.zeros((BLOCK,), tl.float32) + (end - first)).to(dx.dtype.element_ty)
    for row in range(first, end):
        tl.store(dx + tl.cast(row, tl.int64) * H + h, part, mask=h < H)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("pool", "pool_forward", kind, "x:c bounds:*i32 y:c H:i32", BLOCK=512)
        yield row("pool", "pool_backward", kind, "dy:c bounds:*i32 dx:c H:i32", BLOCK=512)
