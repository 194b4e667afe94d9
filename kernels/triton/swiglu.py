"""The gated activation of the MLP, and its gradient.

    swiglu_forward     h = silu(gate) up,  silu(g) = g sigmoid(g)
    swiglu_backward    dgate = dh up s (1 + gate (1 - s)),  dup = dh gate s,  s = sigmoid(gate)

Shapes: gate_up, dgate_up c[M, 2 I], gate in columns 0 .. I, up after it; h, dh c[M, I]. Needs: I a multiple of 8. dgate_up may
be gate_up itself.

Launch: grid (M, ceil(I / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def swiglu_of(gate, up):
    """silu(gate) up, in f32."""
    return gate * tl.sigmoid(gate) * up


@triton.jit
def swiglu_gradients(d, gate, up):
    """Those of gate and up by that of h, in f32."""
    s = tl.sigmoid(gate)
    return d * up * s * (1.0 + gate * (1.0 - s)), d * gate * s


@triton.jit
def swiglu_forward(gate_up, h, I, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    gate = tl.load(gate_up + m * 2 * I + i, mask=inside, other=0.0)
    up = tl.load(gate_up + m * 2 * I + I + i, mask=inside, other=0.0).to(tl.float32)
    gate = gate.to(tl.float32)
    tl.store(h + m * I + i, swiglu_of(gate, up).to(h.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(dh, gate_up, dgate_up, I, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    gate = tl.load(gate_up + m * 2 * I + i, mask=inside, other=0.0)
    up = tl.load(gate_up + m * 2 * I + I + i, mask=inside, other=0.0)
    d = tl.load(dh + m * I + i, mask=inside, other=0.0).to(tl.float32)
    dgate, dup = swiglu_gradients(d, gate.to(tl.float32), up.to(tl.float32))
    tl.store(dgate_up + m * 2 * I + i, dgate.to(dgate_up.dtype.element_ty), mask=inside)
    tl.store(dgate_up + m * 2 * I + I + i, dup.to(dgate_up.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("swiglu", "swiglu_forward", kind, "gate_up:c h:c I:i32", BLOCK=1024)
        yield row("swiglu", "swiglu_backward", kind, "dh:c gate_up:c dgate_up:c I:i32", BLOCK=1024)
