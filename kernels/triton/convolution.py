"""Causal depthwise convolution over the rows of a sequence, then SiLU; a channel by itself, so that no sum depends on what else
is in the pass.

    convolution_forward    p[m] = bias + sum over t of weight[:, t] x[m - TAPS + 1 + t], rows before bounds[m, 0] being 0;
                           y = silu(p); 0 in rows that belong to no sequence (bounds equal)
    convolution_backward   dx[m] = sum over t of weight[:, TAPS - 1 - t] dy[m + t] silu'(p[m + t]) within the sequence
    convolution_keep       window[places[m] / capacity] = the TAPS - 1 rows up to a sequence's last row m, nothing where
                           places[m] < 0
    convolution_decode     y of one row after its window, which moves on by it; 0 where places[m] < 0

Shapes: x, dx c[M, C], rows stride elements apart; y, dy c[M, C]; weight f32[C, TAPS]; bounds i32[M, 2]; places i32[M]; window
c[S, TAPS - 1, C].

bias f32[C] is not read where biased = 0.

Launch, no scratch: forward and backward grid (ceil(M / BM), ceil(C / BC)); keep and decode grid (M, ceil(C / BC)).
"""
import triton
import triton.language as tl


@triton.jit
def taps_sum(x, weight, bias, first_M, m_M, c_C, inside, C, stride, biased, TAPS: tl.constexpr):
    """p of rows m_M, f32[M, C], 0 in others than those `inside` a sequence."""
    bias_C = tl.load(bias + c_C, mask=c_C < tl.where(biased != 0, C, 0), other=0.0)
    p_MC = tl.where(inside[:, None], bias_C[None, :], 0.0)
    for t in tl.static_range(TAPS):
        row_M = m_M - (TAPS - 1) + t
        seen = (inside & (row_M >= first_M))[:, None] & (c_C < C)[None, :]
        x_MC = tl.load(x + row_M.to(tl.int64)[:, None] * stride + c_C[None, :], mask=seen, other=0.0).to(tl.float32)
        p_MC = tl.fma(tl.load(weight + c_C * TAPS + t, mask=c_C < C, other=0.0)[None, :], x_MC, p_MC)
    return p_MC


