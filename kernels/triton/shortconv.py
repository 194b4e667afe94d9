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
def gated(bcx, row, c_C, seen, C):
    """u of a row, f32[C]; 0 where it is not `seen`: it may be another sequence's, and NaN."""
    seen_C, from_C = c_C < tl.where(seen, C, 0), bcx + row.to(tl.int64) * 3 * C + c_C
    b_C = tl.load(from_C, mask=seen_C, other=0.0)
    return b_C.to(tl.float32) * tl.load(from_C + 2 * C, mask=seen_C, other=0.0).to(tl.float32)


@triton.jit
def taps_of(weight, c_C, C):
    """Three vectors."""
    seen, from_C = c_C < C, weight + c_C * 3
    return tl.load(from_C, mask=seen, other=0.0), tl.load(from_C + 1, mask=seen, other=0.0), tl.load(from_C + 2, mask=seen, other=0.0)


@triton.jit
def shortconv_forward(bcx, weight, bounds, y, M, C, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels, one after the other: u of the rows before is in registers. See the top of the file."""
    tl.static_assert(TAPS == 3)
    C = C // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    begin, c_C = tl.program_id(0) * BM, tl.program_id(1) * BC + tl.arange(0, BC)
    w0_C, w1_C, w2_C = taps_of(weight, c_C, C)
    first, end = tl.load(bounds + 2 * begin), tl.load(bounds + 2 * begin + 1)
    u2_C = gated(bcx, begin - 2, c_C, (end > first) & (begin - 2 >= first), C)
    u1_C = gated(bcx, begin - 1, c_C, (end > first) & (begin - 1 >= first), C)
    for j in tl.static_range(BM):
        row = begin + j
        first, end = tl.load(bounds + 2 * row, mask=row < M, other=0), tl.load(bounds + 2 * row + 1, mask=row < M, other=0)
        inside = end > first
        u0_C = gated(bcx, row, c_C, inside, C)
        by_C = tl.load(bcx + (row.to(tl.int64) * 3 + 1) * C + c_C, mask=c_C < tl.where(inside, C, 0), other=0.0).to(tl.float32)
        p_C = w0_C * tl.where(row - 2 >= first, u2_C, 0.0) + w1_C * tl.where(row - 1 >= first, u1_C, 0.0) + w2_C * u0_C
        tl.store(y + row.to(tl.int64) * C + c_C, (by_C * p_C).to(y.dtype.element_ty), mask=c_C < tl.where(row < M, C, 0))
        u2_C, u1_C = u1_C, u0_C


@triton.jit
def slope(dy, bcx, row, c_C, seen, C):
    """The gradient of p of a row, f32[C]; 0 where it is not `seen`."""
    seen_C = c_C < tl.where(seen, C, 0)
    by_C = tl.load(bcx + (row.to(tl.int64) * 3 + 1) * C + c_C, mask=seen_C, other=0.0).to(tl.float32)
    return by_C * tl.load(dy + row.to(tl.int64) * C + c_C, mask=seen_C, other=0.0).to(tl.float32)


@triton.jit
def shortconv_backward(dy, bcx, weight, bounds, dbcx, M, C, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """BM rows of BC channels, one after the other: u of the rows before is in registers. See the top of the file."""
    tl.static_assert(TAPS == 3)
    C = C // 8 * 8
    el = dbcx.dtype.element_ty
    begin, c_C = tl.program_id(0) * BM, tl.program_id(1) * BC + tl.arange(0, BC)
    w0_C, w1_C, w2_C = taps_of(weight, c_C, C)
    first, end = tl.load(bounds + 2 * begin), tl.load(bounds + 2 * begin + 1)
    u2_C = gated(bcx, begin - 2, c_C, (end > first) & (begin - 2 >= first), C)
    u1_C = gated(bcx, begin - 1, c_C, (end > first) & (begin - 1 >= first), C)
    for j in tl.static_range(BM):
        row = begin + j
        first, end = tl.load(bounds + 2 * row, mask=row < M, other=0), tl.load(bounds + 2 * row + 1, mask=row < M, other=0)
        inside = end > first
        seen_C, at = c_C < tl.where(inside, C, 0), row.to(tl.int64) * 3 * C + c_C
        b_C = tl.load(bcx + at, mask=seen_C, other=0.0).to(tl.float32)
        by_C = tl.load(bcx + at + C, mask=seen_C, other=0.0).to(tl.float32)
        x_C = tl.load(bcx + at + 2 * C, mask=seen_C, other=0.0).to(tl.float32)
        dy_C = tl.load(dy + row.to(tl.int64) * C + c_C, mask=seen_C, other=0.0).to(tl.float32)
        u0_C = b_C * x_C
        p_C = w0_C * tl.where(row - 2 >= first, u2_C, 0.0) + w1_C * tl.where(row - 1 >= first, u1_C, 0.0) + w2_C * u0_C
        du_C = w2_C * (by_C * dy_C) + w1_C * slope(dy, bcx, row + 1, c_C, row + 1 < end, C) + w0_C * slope(dy, bcx, row + 2, c_C, row + 2 < end, C)
        some = c_C < tl.where(row < M, C, 0)
        tl.store(dbcx + at, (du_C * x_C).to(el), mask=some)
        tl.store(dbcx + at + C, (dy_C * p_C).to(el), mask=some)
        tl.store(dbcx + at + 2 * C, (du_C * b_C).to(el), mask=some)
        u2_C, u1_C = u1_C, u0_C


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
        yield row("shortconv", "shortconv_forward", kind, f"bcx:c weight:*fp32 bounds:*i32 y:c {sizes}", TAPS=TAPS, BM=8, BC=1024)
        yield row("shortconv", "shortconv_backward", kind, f"dy:c bcx:c weight:*fp32 bounds:*i32 dbcx:c {sizes}", TAPS=TAPS, BM=8, BC=1024)
        yield row("shortconv", "shortconv_keep", kind, f"bcx:c bounds:*i32 places:*i32 window:c {kept}", TAPS=TAPS, BC=1024)
        yield row("shortconv", "shortconv_decode", kind, f"bcx:c weight:*fp32 places:*i32 window:c y:c {kept}", TAPS=TAPS, BC=1024)
