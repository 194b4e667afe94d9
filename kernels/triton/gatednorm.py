"""Root mean square norm of each head, times the SiLU of a gate, and its gradients. The weight is frozen.

    gatednorm_forward    y = weight x rstd silu(gate),  rstd = 1 / sqrt(mean(x^2) + eps) of each head
    gatednorm_backward   with n = weight x rstd:  dgate = dy n silu'(gate),  g = dy weight silu(gate),
                         dx = rstd (g - x rstd^2 mean(g x))

Shapes: x, y, dy, dx c[M, heads D]; gate, dgate c[M, heads D], rows gate_stride and dgate_stride elements apart; weight f32[D].
Needs: D at most BLOCK. dx may be dy.

Launch: grid (M, heads), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def gatednorm_forward(x, gate, weight, y, heads, D, gate_stride, eps, BLOCK: tl.constexpr):
    """One head of one row. See the top of the file."""
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    at = (m * heads + head) * D + i
    x_I = tl.load(x + at, mask=i < D, other=0.0).to(tl.float32)
    z_I = tl.load(gate + m * gate_stride + head * D + i, mask=i < D, other=0.0).to(tl.float32)
    w_I = tl.load(weight + i, mask=i < D, other=0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_I * x_I), D.to(tl.float32)) + eps))
    tl.store(y + at, (w_I * (x_I * rstd) * (z_I * tl.sigmoid(z_I))).to(y.dtype.element_ty), mask=i < D)


@triton.jit
def gatednorm_backward(dy, x, gate, weight, dx, dgate, heads, D, gate_stride, dgate_stride, eps, BLOCK: tl.constexpr):
    """One head of one row. See the top of the file."""
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    at = (m * heads + head) * D + i
    dy_I = tl.load(dy + at, mask=i < D, other=0.0).to(tl.float32)
    x_I = tl.load(x + at, mask=i < D, other=0.0).to(tl.float32)
    z_I = tl.load(gate + m * gate_stride + head * D + i, mask=i < D, other=0.0).to(tl.float32)
    w_I = tl.load(weight + i, mask=i < D, other=0.0)
    s_I = tl.sigmoid(z_I)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_I * x_I), D.to(tl.float32)) + eps))
    dgate_I = dy_I * w_I * x_I * rstd * s_I * (1.0 + z_I * (1.0 - s_I))
    tl.store(dgate + m * dgate_stride + head * D + i, dgate_I.to(dgate.dtype.element_ty), mask=i < D)
    g_I = dy_I * w_I * z_I * s_I
    mean = tl.div_rn(tl.sum(g_I * x_I) * rstd * rstd, D.to(tl.float32))
    tl.store(dx + at, (rstd * (g_I - x_I * mean)).to(dx.dtype.element_ty), mask=i < D)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("gatednorm", "gatednorm_forward", kind, "x:c gate:c weight:*fp32 y:c heads:i32 D:i32 gate_stride:i32 eps:fp32", 1, BLOCK=256)
        parameters = "dy:c x:c gate:c weight:*fp32 dx:c dgate:c heads:i32 D:i32 gate_stride:i32 dgate_stride:i32 eps:fp32"
        yield row("gatednorm", "gatednorm_backward", kind, parameters, 1, BLOCK=256)
