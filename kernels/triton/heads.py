"""Heads of q that each have a gate after them, next to k and v: gated c[M, 2 (Q + C) D], Q pairs of q and gate, then C heads of
k, then of v.

    heads_split           y c[M, (Q + 2C) D] = q, k and v
    heads_join            the columns of q, k and v of dgated = dy
    heads_gate            y = x sigmoid(gate), x, y c[M, Q D]
    heads_gate_backward   dx = dy sigmoid(gate); in gated each gate becomes dy x sigmoid(gate) (1 - sigmoid(gate)). dx may be dy

Needs: D a multiple of 8.

Launch: grid (M, ceil(columns / BLOCK)), columns those of y, or of x; no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def gated_column(i, heads, D, GATE: tl.constexpr):
    """The column of gated that column i of q, k and v has; GATE: that of the gate of column i of q."""
    if GATE:
        return (2 * (i // D) + 1) * D + i % D
    return tl.where(i < heads * D, 2 * (i // D) * D + i % D, heads * D + i)


@triton.jit
def heads_split(gated, y, heads, kv_heads, D, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    D = D // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    W = (heads + 2 * kv_heads) * D
    from_I = gated + m * 2 * (heads + kv_heads) * D + gated_column(i, heads, D, GATE=0)
    tl.store(y + m * W + i, tl.load(from_I, mask=i < W), mask=i < W)


@triton.jit
def heads_join(dy, dgated, heads, kv_heads, D, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    D = D // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    W = (heads + 2 * kv_heads) * D
    to_I = dgated + m * 2 * (heads + kv_heads) * D + gated_column(i, heads, D, GATE=0)
    tl.store(to_I, tl.load(dy + m * W + i, mask=i < W), mask=i < W)


@triton.jit
def heads_gate(x, gated, y, heads, kv_heads, D, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    D = D // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    W = heads * D
    gates = gated + m * 2 * (heads + kv_heads) * D + gated_column(i, heads, D, GATE=1)
    s_I = tl.sigmoid(tl.load(gates, mask=i < W, other=0.0).to(tl.float32))
    x_I = tl.load(x + m * W + i, mask=i < W, other=0.0).to(tl.float32)
    tl.store(y + m * W + i, (x_I * s_I).to(y.dtype.element_ty), mask=i < W)


@triton.jit
def heads_gate_backward(dy, x, gated, dx, heads, kv_heads, D, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    D = D // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    W = heads * D
    gates = gated + m * 2 * (heads + kv_heads) * D + gated_column(i, heads, D, GATE=1)
    s_I = tl.sigmoid(tl.load(gates, mask=i < W, other=0.0).to(tl.float32))
    dy_I = tl.load(dy + m * W + i, mask=i < W, other=0.0).to(tl.float32)
    x_I = tl.load(x + m * W + i, mask=i < W, other=0.0).to(tl.float32)
    tl.store(gates, (dy_I * x_I * s_I * (1.0 - s_I)).to(gated.dtype.element_ty), mask=i < W)
    tl.store(dx + m * W + i, (dy_I * s_I).to(dx.dtype.element_ty), mask=i < W)


# What is compiled.

from variants import row

SIZES = "heads:i32 kv_heads:i32 D:i32"


def variants():
    for kind in ("ptr", "f32"):
        yield row("heads", "heads_split", kind, f"gated:c y:c {SIZES}", BLOCK=2048)
        yield row("heads", "heads_join", kind, f"dy:c dgated:c {SIZES}", BLOCK=2048)
        yield row("heads", "heads_gate", kind, f"x:c gated:c y:c {SIZES}", BLOCK=2048)
        yield row("heads", "heads_gate_backward", kind, f"dy:c x:c gated:c dx:c {SIZES}", BLOCK=2048)
