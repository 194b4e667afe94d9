"""Short gated convolution over the rows of a sequence; a channel by itself, so that no sum depends on what else is in the pass.
A row has three parts, b, c and x.

    shortconv_forward     u = b x,  p[m] = sum over t of weight[:, t] u[m - TAPS + 1 + t], rows before bounds[m, 0] being 0;
                          y = c p; 0 in rows that belong to no sequence (bounds equal)
    shortconv_backward    du[m] = sum over t of weight[:, TAPS - 1 - t] (c dy)[m + t] within the sequence;
                          db = du x,  dc = dy p,  dx = du b
    shortconv_keep        window[places[m] / capacity] = u of the TAPS - 1 rows up to a sequence's last row m, nothing where
                          places[m] < 0
    shortconv_decode      y of one row after its window, which moves on by its u; 0 where places[m] < 0

Shapes: bcx, dbcx c[M, 3 C], b in columns 0 .. C, c and x after it; y, dy c[M, C]; weight f32[C, TAPS]; bounds i32[M, 2]; places
i32[M]; window c[S, TAPS - 1, C]. Needs: C a multiple of 8.

Launch, no scratch: forward and backward grid (ceil(M / BM), ceil(C / BC)); keep and decode grid (M, ceil(C / BC)).
"""
import triton
import triton.language as tl


@triton.jit
def part(bcx, m_M, c_C, index, seen_MC, C):
    """One of the three parts, f32[M, C]; 0 where nothing is to be seen."""
    return tl.load(bcx + (m_M.to(tl.int64)[:, None] * 3 + index) * C + c_C[None, :], mask=seen_MC, other=0.0).to(tl.float32)


@triton.jit
def taps_sum(bcx, weight, first_M, m_M, c_C, inside, C, TAPS: tl.constexpr):
    """p of rows m_M, f32[M, C]; `inside`: which rows belong to a sequence."""
    p_MC = tl.zeros((m_M.shape[0], c_C.shape[0]), tl.float32)
    for t in tl.static_range(TAPS):
        row_M = m_M - (TAPS - 1) + t
        seen = (inside & (row_M >= first_M))[:, None] & (c_C < C)[None, :]
        u_MC = part(bcx, row_M, c_C, 0, seen, C) * part(bcx, row_M, c_C, 2, seen, C)
        p_MC = tl.fma(tl.load(weight + c_C * TAPS + t, mask=c_C < C, other=0.0)[None, :], u_MC, p_MC)
    return p_MC


