"""SwiGLU where products in e4m3 alone read what it makes: the codes that fp8.py's fp8_quantise makes of swiglu.py's results,
which are not written.

    fp8_swiglu             codes, scale of h[m, i] = silu(gate) up
    fp8_swiglu_backward    codes, scale of columns[n] d[m, n], d the gradients of gate and up, next to each other

h and d are rounded to the compute type before they are scaled, as where they lie in memory: the bits are the same.

Shapes: gate_up c[M, 2 I], dh c[M, I], columns f32[2 I], codes [M, I] and [M, 2 I], scale f32[M]. Needs: I a multiple of 16, at
most BLOCK CHUNKS: a row is held in registers. Launch: grid (M), the first variant that holds a row; no scratch.
"""
import triton
import triton.language as tl

from fp8 import MOST, scaled_part, store_part
from swiglu import swiglu_gradients, swiglu_of


@triton.jit
def scale_of(most, scale):
    """Writes the scale of a row and returns its inverse."""
    largest = tl.max(most)
    tl.store(scale + tl.program_id(0), tl.div_rn(largest, MOST))
    return tl.where(largest > 0, tl.div_rn(MOST, largest), 0.0)


@triton.jit
def row_part(base, chunk, I, BLOCK: tl.constexpr):
    """Some of a row; caches are for the columns."""
    i = chunk * BLOCK + tl.arange(0, BLOCK)
    return tl.load(base + i, mask=i < I, other=0.0, cache_modifier=".cg")


@triton.jit
def fp8_swiglu(gate_up, codes, scale, I, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 16 * 16  # as it is: tells the compiler that rows are aligned
    m = tl.program_id(0).to(tl.int64)
    gate, up = gate_up + m * 2 * I, gate_up + m * 2 * I + I
    parts = ()
    for chunk in tl.static_range(CHUNKS):  # all are under way before the first is needed
        parts = parts + ((row_part(gate, chunk, I, BLOCK), row_part(up, chunk, I, BLOCK)),)
    most = tl.zeros((BLOCK,), tl.float32)
    made = ()
    for chunk in tl.static_range(CHUNKS):
        h = swiglu_of(parts[chunk][0].to(tl.float32), parts[chunk][1].to(tl.float32)).to(gate_up.dtype.element_ty)
        most = tl.maximum(most, tl.abs(h.to(tl.float32)))
        made = made + (h,)
    inverse = scale_of(most, scale)
    for chunk in tl.static_range(CHUNKS):
        store_part(made[chunk].to(tl.float32), inverse, codes + m * I, chunk * BLOCK + tl.arange(0, BLOCK), I)


@triton.jit
def fp8_swiglu_backward(dh, gate_up, columns, codes, scale, I, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 16 * 16
    m = tl.program_id(0).to(tl.int64)
    d, gate, up = dh + m * I, gate_up + m * 2 * I, gate_up + m * 2 * I + I
    parts = ()
    for chunk in tl.static_range(CHUNKS):
        parts = parts + ((row_part(d, chunk, I, BLOCK), row_part(gate, chunk, I, BLOCK), row_part(up, chunk, I, BLOCK)),)
    most = tl.zeros((BLOCK,), tl.float32)
    made = ()
    for chunk in tl.static_range(CHUNKS):
        i = chunk * BLOCK + tl.arange(0, BLOCK)
        dgate, dup = swiglu_gradients(parts[chunk][0].to(tl.float32), parts[chunk][1].to(tl.float32), parts[chunk][2].to(tl.float32))
        dgate, dup = dgate.to(gate_up.dtype.element_ty), dup.to(gate_up.dtype.element_ty)
        most = tl.maximum(most, tl.abs(scaled_part(dgate, columns, i, I, True)))
        most = tl.maximum(most, tl.abs(scaled_part(dup, columns + I, i, I, True)))
        made = made + ((dgate, dup),)
    inverse = scale_of(most, scale)
    for chunk in tl.static_range(CHUNKS):
        i = chunk * BLOCK + tl.arange(0, BLOCK)
        store_part(scaled_part(made[chunk][0], columns, i, I, True), inverse, codes + m * 2 * I, i, I)
        store_part(scaled_part(made[chunk][1], columns + I, i, I, True), inverse, codes + m * 2 * I + I, i, I)


# What is compiled.

ARCH = {"tma": "sm_90a", "ptr": "sm_89"}
PARAMETERS = {
    "fp8_swiglu": "gate_up:*bf16 codes:*fp8e4nv scale:*fp32 I:i32",
    "fp8_swiglu_backward": "dh:*bf16 gate_up:*bf16 columns:*fp32 codes:*fp8e4nv scale:*fp32 I:i32",
}
CHUNKS = (1, 3, 5)  # a launch takes the first that holds a row; wider rows are rounded by fp8_quantise


def variants():
    for kind, arch in ARCH.items():
        for kernel, parameters in PARAMETERS.items():
            signature = dict(parameter.split(":") for parameter in parameters.split())
            for chunks in CHUNKS:
                constants = dict(BLOCK=4096, CHUNKS=chunks)
                yield dict(module="fp8_swiglu", kernel=kernel, kinds=[kind], arch=arch, dtype="bf16", constants=constants, warps=16, stages=1, signature=signature)