@triton.jit
def convolution_forward(x, weight, bias, bounds, y, M, C, stride, biased, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels. See the top of the file."""
    C, stride = C // 8 * 8, stride // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    m_M, c_C = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    first_M = tl.load(bounds + 2 * m_M, mask=m_M < M, other=0)
    inside = tl.load(bounds + 2 * m_M + 1, mask=m_M < M, other=0) > first_M
    p_MC = taps_sum(x, weight, bias, first_M, m_M, c_C, inside, C, stride, biased, TAPS)
    to_MC = y + m_M.to(tl.int64)[:, None] * C + c_C[None, :]
    tl.store(to_MC, (p_MC * tl.sigmoid(p_MC)).to(y.dtype.element_ty), mask=(m_M < M)[:, None] & (c_C < C)[None, :])


@triton.jit
def convolution_backward(dy, x, weight, bias, bounds, dx, M, C, stride, biased, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels, row by row: the rows before one are in registers, and so are the sums that a row adds to. See the
    top of the file."""
    tl.static_assert(TAPS == 4)
    C, stride = C // 8 * 8, stride // 8 * 8
    begin, c_C = tl.program_id(0) * BM, tl.program_id(1) * BC + tl.arange(0, BC)
    w0_C, w1_C = tl.load(weight + c_C * TAPS, mask=c_C < C, other=0.0), tl.load(weight + c_C * TAPS + 1, mask=c_C < C, other=0.0)
    w2_C, w3_C = tl.load(weight + c_C * TAPS + 2, mask=c_C < C, other=0.0), tl.load(weight + c_C * TAPS + 3, mask=c_C < C, other=0.0)
    bias_C = tl.load(bias + c_C, mask=c_C < tl.where(biased != 0, C, 0), other=0.0)
    x1_C, x2_C, x3_C = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    d1_C, d2_C, d3_C = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for j in range(0, BM + 2 * TAPS - 2):
        row = begin - TAPS + 1 + j
        at = tl.maximum(row, 0).to(tl.int64)
        there = (row >= 0) & (row < M)
        first, end = tl.load(bounds + 2 * at, mask=there, other=0), tl.load(bounds + 2 * at + 1, mask=there, other=0)
        inside = first < end
        read = tl.where(inside, C, 0)
        x0_C = tl.load(x + at * stride + c_C, mask=c_C < read, other=0.0).to(tl.float32)
        dy_C = tl.load(dy + at * C + c_C, mask=c_C < read, other=0.0).to(tl.float32)
        # Rows of other sequences are left out, never multiplied by 0: they may be NaN, and 0 has a sign.
        one, two, three = inside & (row - 1 >= first), inside & (row - 2 >= first), inside & (row - 3 >= first)
        before_C = tl.fma(w1_C, tl.where(two, x2_C, 0.0), w0_C * tl.where(three, x3_C, 0.0))
        p_C = tl.fma(w3_C, x0_C, bias_C + tl.fma(w2_C, tl.where(one, x1_C, 0.0), before_C))
        s_C = tl.sigmoid(p_C)
        g_C = dy_C * s_C * tl.fma(p_C, 1.0 - s_C, 1.0)
        d3_C = tl.where(three, tl.fma(w0_C, g_C, d3_C), d3_C)
        to = row - 3
        tl.store(dx + to.to(tl.int64) * stride + c_C, d3_C.to(dx.dtype.element_ty), mask=c_C < tl.where((to >= begin) & (to < M), C, 0))
        d3_C, d2_C, d1_C = tl.where(two, tl.fma(w1_C, g_C, d2_C), d2_C), tl.where(one, tl.fma(w2_C, g_C, d1_C), d1_C), tl.where(inside, w3_C * g_C, 0.0)
        x3_C, x2_C, x1_C = x2_C, x1_C, x0_C


@triton.jit
def convolution_keep(x, bounds, places, window, C, stride, capacity, TAPS: tl.constexpr, BC: tl.constexpr):
    """BC channels of one row. See the top of the file."""
    m, c_C = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    first, place = tl.load(bounds + 2 * m), tl.load(places + m)
    if (tl.load(bounds + 2 * m + 1) == m + 1) & (first <= m) & (place >= 0):
        to_C = window + (place // capacity).to(tl.int64) * (TAPS - 1) * C + c_C
        for t in tl.static_range(TAPS - 1):
            row = m - (TAPS - 2) + t
            x_C = tl.load(x + row.to(tl.int64) * stride + c_C, mask=c_C < tl.where(row >= first, C, 0), other=0.0)
            tl.store(to_C + t * C, x_C, mask=c_C < C)


@triton.jit
def convolution_decode(x, weight, bias, places, window, y, C, stride, capacity, biased, TAPS: tl.constexpr, BC: tl.constexpr):
    """BC channels of one row. See the top of the file."""
    m, c_C = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    place = tl.load(places + m)
    p_C = tl.zeros((BC,), tl.float32)
    if place >= 0:
        p_C += tl.load(bias + c_C, mask=c_C < tl.where(biased != 0, C, 0), other=0.0)
        from_C = window + (place // capacity).to(tl.int64) * (TAPS - 1) * C + c_C
        x_C = tl.load(x + m * stride + c_C, mask=c_C < C, other=0.0)
        for t in tl.static_range(TAPS - 1):
            kept_C = tl.load(from_C + t * C, mask=c_C < C, other=0.0)
            p_C += tl.load(weight + c_C * TAPS + t, mask=c_C < C, other=0.0) * kept_C.to(tl.float32)
            if t > 0:
                tl.store(from_C + (t - 1) * C, kept_C, mask=c_C < C)
        p_C += tl.load(weight + c_C * TAPS + TAPS - 1, mask=c_C < C, other=0.0) * x_C.to(tl.float32)
        tl.store(from_C + (TAPS - 2) * C, x_C, mask=c_C < C)
    tl.store(y + m * C + c_C, (p_C * tl.sigmoid(p_C)).to(y.dtype.element_ty), mask=c_C < C)


# What is compiled.

from variants import row

TAPS = 4


def variants():
    for kind in ("ptr", "f32"):
        sizes = "M:i32 C:i32 stride:i32 biased:i32"
        yield row("convolution", "convolution_forward", kind, f"x:c weight:*fp32 bias:*fp32 bounds:*i32 y:c {sizes}", TAPS=TAPS, BM=8, BC=256)
        yield row("convolution", "convolution_backward", kind, f"dy:c x:c weight:*fp32 bias:*fp32 bounds:*i32 dx:c {sizes}", TAPS=TAPS, BM=64, BC=1024)
        kept = "C:i32 stride:i32 capacity:i32"
        yield row("convolution", "convolution_keep", kind, f"x:c bounds:*i32 places:*i32 window:c {kept}", TAPS=TAPS, BC=1024)
        yield row("convolution", "convolution_decode", kind, f"x:c weight:*fp32 bias:*fp32 places:*i32 window:c y:c {kept} biased:i32", TAPS=TAPS, BC=1024)
