"""Root mean square norm over rows of any width, and its gradient. The weight is frozen.

    rmsnorm_forward    y = residual + weight x rstd,  rstd = 1 / sqrt(mean(x^2) + eps)
    rmsnorm_backward   dx = residual + rstd (weight dy - x rstd^2 mean(weight dy x))

Shapes: x, y, dy, dx, residual c[M, H]; weight f32[H]; rstd f32[M]. Needs: H a multiple of 8, at most BLOCK. residual may be dx
itself, and is not read where RESIDUAL = 0. A row is held in registers, so that each tensor crosses the memory bus once; the
order of a row's sum follows from H alone.

Launch: grid (M), the variant with the least BLOCK >= H; no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def normed(x, rstd, weight):
    """weight x rstd, in f32."""
    return weight * (x * rstd)


@triton.jit
def rmsnorm_forward(x, weight, residual, y, rstd, H, eps, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr):
    """y and rstd of one row. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = h < H
    w_H = tl.load(weight + h, mask=inside, other=0.0)
    x_H = tl.load(x + m * H + h, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        residual_H = tl.load(residual + m * H + h, mask=inside, other=0.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_H * x_H), H.to(tl.float32)) + eps))
    tl.store(rstd + m, scale)
    y_H = normed(x_H, scale, w_H)
    if RESIDUAL:
        y_H += residual_H.to(tl.float32)
    tl.store(y + m * H + h, y_H.to(y.dtype.element_ty), mask=inside)


@triton.jit
def rmsnorm_backward(dy, x, weight, rstd, residual, dx, H, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr):
    """dx of one row. See the top of the file."""
    H = H // 8 * 8
    m, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = h < H
    w_H = tl.load(weight + h, mask=inside, other=0.0)
    dy_H = tl.load(dy + m * H + h, mask=inside, other=0.0)
    x_H = tl.load(x + m * H + h, mask=inside, other=0.0)
    if RESIDUAL:
        residual_H = tl.load(residual + m * H + h, mask=inside, other=0.0)
    scale = tl.load(rstd + m)
    x_H = x_H.to(tl.float32)
    g_H = w_H * dy_H.to(tl.float32)
    mean = tl.div_rn(tl.sum(g_H * x_H) * scale * scale, H.to(tl.float32))
    dx_H = scale * (g_H - x_H * mean)
    if RESIDUAL:
        dx_H += residual_H.to(tl.float32)
    tl.store(dx + m * H + h, dx_H.to(dx.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row

BLOCKS = {"ptr": ((1024, 1), (4096, 4), (8192, 8), (16384, 16)), "f32": ((16384, 16),)}  # widest row and warps


def variants():
    """A launcher takes the first with BLOCK >= H."""
    for kind in BLOCKS:
        for block, warps in BLOCKS[kind]:
            for residual in (0, 1):
                parameters = "x:c weight:*fp32 residual:c y:c rstd:*fp32 H:i32 eps:fp32"
                yield row("rmsnorm", "rmsnorm_forward", kind, parameters, warps, BLOCK=block, RESIDUAL=residual)
                parameters = "dy:c x:c weight:*fp32 rstd:*fp32 residual:c dx:c H:i32"
                yield row("rmsnorm", "rmsnorm_backward", kind, parameters, warps, BLOCK=block, RESIDUAL=residual)
