"""The gated activation of Gemma's MLP, and its gradient: gelu by its tanh approximation, which is g sigmoid(2 u).

    geglu_forward     h = gate s up,  s = sigmoid(2 u),  u = sqrt(2 / pi) (gate + 0.044715 gate^3)
    geglu_backward    dgate = dh up s (1 + gate (1 - s) 2 u'),  dup = dh gate s

Shapes: gate, up, dgate, dup c[M, I], columns of rows that are gate_stride, up_stride, dgate_stride and dup_stride wide; h, dh
c[M, I]. Needs: I and the strides multiples of 8. dgate may be gate and dup up; where UP = 0 up has no gradient, and dup is not
written.

Launch: grid (M, ceil(I / BLOCK)), no scratch.
"""
import triton
import triton.language as tl

TWICE_ROOT = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def rows_at(base, m, stride, i):
    """Places of columns i of row m; strides are multiples of 8, as they are: tells the compiler that rows are aligned."""
    return base + m * (stride // 8 * 8) + i


@triton.jit
def geglu_of(gate, up):
    """gelu(gate) up, in f32."""
    return gate * tl.sigmoid(tl.fma(gate * gate * gate, CUBIC, gate) * TWICE_ROOT) * up


@triton.jit
def geglu_forward(gate, up, h, I, gate_stride, up_stride, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    g = tl.load(rows_at(gate, m, gate_stride, i), mask=inside, other=0.0)
    u = tl.load(rows_at(up, m, up_stride, i), mask=inside, other=0.0)
    g, u = g.to(tl.float32), u.to(tl.float32)
    tl.store(h + m * I + i, geglu_of(g, u).to(h.dtype.element_ty), mask=inside)


@triton.jit
def geglu_backward(dh, gate, up, dgate, dup, I, gate_stride, up_stride, dgate_stride, dup_stride, BLOCK: tl.constexpr, UP: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    g = tl.load(rows_at(gate, m, gate_stride, i), mask=inside, other=0.0)
    u = tl.load(rows_at(up, m, up_stride, i), mask=inside, other=0.0)
    d = tl.load(dh + m * I + i, mask=inside, other=0.0).to(tl.float32)
    g, u = g.to(tl.float32), u.to(tl.float32)
    s = tl.sigmoid(tl.fma(g * g * g, CUBIC, g) * TWICE_ROOT)
    slope = (1.0 + g * g * (3.0 * CUBIC)) * TWICE_ROOT
    dg = d * u * s * (1.0 + g * (1.0 - s) * slope)
    tl.store(rows_at(dgate, m, dgate_stride, i), dg.to(dgate.dtype.element_ty), mask=inside)
    if UP:
        tl.store(rows_at(dup, m, dup_stride, i), (d * g * s).to(dup.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("geglu", "geglu_forward", kind, "gate:c up:c h:c I:i32 gate_stride:i32 up_stride:i32", BLOCK=1024)
        for up in (0, 1):
            parameters = "dh:c gate:c up:c dgate:c dup:c I:i32 gate_stride:i32 up_stride:i32 dgate_stride:i32 dup_stride:i32"
            yield row("geglu", "geglu_backward", kind, parameters, BLOCK=1024, UP=up)
