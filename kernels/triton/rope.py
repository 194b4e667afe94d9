"""Rotary embedding of q and k, with the norm of each head before it where a model has one (Qwen 3), and its gradient.

    rope_forward     out[i] = x[i] cos - x[i + R] sin,  out[i + R] = x[i + R] cos + x[i] sin,  i < R, the other features of a
                     head are as in x; q is multiplied by q_scale of its position where scaled = 1;
                     with NORM x is first weight x / sqrt(mean(x^2) + eps) over the head; v is copied when out is not qkv
    rope_backward    the gradient of that, in place on dqkv; v's stays as it is

Shapes: qkv, out, dqkv c[M, (Q + 2C) D], heads of q, then k, then v; positions i32[M]; cos, sin f32[.., R]; q_scale f32[..];
q_weight, k_weight f32[D], not read where NORM = 0, nor is qkv of rope_backward. out may be qkv when NORM = 0. D is even, at
most 2 HALF, and R at most D / 2; with EXACT = 1 they are 2 HALF and HALF, and accesses are 16 bytes wide.

A head's features are taken as D / 2 pairs: the first R of them are rotated, the others pass with an angle of 0.

Launch: the variant with HALF = D / 2 and EXACT = 1 where there is one and R = D / 2, else that with EXACT = 0; no scratch.
    rope_forward     grid (M, ceil(touched / HEADS)); touched = Q + C when out is qkv, else Q + 2C
    rope_backward    grid (M, ceil((Q + C) / HEADS))
"""
import triton
import triton.language as tl


@triton.jit
def row_angles(positions, cos, sin, m, R, i):
    """cos and sin of a row's position, [1, HALF] each; 1 and 0 for pairs that are not rotated."""
    at = tl.load(positions + m).to(tl.int64) * R + i
    return tl.load(cos + at, mask=i < R, other=1.0)[None, :], tl.load(sin + at, mask=i < R, other=0.0)[None, :]


@triton.jit
def pairs_of(i, R, half, EXACT: tl.constexpr):
    """The features of each pair: i and i + R, or, beyond R pairs, the halves of what follows."""
    if EXACT:
        first, second = i, i + half
    else:
        first, second = tl.where(i < R, i, i + R), tl.where(i < R, i + R, i + half)
    return first, second


@triton.jit
def query_scales(positions, q_scale, m, scaled, is_q):
    """f32[HEADS, 1]: what each head of the row is multiplied by."""
    scale = tl.load(q_scale + tl.load(positions + m), mask=scaled != 0, other=1.0)
    return tl.where(is_q, scale, 1.0)[:, None]


@triton.jit
def head_weights(q_weight, k_weight, is_q, feature, inside):
    """f32[HEADS, HALF]: the norm's weights for features of heads of q or k."""
    q = tl.load(q_weight + feature, mask=inside, other=0.0)
    k = tl.load(k_weight + feature, mask=inside, other=0.0)
    return tl.where(is_q[:, None], q[None, :], k[None, :])


@triton.jit
def head_rstd(lo, hi, half, eps):
    """f32[HEADS, 1]: 1 / sqrt(mean of squares + eps) of each head."""
    mean = tl.div_rn(tl.sum(tl.fma(lo, lo, hi * hi), axis=1), (2 * half).to(tl.float32))
    return tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, None]


