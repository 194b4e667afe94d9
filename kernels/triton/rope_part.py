"""Rotary embedding in place of heads of which a part is rotated, without norms (rope.py has all others), and its gradient.

    rope_part    x[i] = x[i] cos - x[i + R] sin,  x[i + R] = x[i + R] cos + x[i] sin,  i < R, of the first `touched` heads; with
                 back = 1 the gradient of that. Other features are not touched

Shapes: x c[M, W], heads of D features; positions i32[M]; cos, sin f32[.., R]. Needs: W, D and R multiples of 8, 2 R at most D.

Launch: grid (M, ceil(touched R / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def rope_part(x, positions, cos, sin, touched, W, D, R, back, BLOCK: tl.constexpr):
    """BLOCK pairs of one row. See the top of the file."""
    W, D, R = W // 8 * 8, D // 8 * 8, R // 8 * 8  # as they are: tells the compiler that heads are aligned
    m, p = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, i, inside = p // R, p % R, p < touched * R
    at = x + m * W + head * D + i
    angle = tl.load(positions + m).to(tl.int64) * R + i
    lo, hi = tl.load(at, mask=inside, other=0.0).to(tl.float32), tl.load(at + R, mask=inside, other=0.0).to(tl.float32)
    c, s = tl.load(cos + angle, mask=inside, other=1.0), tl.load(sin + angle, mask=inside, other=0.0)
    s = tl.where(back != 0, -s, s)
    tl.store(at, tl.fma(lo, c, -(hi * s)).to(x.dtype.element_ty), mask=inside)
    tl.store(at + R, tl.fma(hi, c, lo * s).to(x.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("rope_part", "rope_part", kind, "x:c positions:*i32 cos:*fp32 sin:*fp32 touched:i32 W:i32 D:i32 R:i32 back:i32", BLOCK=1024)
