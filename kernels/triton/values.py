"""Values of attention that are normalised without a weight, and keys and values that layers share.

    value_norm_forward    y = q, k and v of a row: q and k as in x, v = s / sqrt(mean(s^2) + eps) of each head, where s is
                          x's own v (source = Q + C), or its k (source = Q)
    value_norm_backward   the gradient: dq and dk of dy, and of v's norm dv, or what is added to dk
    columns_copy          to = from, or with ADDS = 1 to += from

Shapes: y, dy c[M, (Q + 2C) D]; x, dx c[M, in_heads D]: heads of q, then k, then v where source = Q + C. D at most HEAD_DIM.
from, to [M, W], columns of rows that are from_stride and to_stride wide, each c or f32. Needs: W and the strides multiples
of 8.

Launch, no scratch:
    value_norm_forward     grid (M, Q + 2C)
    value_norm_backward    grid (M, in_heads)
    columns_copy           grid (M, ceil(W / BLOCK))
"""
import triton
import triton.language as tl


@triton.jit
def head_rstd(x_D, D, eps):
    """1 / sqrt(mean of squares + eps) of a head."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_D * x_D), D.to(tl.float32)) + eps))


@triton.jit
def value_norm_forward(x, y, in_heads, heads, kv_heads, source, D, eps, HEAD_DIM: tl.constexpr):
    """One head of one row of y. See the top of the file."""
    m, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM)
    value = head - heads - kv_heads  # of v, from 0 on
    read = tl.where(value < 0, head, source + value)
    x_D = tl.load(x + (m * in_heads + read) * D + d, mask=d < D, other=0.0).to(tl.float32)
    y_D = tl.where(value < 0, x_D, x_D * head_rstd(x_D, D, eps))
    tl.store(y + (m * (heads + 2 * kv_heads) + head) * D + d, y_D.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def value_norm_backward(dy, x, dx, in_heads, heads, kv_heads, source, D, eps, HEAD_DIM: tl.constexpr):
    """One head of one row of dx. See the top of the file."""
    m, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM)
    row = dy + m * (heads + 2 * kv_heads) * D
    value = head - source
    copied = tl.where(head < heads + kv_heads, D, 0)  # features of the head that are q's or k's, and v's
    normed = tl.where(value < 0, 0, tl.where(value < kv_heads, D, 0))
    own_D = tl.load(row + head * D + d, mask=d < copied, other=0.0).to(tl.float32)
    d_D = tl.load(row + (heads + kv_heads + value) * D + d, mask=d < normed, other=0.0).to(tl.float32)
    x_D = tl.load(x + (m * in_heads + head) * D + d, mask=d < normed, other=0.0).to(tl.float32)
    rstd = head_rstd(x_D, D, eps)
    mean = tl.div_rn(tl.sum(d_D * x_D) * rstd * rstd, D.to(tl.float32))
    dx_D = own_D + rstd * (d_D - x_D * mean)  # without a value d and x are 0
    tl.store(dx + (m * in_heads + head) * D + d, dx_D.to(dx.dtype.element_ty), mask=d < D)


@triton.jit
def columns_copy(from_rows, to_rows, W, from_stride, to_stride, BLOCK: tl.constexpr, ADDS: tl.constexpr, FROM32: tl.constexpr, TO32: tl.constexpr):
    """BLOCK columns of one row. FROM32 and TO32 say the types of from and to. See the top of the file."""
    W = W // 8 * 8  # as it is: tells the compiler that rows are aligned
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    to = to_rows + m * (to_stride // 8 * 8) + i
    x = tl.load(from_rows + m * (from_stride // 8 * 8) + i, mask=i < W, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(to, mask=i < W, other=0.0).to(tl.float32)
    tl.store(to, x.to(to_rows.dtype.element_ty), mask=i < W)


# What is compiled.

from variants import row

COPIES = (("c", "c", 0), ("c", "*fp32", 1), ("*fp32", "c", 1))


def variants():
    """A launcher of columns_copy takes the row of its tensors' types: FROM32 and TO32 are 1 where they are f32."""
    for kind in ("ptr", "f32"):
        for head_dim in (256, 512):
            yield row("values", "value_norm_forward", kind, "x:c y:c in_heads:i32 heads:i32 kv_heads:i32 source:i32 D:i32 eps:fp32", 2, HEAD_DIM=head_dim)
            yield row("values", "value_norm_backward", kind, "dy:c x:c dx:c in_heads:i32 heads:i32 kv_heads:i32 source:i32 D:i32 eps:fp32", 2, HEAD_DIM=head_dim)
    for dtype, kinds in (("ptr", COPIES), ("f32", (("c", "c", 0), ("c", "c", 1)))):
        for source, target, adds in kinds:
            parameters = f"from_rows:{source} to_rows:{target} W:i32 from_stride:i32 to_stride:i32"
            types = dict(FROM32=int(source != "c"), TO32=int(target != "c"))
            yield row("values", "columns_copy", dtype, parameters, 4, BLOCK=1024, ADDS=adds, **types)
