"""Root mean square norm of each head, times the SiLU of a gate, and its gradients. The weight is frozen.

    gatednorm_forward    y = weight x rstd silu(gate),  rstd = 1 / sqrt(mean(x^2) + eps) of each head
    gatednorm_backward   with n = weight x rstd:  dgate = dy n silu'(gate),  g = dy weight silu(gate),
                         dx = rstd (g - x rstd^2 mean(g x))

Shapes: x, y, dy, dx c[M, heads D]; gate, dgate c[M, heads D], rows gate_stride and dgate_stride elements apart; weight f32[D].
Needs: D at most BLOCK, and D = BLOCK and strides that are multiples of 8 where EXACT = 1. dx may be dy.

Launch: grid (ceil(M / BM), heads), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def gatednorm_forward(x, gate, weight, y, M, heads, D, gate_stride, eps, BM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """One head of BM rows. See the top of the file."""
    if EXACT:
        D, gate_stride = BLOCK, gate_stride // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    m_M, head, i = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1), tl.arange(0, BLOCK)
    seen, m = (m_M < M)[:, None] & (i < D)[None, :], m_M.to(tl.int64)[:, None]
    at = (m * heads + head) * D + i[None, :]
    x_MI = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
    z_MI = tl.load(gate + m * gate_stride + head * D + i[None, :], mask=seen, other=0.0).to(tl.float32)
    w_I = tl.load(weight + i, mask=i < D, other=0.0)
    rstd_M = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_MI * x_MI, axis=1), D * 1.0) + eps))
    y_MI = w_I[None, :] * (x_MI * rstd_M[:, None]) * (z_MI * tl.sigmoid(z_MI))
    tl.store(y + at, y_MI.to(y.dtype.element_ty), mask=seen)


@triton.jit
def gatednorm_backward(dy, x, gate, weight, dx, dgate, M, heads, D, gate_stride, dgate_stride, eps, BM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """One head of BM rows. See the top of the file."""
    if EXACT:
        D, gate_stride, dgate_stride = BLOCK, gate_stride // 8 * 8, dgate_stride // 8 * 8
    m_M, head, i = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1), tl.arange(0, BLOCK)
    seen, m = (m_M < M)[:, None] & (i < D)[None, :], m_M.to(tl.int64)[:, None]
    at = (m * heads + head) * D + i[None, :]
    dy_MI = tl.load(dy + at, mask=seen, other=0.0).to(tl.float32)
    x_MI = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
    z_MI = tl.load(gate + m * gate_stride + head * D + i[None, :], mask=seen, other=0.0).to(tl.float32)
    w_MI = tl.load(weight + i, mask=i < D, other=0.0)[None, :]
    s_MI = tl.sigmoid(z_MI)
    rstd_M = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_MI * x_MI, axis=1), D * 1.0) + eps))[:, None]
    dgate_MI = dy_MI * w_MI * x_MI * rstd_M * s_MI * tl.fma(z_MI, 1.0 - s_MI, 1.0)
    tl.store(dgate + m * dgate_stride + head * D + i[None, :], dgate_MI.to(dgate.dtype.element_ty), mask=seen)
    g_MI = dy_MI * w_MI * z_MI * s_MI
    mean_M = tl.div_rn(tl.sum(g_MI * x_MI, axis=1)[:, None] * rstd_M * rstd_M, D * 1.0)
    tl.store(dx + at, (rstd_M * tl.fma(x_MI, -mean_M, g_MI)).to(dx.dtype.element_ty), mask=seen)


# What is compiled.

from variants import row


def variants():
    """Heads of 128, as released models have them, and smaller ones."""
    for kind in ("ptr", "f32"):
        for exact in (1, 0) if kind == "ptr" else (0,):
            sizes = dict(BM=16, BLOCK=128, EXACT=exact)
            yield row("gatednorm", "gatednorm_forward", kind, "x:c gate:c weight:*fp32 y:c M:i32 heads:i32 D:i32 gate_stride:i32 eps:fp32", **sizes)
            parameters = "dy:c x:c gate:c weight:*fp32 dx:c dgate:c M:i32 heads:i32 D:i32 gate_stride:i32 dgate_stride:i32 eps:fp32"
            yield row("gatednorm", "gatednorm_backward", kind, parameters, **sizes)
