"""AdamW's step of one adapter with moments of 8 bits.

    m = number of its code x m_absmax, v likewise;  then as adamw.py has it:  m += (g - m) (1 - beta1),
    v = beta2 v + (1 - beta2) g^2,  p = p (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps);
    then of each 128 elements m_absmax = the largest |m|, and m the code whose number is nearest to m / m_absmax

Shapes: params, grads f32[128 F]; m, v u8[128 F]; m_absmax, v_absmax f32[F]; codes f32[4, 256] = the numbers of m's codes, what
lies halfway between each and the next, and the same of v's; copy bf16[128 F], not touched where COPY = 0; factors i32[F] and
table f32[11] as adamw.py has them. Nothing is touched where table[0] is 0.

Launch: grid (ceil(F / BLOCKS)), no scratch
"""
import triton
import triton.language as tl

from adamw import adamw_update


@triton.jit
def nearest(values, most, halves):
    """Codes [BLOCKS, 128] of values [BLOCKS, 128] of which `most` [BLOCKS] are the largest: how many halves lie below their
    shares. Zeros have the code of 0."""
    share = tl.where(most[:, None] > 0, tl.div_rn(values, most[:, None] + tl.zeros_like(values)), 0.0)
    code = tl.zeros(values.shape, tl.int32)
    for bit in tl.static_range(8):
        step = 128 >> bit
        code += tl.where(tl.load(halves + code + (step - 1)) < share, step, 0)
    return code


@triton.jit
def adamw8_step(params, grads, m, v, m_absmax, v_absmax, codes, copy, factors, table, F, BLOCKS: tl.constexpr, COPY: tl.constexpr):
    """BLOCKS times 128 parameters. See the top of the file."""
    lr, rest1, beta2, rest2, eps = tl.load(table + 1), tl.load(table + 2), tl.load(table + 3), tl.load(table + 4), tl.load(table + 5)
    decay, correction1, correction2, coefficient = tl.load(table + 6), tl.load(table + 7), tl.load(table + 8), tl.load(table + 9)
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < tl.where(tl.load(table) != 0.0, F, 0)
    i = block[:, None] * 128 + tl.arange(0, 128)[None, :]
    mask = inside[:, None]
    lr = tl.where(tl.load(factors + block, mask=inside, other=0) == 1, tl.load(table + 10), lr)[:, None]
    g = tl.load(grads + i, mask=mask, other=0.0)
    p = tl.load(params + i, mask=mask, other=0.0)
    m_I = tl.load(codes + tl.load(m + i, mask=mask, other=0).to(tl.int32)) * tl.load(m_absmax + block, mask=inside, other=0.0)[:, None]
    v_I = tl.load(codes + 512 + tl.load(v + i, mask=mask, other=0).to(tl.int32)) * tl.load(v_absmax + block, mask=inside, other=0.0)[:, None]
    g *= coefficient
    p, m_I, v_I = adamw_update(p, g, m_I, v_I, lr, rest1, beta2, rest2, eps, decay, correction1, correction2)
    m_most, v_most = tl.max(tl.abs(m_I), axis=1), tl.max(v_I, axis=1)
    m_code, v_code = nearest(m_I, m_most, codes + 256), nearest(v_I, v_most, codes + 768)
    # Threads read and write tiles of other shapes, so what one has to read another writes: all must have read (adamw.py).
    tl.debug_barrier()
    tl.store(grads + i, tl.zeros_like(g), mask=mask)
    tl.store(m + i, m_code.to(tl.uint8), mask=mask)
    tl.store(v + i, v_code.to(tl.uint8), mask=mask)
    tl.store(m_absmax + block, m_most, mask=inside)
    tl.store(v_absmax + block, v_most, mask=inside)
    tl.store(params + i, p, mask=mask)
    if COPY:
        tl.store(copy + i, p.to(tl.bfloat16), mask=mask)


# What is compiled.

from variants import row


def variants():
    for copy in (0, 1):
        moments = "m:*u8 v:*u8 m_absmax:*fp32 v_absmax:*fp32 codes:*fp32"
        tensors = f"params:*fp32 grads:*fp32 {moments} copy:*bf16 factors:*i32 table:*fp32"
        yield row("adamw8", "adamw8_step", None, f"{tensors} F:i64", BLOCKS=8, COPY=copy)
