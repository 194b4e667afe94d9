"""The sum of a product over few rows with the norm that follows it, a row in each program: see fewrows.py.

    fewrows_normed    y[m, n] = (sum_p part[p, m, n] + scale[l] sum_r low[m, r] b[r, n]) gain[n] + bias[n] + residual[m, n],
                      gain that of dora.py where decomposed[l] = 1, else 1, and
                      h = weight y / sqrt(mean(y^2) + eps), of y as it is kept

Of a single linear: G = 1. A row has one adapter, which is read before the launch before ends (overlap.py), as are weights, all
ranks of a block at once. One variant for rows with and without adapter, bias and residual: what a row comes to does not depend
on which others there are. Shapes as in fewrows.py; weight f32[N].

Launch: grid (M), the variant with the least BLOCK >= N; no scratch.
"""
import triton
import triton.language as tl

from fewrows_sums import adapter_at, factor_at, first_of, rest_of
from overlap import begin_next, wait_for_previous
from rmsnorm import normed


@triton.jit
def low_of_row(low, m, r0, rank, M, low_pieces, W, RB: tl.constexpr):
    """RB columns of s of a row from r0 on."""
    r = r0 + tl.arange(0, RB)
    s = tl.zeros((RB,), tl.float32)
    for q in range(low_pieces):
        s += tl.load(low + (tl.cast(q, tl.int64) * M + m) * W + r, mask=r < rank, other=0.0)
    return s


@triton.jit
def fewrows_normed(part, low, y, h, bias, residual, weight, factors, scale, ranks, row_adapter, vectors, decomposed,
                   factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, has_bias, has_residual, has_lora,
                   M, N, pieces, low_pieces, W, eps, BLOCK: tl.constexpr, RB: tl.constexpr, OVERLAPS: tl.constexpr):
    """One row. See the top of the file."""
    begin_next(OVERLAPS)
    N = N // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, n = tl.program_id(0), tl.arange(0, BLOCK)
    inside = n < N
    dtype: tl.constexpr = y.dtype.element_ty
    adapter = tl.load(row_adapter + m, mask=has_lora != 0, other=-1)
    rank, column, b, b_RN, times, gain = adapter_at(adapter, n, 0, 0, N, factors, scale, ranks, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains, 1, RB, dtype)
    w_N = tl.load(weight + n, mask=inside, other=0.0)
    bias_N = tl.load(bias + n, mask=inside & (has_bias != 0), other=0.0)
    wait_for_previous(OVERLAPS)
    at, step = tl.cast(m, tl.int64) * N + n, tl.cast(M, tl.int64) * N
    residual_N = tl.load(residual + at, mask=inside & (has_residual != 0), other=0.0)
    acc = rest_of(first_of(part, at, step, pieces, inside), part, at, step, pieces, inside)
    if rank > 0:
        s_R = low_of_row(low, m, 0, rank, M, low_pieces, W, RB)
        out = tl.sum(s_R[:, None] * b_RN.to(tl.float32), axis=0)
        for r0 in range(RB, rank, RB):
            s_R = low_of_row(low, m, r0, rank, M, low_pieces, W, RB)
            out += tl.sum(s_R[:, None] * factor_at(b, r0, rank, n, 0, N, RB, dtype).to(tl.float32), axis=0)
        acc = tl.fma(out, tl.zeros((BLOCK,), tl.float32) + times, acc)
        if gain != 0:
            acc *= tl.load(gain.to(tl.pointer_type(tl.float32)) + n, mask=inside, other=1.0)
    y_N = (acc + bias_N.to(tl.float32) + residual_N.to(tl.float32)).to(dtype)
    tl.store(y + at, y_N, mask=inside)
    x_N = tl.where(inside, y_N.to(tl.float32), 0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_N * x_N), N.to(tl.float32)) + eps))
    tl.store(h + at, normed(x_N, rstd, w_N).to(dtype), mask=inside)


# What is compiled.

# Widest row, ranks at once and warps: a block of ranks is in registers.
BLOCKS = {"bf16": ((1024, 16, 4), (4096, 8, 16), (8192, 4, 16)), "fp32": ((1024, 8, 4), (8192, 2, 16))}
PARAMETERS = "part:*fp32 low:*fp32 y:c h:c bias:c residual:c weight:*fp32 factors:*i64 scale:*fp32 ranks:*i32 row_adapter:*i32 vectors:*i64 decomposed:*i32 " \
             "factors_stride:i32 scale_stride:i32 ranks_stride:i32 vectors_stride:i32 decomposed_stride:i32 has_gains:i32 has_bias:i32 has_residual:i32 has_lora:i32 " \
             "M:i32 N:i32 pieces:i32 low_pieces:i32 W:i32 eps:fp32"

from variants import overlapping, row


def variants():
    for kind, dtype in (("ptr", "bf16"), ("f32", "fp32")):
        for BLOCK, RB, warps in BLOCKS[dtype]:
            yield from overlapping(row("fewrows_normed", "fewrows_normed", kind, PARAMETERS, warps, 1, BLOCK=BLOCK, RB=RB))
