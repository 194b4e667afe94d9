"""Root mean square norm of groups of features, which a gate's SiLU has been multiplied by first, and its gradients. The weight
is frozen.

    groupnorm_forward     y = weight u rstd,  u = x silu(gate),  rstd = 1 / sqrt(mean(u^2) + eps) of each group
    groupnorm_backward    du = rstd (weight dy - u rstd^2 mean(weight dy u)),  dx = du silu(gate),  dgate = du x silu'(gate)

Shapes: x, y, dy, dx c[M, groups D]; gate, dgate c[M, groups D], rows gate_stride and dgate_stride elements apart; weight
f32[groups D]. Needs: D and strides multiples of 8, D at most BLOCK. dx may be dy. A group is held in registers; the order of
its sum follows from D alone.

Launch: grid (M, groups), the variant with the least BLOCK >= D; no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def groupnorm_forward(x, gate, weight, y, groups, D, gate_stride, eps, BLOCK: tl.constexpr):
    """One group of one row. See the top of the file."""
    D, gate_stride = D // 8 * 8, gate_stride // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    m, group, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    x_I = tl.load(x + (m * groups + group) * D + i, mask=i < D, other=0.0)
    z_I = tl.load(gate + m * gate_stride + group * D + i, mask=i < D, other=0.0)
    w_I = tl.load(weight + group * D + i, mask=i < D, other=0.0)
    z_I = z_I.to(tl.float32)
    u_I = x_I.to(tl.float32) * (z_I * tl.sigmoid(z_I))
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(u_I * u_I), D.to(tl.float32)) + eps))
    tl.store(y + (m * groups + group) * D + i, (w_I * (u_I * rstd)).to(y.dtype.element_ty), mask=i < D)


@triton.jit
def groupnorm_backward(dy, x, gate, weight, dx, dgate, groups, D, gate_stride, dgate_stride, eps, BLOCK: tl.constexpr):
    """One group of one row. See the top of the file."""
    D, gate_stride, dgate_stride = D // 8 * 8, gate_stride // 8 * 8, dgate_stride // 8 * 8
    m, group, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    at = (m * groups + group) * D + i
    dy_I, x_I = tl.load(dy + at, mask=i < D, other=0.0), tl.load(x + at, mask=i < D, other=0.0)
    z_I = tl.load(gate + m * gate_stride + group * D + i, mask=i < D, other=0.0)
    w_I = tl.load(weight + group * D + i, mask=i < D, other=0.0)
    x_I, z_I = x_I.to(tl.float32), z_I.to(tl.float32)
    s_I = tl.sigmoid(z_I)
    u_I, g_I = x_I * (z_I * s_I), w_I * dy_I.to(tl.float32)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(u_I * u_I), D.to(tl.float32)) + eps))
    mean = tl.div_rn(tl.sum(g_I * u_I) * rstd * rstd, D.to(tl.float32))
    du_I = rstd * tl.fma(u_I, -mean, g_I)
    dgate_I = du_I * x_I * s_I * tl.fma(z_I, 1.0 - s_I, 1.0)
    tl.store(dgate + m * dgate_stride + group * D + i, dgate_I.to(dgate.dtype.element_ty), mask=i < D)
    tl.store(dx + at, (du_I * (z_I * s_I)).to(dx.dtype.element_ty), mask=i < D)


# What is compiled.

from variants import row

BLOCKS = {"ptr": ((1024, 2), (4096, 4), (8192, 16), (16384, 16)), "f32": ((16384, 16),)}  # widest group and warps


def variants():
    """A launcher takes the first with BLOCK >= D."""
    for kind in BLOCKS:
        for block, warps in BLOCKS[kind]:
            sizes = "groups:i32 D:i32 gate_stride:i32"
            yield row("groupnorm", "groupnorm_forward", kind, f"x:c gate:c weight:*fp32 y:c {sizes} eps:fp32", warps, BLOCK=block)
            parameters = f"dy:c x:c gate:c weight:*fp32 dx:c dgate:c {sizes} dgate_stride:i32 eps:fp32"
            yield row("groupnorm", "groupnorm_backward", kind, parameters, warps, BLOCK=block)
