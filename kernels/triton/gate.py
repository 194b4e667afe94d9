"""A value gated by the sigmoid of another, element by element, and its gradient.

    gate_forward    y = x sigmoid(gate)
    gate_backward   dx = dy sigmoid(gate),  dgate = dy x sigmoid(gate) (1 - sigmoid(gate))

Shapes: all c[size]. Needs: size a multiple of 8. dx may be dy, and dgate may be gate.

Launch: grid (ceil(size / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def gate_forward(x, gate, y, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    size = size // 8 * 8  # as it is: tells the compiler that accesses are aligned to 16 bytes
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x_I = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    s_I = tl.sigmoid(tl.load(gate + i, mask=i < size, other=0.0).to(tl.float32))
    tl.store(y + i, (x_I * s_I).to(y.dtype.element_ty), mask=i < size)


@triton.jit
def gate_backward(dy, x, gate, dx, dgate, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    size = size // 8 * 8
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy_I = tl.load(dy + i, mask=i < size, other=0.0).to(tl.float32)
    x_I = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    s_I = tl.sigmoid(tl.load(gate + i, mask=i < size, other=0.0).to(tl.float32))
    tl.store(dgate + i, (dy_I * x_I * s_I * (1.0 - s_I)).to(dgate.dtype.element_ty), mask=i < size)
    tl.store(dx + i, (dy_I * s_I).to(dx.dtype.element_ty), mask=i < size)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("gate", "gate_forward", kind, "x:c gate:c y:c size:i64", BLOCK=1024)
        yield row("gate", "gate_backward", kind, "dy:c x:c gate:c dx:c dgate:c size:i64", BLOCK=1024)
