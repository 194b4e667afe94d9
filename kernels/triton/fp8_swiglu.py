"""SwiGLU where products in e4m3 alone read what it makes: the codes that fp8.py's fp8_quantise makes of swiglu.py's results,
which are not written.

    fp8_swiglu             codes, scale of h[m, i] = silu(gate) up
    fp8_swiglu_backward    codes, scale of d[m, n] 2^e[n] of columns, d the gradients of gate and up, next to each other

h and d are rounded to bf16 before they are scaled, as where they lie in memory: the bits are the same. Two numbers are rounded
at a time (PAIRS), for the conversion of one runs at a quarter of the rate, as do the exponential and the division of each;
Triton's interpreter has no such instruction.

Shapes: gate_up c[M, 2 I], dh c[M, I], columns u8[2 I], codes [M, I] and [M, 2 I], scale f32[M]. Needs: I a multiple of 16, at
most BLOCK CHUNKS: a row is held in registers. Launch: grid (M), the first variant that holds a row; no scratch.
"""
import triton
import triton.language as tl

from fp8 import at_columns, row_part, scale_of, store_part
from swiglu import swiglu_gradients, swiglu_of


@triton.jit
def to_bf16(v, PAIRS: tl.constexpr):
    if PAIRS:
        return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [v], tl.bfloat16, is_pure=True, pack=2)
    else:
        return v.to(tl.bfloat16)


@triton.jit
def fp8_swiglu(gate_up, codes, scale, I, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, PAIRS: tl.constexpr, HALVES: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 16 * 16  # as it is: tells the compiler that rows are aligned
    m = tl.program_id(0).to(tl.int64)
    gate, up = gate_up + m * 2 * I, gate_up + m * 2 * I + I
    most = tl.zeros((BLOCK,), tl.float32)
    made = ()
    for chunk in tl.static_range(CHUNKS):
        i = chunk * BLOCK + tl.arange(0, BLOCK)
        h = to_bf16(swiglu_of(row_part(gate, i, I).to(tl.float32), row_part(up, i, I).to(tl.float32)), PAIRS)
        most = tl.maximum(most, tl.abs(h.to(tl.float32)))
        made = made + (h,)
    inverse = scale_of(most, scale)
    for chunk in tl.static_range(CHUNKS):
        store_part(made[chunk], inverse, codes + m * I, chunk * BLOCK + tl.arange(0, BLOCK), I, HALVES)


@triton.jit
def fp8_swiglu_backward(dh, gate_up, columns, codes, scale, I, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, PAIRS: tl.constexpr, HALVES: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 16 * 16
    m = tl.program_id(0).to(tl.int64)
    d, gate, up = dh + m * I, gate_up + m * 2 * I, gate_up + m * 2 * I + I
    most = tl.zeros((BLOCK,), tl.float32)
    made = ()
    for chunk in tl.static_range(CHUNKS):
        i = chunk * BLOCK + tl.arange(0, BLOCK)
        dgate, dup = swiglu_gradients(row_part(d, i, I).to(tl.float32), row_part(gate, i, I).to(tl.float32), row_part(up, i, I).to(tl.float32))
        dgate = at_columns(to_bf16(dgate, PAIRS).to(tl.float32), columns, i, I)
        dup = at_columns(to_bf16(dup, PAIRS).to(tl.float32), columns + I, i, I)
        most = tl.maximum(most, tl.maximum(tl.abs(dgate), tl.abs(dup)))
        made = made + ((to_bf16(dgate, PAIRS), to_bf16(dup, PAIRS)),)  # as they are: a row in f32 would take too many registers
    inverse = scale_of(most, scale)
    for chunk in tl.static_range(CHUNKS):
        i = chunk * BLOCK + tl.arange(0, BLOCK)
        store_part(made[chunk][0], inverse, codes + m * 2 * I, i, I, HALVES)
        store_part(made[chunk][1], inverse, codes + m * 2 * I + I, i, I, HALVES)


# What is compiled.

from variants import HALVES

ARCH = {"tma": "sm_90a", "ptr": "sm_89"}
PARAMETERS = {
    "fp8_swiglu": "gate_up:*bf16 codes:*fp8e4nv scale:*fp32 I:i32",
    "fp8_swiglu_backward": "dh:*bf16 gate_up:*bf16 columns:*u8 codes:*fp8e4nv scale:*fp32 I:i32",
}
# Blocks, warps and chunks: a launch takes the first that holds a row; wider rows are rounded by fp8_quantise.
ROWS = {"fp8_swiglu": (2048, 8, (2, 6, 10)), "fp8_swiglu_backward": (4096, 16, (1, 3, 5))}


def variants():
    for kind, arch in ARCH.items():
        for kernel, parameters in PARAMETERS.items():
            signature = dict(parameter.split(":") for parameter in parameters.split())
            block, warps, each = ROWS[kernel]
            for chunks in each:
                constants = dict(BLOCK=block, CHUNKS=chunks, PAIRS=1, HALVES=HALVES[kind])
                yield dict(module="fp8_swiglu", kernel=kernel, kinds=[kind], arch=arch, dtype="bf16", constants=constants, warps=warps, stages=1, signature=signature)