@triton.jit
def rope_forward(qkv, positions, cos, sin, q_scale, q_weight, k_weight, out, heads, kv_heads, touched, D, R, scaled, eps,
                 HALF: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr):
    """HEADS heads of one row. See the top of the file."""
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)  # as it is: tells the compiler that heads are aligned
    half = D // 2
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    first, second = pairs_of(i, R, half, EXACT)
    inside = (head < touched)[:, None] & (i < half)[None, :]
    at = m * (heads + 2 * kv_heads) * D + head[:, None] * D
    at_lo, at_hi = at + first[None, :], at + second[None, :]
    lo = tl.load(qkv + at_lo, mask=inside, other=0.0).to(tl.float32)
    hi = tl.load(qkv + at_hi, mask=inside, other=0.0).to(tl.float32)
    cos_I, sin_I = row_angles(positions, cos, sin, m, R, i)
    rotated = (head < heads + kv_heads)[:, None]
    x_lo, x_hi = lo, hi
    if NORM:
        rstd = head_rstd(lo, hi, half, eps)
        x_lo = head_weights(q_weight, k_weight, head < heads, first, i < half) * (lo * rstd)
        x_hi = head_weights(q_weight, k_weight, head < heads, second, i < half) * (hi * rstd)
    scale = query_scales(positions, q_scale, m, scaled, head < heads)
    y_lo, y_hi = tl.fma(x_lo, cos_I, -(x_hi * sin_I)) * scale, tl.fma(x_hi, cos_I, x_lo * sin_I) * scale
    tl.store(out + at_lo, tl.where(rotated, y_lo, lo).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at_hi, tl.where(rotated, y_hi, hi).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope_backward(dqkv, positions, cos, sin, q_scale, qkv, q_weight, k_weight, heads, kv_heads, D, R, scaled, eps,
                  HALF: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr):
    """HEADS heads of one row. See the top of the file."""
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)
    half = D // 2
    m, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, HALF)
    first, second = pairs_of(i, R, half, EXACT)
    inside = (head < heads + kv_heads)[:, None] & (i < half)[None, :]
    at = m * (heads + 2 * kv_heads) * D + head[:, None] * D
    at_lo, at_hi = at + first[None, :], at + second[None, :]
    scale = query_scales(positions, q_scale, m, scaled, head < heads)
    lo = tl.load(dqkv + at_lo, mask=inside, other=0.0).to(tl.float32) * scale
    hi = tl.load(dqkv + at_hi, mask=inside, other=0.0).to(tl.float32) * scale
    cos_I, sin_I = row_angles(positions, cos, sin, m, R, i)
    d_lo, d_hi = tl.fma(lo, cos_I, hi * sin_I), tl.fma(hi, cos_I, -(lo * sin_I))
    if NORM:
        x_lo = tl.load(qkv + at_lo, mask=inside, other=0.0).to(tl.float32)
        x_hi = tl.load(qkv + at_hi, mask=inside, other=0.0).to(tl.float32)
        rstd = head_rstd(x_lo, x_hi, half, eps)
        d_lo *= head_weights(q_weight, k_weight, head < heads, first, i < half)
        d_hi *= head_weights(q_weight, k_weight, head < heads, second, i < half)
        mean = tl.div_rn(tl.sum(d_lo * x_lo + d_hi * x_hi, axis=1), D.to(tl.float32))[:, None] * rstd * rstd
        d_lo, d_hi = rstd * (d_lo - x_lo * mean), rstd * (d_hi - x_hi * mean)
    tl.store(dqkv + at_lo, d_lo.to(dqkv.dtype.element_ty), mask=inside)
    tl.store(dqkv + at_hi, d_hi.to(dqkv.dtype.element_ty), mask=inside)


# What is compiled.

from variants import row

# HALF and EXACT: heads of 64, 128, 256 and 512, and all up to 256 (in f32 up to 512), of which those up to 128 waste no lanes.
HALVES = {"ptr": ((32, 1), (64, 1), (128, 1), (256, 1), (64, 0), (128, 0)), "f32": ((128, 0), (256, 0))}
TABLES = "positions:*i32 cos:*fp32 sin:*fp32 q_scale:*fp32"
FORWARD = f"qkv:c {TABLES} q_weight:*fp32 k_weight:*fp32 out:c heads:i32 kv_heads:i32 touched:i32 D:i32 R:i32 scaled:i32 eps:fp32"
BACKWARD = f"dqkv:c {TABLES} qkv:c q_weight:*fp32 k_weight:*fp32 heads:i32 kv_heads:i32 D:i32 R:i32 scaled:i32 eps:fp32"


def variants():
    """A launcher takes HALF = D / 2 with EXACT = 1; where there is none, the first with EXACT = 0 and HALF >= D / 2."""
    for kind in HALVES:
        for half, exact in HALVES[kind]:
            for norm, pairs, warps in ((0, 4096, 8), (1, 1024, 4)):
                constants = dict(HALF=half, HEADS=pairs // half, EXACT=exact, NORM=norm)
                yield row("rope", "rope_forward", kind, FORWARD, warps, **constants)
                yield row("rope", "rope_backward", kind, BACKWARD, warps, **constants)