@triton.jit
def shortconv_forward(bcx, weight, bounds, y, M, C, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels. See the top of the file."""
    C = C // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m_M, c_C = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    first_M = tl.load(bounds + 2 * m_M, mask=m_M < M, other=0)
    inside = tl.load(bounds + 2 * m_M + 1, mask=m_M < M, other=0) > first_M
    p_MC = taps_sum(bcx, weight, first_M, m_M, c_C, inside, C, TAPS)
    by_MC = part(bcx, m_M, c_C, 1, inside[:, None] & (c_C < C)[None, :], C)
    to_MC = y + m_M.to(tl.int64)[:, None] * C + c_C[None, :]
    tl.store(to_MC, (by_MC * p_MC).to(y.dtype.element_ty), mask=(m_M < M)[:, None] & (c_C < C)[None, :])


@triton.jit
def shortconv_backward(dy, bcx, weight, bounds, dbcx, M, C, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels. See the top of the file."""
    C = C // 8 * 8
    m_M, c_C = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    first_M = tl.load(bounds + 2 * m_M, mask=m_M < M, other=0)
    end_M = tl.load(bounds + 2 * m_M + 1, mask=m_M < M, other=0)
    du_MC = tl.zeros((BM, BC), tl.float32)
    for t in tl.static_range(TAPS):
        row_M = m_M + t
        seen = (row_M < end_M)[:, None] & (c_C < C)[None, :]
        dy_MC = tl.load(dy + row_M.to(tl.int64)[:, None] * C + c_C[None, :], mask=seen, other=0.0).to(tl.float32)
        weight_C = tl.load(weight + c_C * TAPS + TAPS - 1 - t, mask=c_C < C, other=0.0)
        du_MC = tl.fma(weight_C[None, :], dy_MC * part(bcx, row_M, c_C, 1, seen, C), du_MC)
    inside = first_M < end_M
    p_MC = taps_sum(bcx, weight, first_M, m_M, c_C, inside, C, TAPS)
    seen, some = inside[:, None] & (c_C < C)[None, :], (m_M < M)[:, None] & (c_C < C)[None, :]
    dy_MC = tl.load(dy + m_M.to(tl.int64)[:, None] * C + c_C[None, :], mask=seen, other=0.0).to(tl.float32)
    to_MC = dbcx + m_M.to(tl.int64)[:, None] * 3 * C + c_C[None, :]
    el = dbcx.dtype.element_ty
    b_MC, x_MC = part(bcx, m_M, c_C, 0, seen, C), part(bcx, m_M, c_C, 2, seen, C)
    tl.store(to_MC, (du_MC * x_MC).to(el), mask=some)
    tl.store(to_MC + C, (dy_MC * p_MC).to(el), mask=some)
    tl.store(to_MC + 2 * C, (du_MC * b_MC).to(el), mask=some)


@triton.jit
def shortconv_keep(bcx, bounds, places, window, C, capacity, TAPS: tl.constexpr, BC: tl.constexpr):
    """BC channels of one row. See the top of the file."""
    C = C // 8 * 8
    m, c_C = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    first, place = tl.load(bounds + 2 * m), tl.load(places + m)
    if (tl.load(bounds + 2 * m + 1) == m + 1) & (first <= m) & (place >= 0):
        to_C = window + (place // capacity).to(tl.int64) * (TAPS - 1) * C + c_C
        for t in tl.static_range(TAPS - 1):
            row = m - (TAPS - 2) + t
            seen, from_C = c_C < tl.where(row >= first, C, 0), bcx + row.to(tl.int64) * 3 * C + c_C
            b_C, x_C = tl.load(from_C, mask=seen, other=0.0), tl.load(from_C + 2 * C, mask=seen, other=0.0)
            tl.store(to_C + t * C, (b_C.to(tl.float32) * x_C.to(tl.float32)).to(window.dtype.element_ty), mask=c_C < C)


@triton.jit
def shortconv_decode(bcx, weight, places, window, y, C, capacity, TAPS: tl.constexpr, BC: tl.constexpr):
    """BC channels of one row. See the top of the file."""
    C = C // 8 * 8
    m, c_C = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    place = tl.load(places + m)
    y_C = tl.zeros((BC,), tl.float32)
    if place >= 0:
        at_C = window + (place // capacity).to(tl.int64) * (TAPS - 1) * C + c_C
        from_C = bcx + m * 3 * C + c_C
        b_C, x_C = tl.load(from_C, mask=c_C < C, other=0.0), tl.load(from_C + 2 * C, mask=c_C < C, other=0.0)
        u_C = b_C.to(tl.float32) * x_C.to(tl.float32)
        for t in tl.static_range(TAPS - 1):
            kept_C = tl.load(at_C + t * C, mask=c_C < C, other=0.0)
            y_C += tl.load(weight + c_C * TAPS + t, mask=c_C < C, other=0.0) * kept_C.to(tl.float32)
            if t > 0:
                tl.store(at_C + (t - 1) * C, kept_C, mask=c_C < C)
        y_C += tl.load(weight + c_C * TAPS + TAPS - 1, mask=c_C < C, other=0.0) * u_C
        tl.store(at_C + (TAPS - 2) * C, u_C.to(window.dtype.element_ty), mask=c_C < C)
        y_C = y_C * tl.load(from_C + C, mask=c_C < C, other=0.0).to(tl.float32)
    tl.store(y + m * C + c_C, y_C.to(y.dtype.element_ty), mask=c_C < C)


# What is compiled.

from variants import row

TAPS = 3


def variants():
    for kind in ("ptr", "f32"):
        sizes, kept = "M:i32 C:i32", "C:i32 capacity:i32"
        yield row("shortconv", "shortconv_forward", kind, f"bcx:c weight:*fp32 bounds:*i32 y:c {sizes}", TAPS=TAPS, BM=8, BC=256)
        yield row("shortconv", "shortconv_backward", kind, f"dy:c bcx:c weight:*fp32 bounds:*i32 dbcx:c {sizes}", TAPS=TAPS, BM=8, BC=256)
        yield row("shortconv", "shortconv_keep", kind, f"bcx:c bounds:*i32 places:*i32 window:c {kept}", TAPS=TAPS, BC=1024)
        yield row("shortconv", "shortconv_decode", kind, f"bcx:c weight:*fp32 places:*i32 window:c y:c {kept}", TAPS=TAPS, BC=1024)
