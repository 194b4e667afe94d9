"""Rotary embedding of q and k, with the norm of each head before it where a model has one (Qwen 3), and its gradient.

    rope_forward     out[i] = x[i] cos - x[i + D/2] sin,  out[i + D/2] = x[i + D/2] cos + x[i] sin,  i < D/2;
                     with NORM x is first weight x / sqrt(mean(x^2) + eps) over the head; v is copied when out is not qkv
    rope_backward    the gradient of that, in place on dqkv; v's stays as it is

Shapes: qkv, out, dqkv c[M, (Q + 2C) D], heads of q, then k, then v; positions i32[M]; cos, sin f32[.., D/2]; q_weight, k_weight
c[D], not read where NORM = 0, nor is qkv of rope_backward. out may be qkv when NORM = 0. D is even, at most 2 HALF; with EXACT
= 1 it is 2 HALF, and accesses are 16 bytes wide.

Launch: the variant with HALF = D / 2 and EXACT = 1 where there is one, else that with EXACT = 0; no scratch.
    rope_forward     grid (M, ceil(touched / HEADS)); touched = Q + C when out is qkv, else Q + 2C
    rope_backward    grid (M, ceil((Q + C) / HEADS))
"""
import triton
import triton.language as tl


@triton.jit
def row_angles(positions, cos, sin, m, half, i):
    """cos and sin of a row's position, [1, HALF] each."""
    at = tl.load(positions + m).to(tl.int64) * half + i
    return tl.load(cos + at, mask=i < half, other=0.0)[None, :], tl.load(sin + at, mask=i < half, other=0.0)[None, :]


@triton.jit
def head_weights(q_weight, k_weight, is_q, i, first, half):
    """f32[HEADS, HALF]: the norm's weights for elements first + i of heads of q or k."""
    q = tl.load(q_weight + first + i, mask=i < half, other=0.0).to(tl.float32)
    k = tl.load(k_weight + first + i, mask=i < half, other=0.0).to(tl.float32)
    return tl.where(is_q[:, None], q[None, :], k[None, :])


@triton.jit
def head_rstd(lo, hi, half, eps):
    """f32[HEADS, 1]: 1 / sqrt(mean of squares + eps) of each head."""
    mean = tl.div_rn(tl.sum(lo * lo + hi * hi, axis=1), (2 * half).to(tl.float32))
    return tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, None]


@triton.jit
def rope_forward(qkv, positions, cos, sin, q_weight, k_weight, out, heads, kv_heads, touched, D, eps,
                 HALF: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr):
    """HEADS heads of one row. See the top of the file."""
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)  # as it is: tells the compiler that heads are aligned
    half = D // 2
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    inside = (head < touched)[:, None] & (i < half)[None, :]
    at = m * (heads + 2 * kv_heads) * D + head[:, None] * D + i[None, :]
    lo = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
    hi = tl.load(qkv + at + half, mask=inside, other=0.0).to(tl.float32)
    cos_I, sin_I = row_angles(positions, cos, sin, m, half, i)
    rotated = (head < heads + kv_heads)[:, None]
    x_lo, x_hi = lo, hi
    if NORM:
        rstd = head_rstd(lo, hi, half, eps)
        x_lo = head_weights(q_weight, k_weight, head < heads, i, 0, half) * (lo * rstd)
        x_hi = head_weights(q_weight, k_weight, head < heads, i, half, half) * (hi * rstd)
    tl.store(out + at, tl.where(rotated, x_lo * cos_I - x_hi * sin_I, lo).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + half, tl.where(rotated, x_hi * cos_I + x_lo * sin_I, hi).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope_backward(dqkv, positions, cos, sin, qkv, q_weight, k_weight, heads, kv_heads, D, eps,
                  HALF: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr):
    """HEADS heads of one row. See the top of the file."""
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)
    half = D // 2
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    inside = (head < heads + kv_heads)[:, None] & (i < half)[None, :]
    at = m * (heads + 2 * kv_heads) * D + head[:, None] * D + i[None, :]
    lo = tl.load(dqkv + at, mask=inside, other=0.0).to(tl.float32)
    hi = tl.load(dqkv + at + half, mask=inside, other=0.0).to(tl.float32)
    cos_I, sin_I = row_angles(positions, cos, sin, m, half, i)
    d_lo, d_hi = lo * cos_I + hi * sin_I, hi * cos_I - lo * sin_I
    if NORM:
        x_lo = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
        x_hi = tl.load(qkv + at + half, mask=inside, other=0.0).to(tl.float32)
        rstd = head_rstd(x_lo, x_hi, half, eps)
        d_lo *= head_weights(q_weight, k_weight, head < heads, i, 0, half)
        d_hi *= head_weights(q_weight, k_weight, head < heads, i, half, half)
        mean = tl.div_rn(tl.sum(d_lo * x_lo + d_hi * x_hi, axis=1), D.to(tl.float32))[:, None] * rstd * rstd
        d_lo, d_hi = rstd * (d_lo - x_lo * mean), rstd * (d_hi - x_hi * mean)
    tl.store(dqkv + at, d_lo.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(dqkv + at + half, d_hi.to(dqkv.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row

HALVES = {"ptr": ((32, 1), (64, 1), (128, 0)), "f32": ((128, 0),)}  # HALF and EXACT: heads of 64, of 128, all
TABLES = "positions:*i32 cos:*fp32 sin:*fp32"
FORWARD = f"qkv:c {TABLES} q_weight:c k_weight:c out:c heads:i32 kv_heads:i32 touched:i32 D:i32 eps:fp32"
BACKWARD = f"dqkv:c {TABLES} qkv:c q_weight:c k_weight:c heads:i32 kv_heads:i32 D:i32 eps:fp32"


def variants():
    """A launcher takes HALF = D / 2 with EXACT = 1; where there is none, the first with EXACT = 0 and HALF >= D / 2."""
    for kind in HALVES:
        for half, exact in HALVES[kind]:
            for norm, pairs, warps in ((0, 4096, 8), (1, 1024, 4)):
                constants = dict(HALF=half, HEADS=pairs // half, EXACT=exact, NORM=norm)
                yield row("rope", "rope_forward", kind, FORWARD, warps, **constants)
                yield row("rope", "rope_backward", kind, BACKWARD, warps, **constants)
