"""Rows of a value times the sigmoid of a number of each token, the product of its row of `gate` with a frozen vector.

    tokengate_forward    y[m] = residual[m] + s[m] x[m],  s[m] = sigmoid(gate[m] . weight)
    tokengate_backward   dx[m] = s[m] dy[m],  dgate[m] += s[m] (1 - s[m]) (dy[m] . x[m]) weight

Shapes: x, gate, residual, y, dy, dx, dgate c[M, H]; weight f32[H]. Needs: H a multiple of 8. dx may be dy.

Launch: grid (M), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def along(a, b, H, BLOCK: tl.constexpr):
    """The product of two rows of H features, f32."""
    sum_I = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, H, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        sum_I += tl.load(a + i, mask=i < H, other=0.0).to(tl.float32) * tl.load(b + i, mask=i < H, other=0.0).to(tl.float32)
    return tl.sum(sum_I)


@triton.jit
def tokengate_forward(x, gate, weight, residual, y, H, BLOCK: tl.constexpr):
    """One row. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    row = tl.program_id(0).to(tl.int64) * H
    s = tl.sigmoid(along(gate + row, weight, H, BLOCK))
    for begin in range(0, H, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x_I = tl.load(x + row + i, mask=i < H, other=0.0).to(tl.float32)
        r_I = tl.load(residual + row + i, mask=i < H, other=0.0).to(tl.float32)
        tl.store(y + row + i, (r_I + s * x_I).to(y.dtype.element_ty), mask=i < H)


@triton.jit
def tokengate_backward(dy, x, gate, weight, dx, dgate, H, BLOCK: tl.constexpr):
    """One row. See the top of the file."""
    H = H // 8 * 8
    row = tl.program_id(0).to(tl.int64) * H
    s = tl.sigmoid(along(gate + row, weight, H, BLOCK))
    d = s * (1.0 - s) * along(dy + row, x + row, H, BLOCK)
    for begin in range(0, H, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        g_I = tl.load(dgate + row + i, mask=i < H, other=0.0).to(tl.float32)
        w_I = tl.load(weight + i, mask=i < H, other=0.0)
        tl.store(dgate + row + i, (g_I + d * w_I).to(dgate.dtype.element_ty), mask=i < H)
        dy_I = tl.load(dy + row + i, mask=i < H, other=0.0).to(tl.float32)
        tl.store(dx + row + i, (s * dy_I).to(dx.dtype.element_ty), mask=i < H)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("tokengate", "tokengate_forward", kind, "x:c gate:c weight:*fp32 residual:c y:c H:i32", BLOCK=1024)
        yield row("tokengate", "tokengate_backward", kind, "dy:c x:c gate:c weight:*fp32 dx:c dgate:c H:i32", BLOCK=1024)
