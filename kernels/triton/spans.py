"""Root mean square norm of the first two spans of a row, each by itself, and its gradient. The weights are frozen.

    spans_forward    y = weight x rstd within a span,  rstd = 1 / sqrt(mean(x^2) + eps) of it; the columns after them are copied
    spans_backward   dy becomes rstd (weight dy - x rstd^2 mean(weight dy x)) within a span

Shapes: x, y, dy c[M, W]; first f32[A], second f32[B], the weights of columns 0 .. A - 1 and A .. A + B - 1; rstd f32[2, M].
Needs: A, B and W - A - B at most BLOCK.

Launch: grid (M, 3) forward, (M, 2) backward, the variant with the least BLOCK that holds each part; no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def span_weights(first, second, part, A, B, i):
    """f32[BLOCK] of the span that a program has."""
    of_first = tl.load(first + i, mask=i < tl.where(part == 0, A, 0), other=0.0)
    return of_first + tl.load(second + i, mask=i < tl.where(part == 1, B, 0), other=0.0)


@triton.jit
def spans_forward(x, first, second, y, rstd, M, W, A, B, eps, BLOCK: tl.constexpr):
    """A span of one row, or what follows the spans. See the top of the file."""
    m, part, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    begin = tl.where(part == 0, 0, tl.where(part == 1, A, A + B))
    size = tl.where(part == 0, A, tl.where(part == 1, B, W - A - B))
    at = m * W + begin + i
    value = tl.load(x + at, mask=i < size, other=0.0)
    if part < 2:
        x_I = value.to(tl.float32)
        weight = span_weights(first, second, part, A, B, i)
        scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_I * x_I), size.to(tl.float32)) + eps))
        tl.store(rstd + part * M + m, scale)
        value = (weight * (x_I * scale)).to(y.dtype.element_ty)
    tl.store(y + at, value, mask=i < size)


@triton.jit
def spans_backward(dy, x, first, second, rstd, M, W, A, B, BLOCK: tl.constexpr):
    """A span of one row. See the top of the file."""
    m, part, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    size = tl.where(part == 0, A, B)
    at = m * W + tl.where(part == 0, 0, A) + i
    weight = span_weights(first, second, part, A, B, i)
    g_I = weight * tl.load(dy + at, mask=i < size, other=0.0).to(tl.float32)
    x_I = tl.load(x + at, mask=i < size, other=0.0).to(tl.float32)
    scale = tl.load(rstd + part * M + m)
    mean = tl.div_rn(tl.sum(g_I * x_I) * scale * scale, size.to(tl.float32))
    tl.store(dy + at, (scale * (g_I - x_I * mean)).to(dy.dtype.element_ty), mask=i < size)


# What is compiled.

from variants import row

BLOCKS = {"ptr": ((1024, 2), (4096, 4), (8192, 8)), "f32": ((8192, 8),)}  # widest part and warps


def variants():
    """A launcher takes the first with BLOCK >= each part."""
    sizes = "M:i32 W:i32 A:i32 B:i32"
    for kind in BLOCKS:
        for block, warps in BLOCKS[kind]:
            yield row("spans", "spans_forward", kind, f"x:c first:*fp32 second:*fp32 y:c rstd:*fp32 {sizes} eps:fp32", warps, BLOCK=block)
            yield row("spans", "spans_backward", kind, f"dy:c x:c first:*fp32 second:*fp32 rstd:*fp32 {sizes}", warps, BLOCK=block)
