"""Mamba 2's recurrence in chunks of C = 64 tokens (Dao and Gu 2024), of packed sequences: forward, and a row over kept states.

Of head h of a sequence, with the state H f32[P, S] before a chunk, s the steps ln(1 + e^(dt + bias)) within their limits, and c
the sums of -e^decay s from the chunk's first token on:

    G = C B^T      P = tril(G e^(c_i - c_j) s_j)
    out = P x + e^c (C H^T) + skip x      H' = e^(c_last) H + (e^(c_last - c) s x)^T B

    space_steps      s and c of heads
    space_scores     G of a group
    space_scan       from chunk to chunk: the states before chunks, and the state after a sequence, if it is kept
    space_out        out of a chunk and a head
    space_decode     a row of each sequence, token by token: H = e^(-e^decay s) H + s x B^T, out = H C + skip x

A program of a grid over tiles of 64 rows takes the chunks, or the sequences, that begin in its tile. A chunk that is not its
sequence's first follows 64 rows of it, so that the state before it has a place of its own, begin // 64. Sums are f32 and begin
anew in each chunk; state, G and what follows from the steps are f32, and factors of products have the compute type.

Shapes: mixed c[M, heads P + 2 groups S]: x of heads, then B and C of groups, and head h reads those of group h groups // heads;
steps c[M, heads], rows stride elements apart; decay, bias, skip f32[heads]; bounds i32[M, 2], equal in padding rows, which
reach to the end of a tile; out c[M, heads P]; vectors f32[2, heads, M]: s and c; scores f32[M, groups, 64]; states c[M / 64,
heads, P, S]; places i32[M]; state f32[slots, heads, P, S]. P is at most PD and S at most SD, and equal to them where EXACT = 1,
or else, where SD is above 32, multiples of 8.

Launch: steps grid (ceil(M / 64), ceil(heads / BH)); scores grid (ceil(M / 64), groups); scan grid (ceil(M / 64), heads,
ceil(P / BP) ceil(S / BS)); out grid (ceil(M / 64), heads); decode grid (M, heads, ceil(P / BP)).
"""
import triton
import triton.language as tl
from chunks import bounded, next_chunk, next_sequence, product, tile_rows


@triton.jit
def softplus(before):
    """ln(1 + e^before)."""
    e = tl.exp(tl.minimum(before, 20.0))
    # ln u e / (u - 1) of u = 1 + e is exact where u has lost digits of e.
    u = 1.0 + e
    logarithm = tl.where(u == 1.0, e, tl.log(u) * tl.div_rn(e, tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(before > 20.0, before, logarithm)


@triton.jit
def step_of(before, least, most):
    """A step within its limits."""
    return tl.minimum(tl.maximum(softplus(before), least), most)


@triton.jit
def sizes_of(P, S, PD: tl.constexpr, SD: tl.constexpr, EXACT: tl.constexpr):
    """P and S as the compiler knows most of them."""
    if EXACT:
        return PD, SD
    elif SD > 32:
        return P // 8 * 8, S // 8 * 8
    else:
        return P, S


@triton.jit
def decays(c_C):
    """e^(c_i - c_j) where j <= i, else 0. Rows after a sequence have the c of its last one: with 0 the exponential of what a
    chunk decays by would be infinite, and 0 times that is NaN."""
    i = tl.arange(0, 64)
    lower = i[:, None] >= i[None, :]
    return tl.where(lower, tl.exp(tl.where(lower, c_C[:, None] - c_C[None, :], 0.0)), 0.0)


@triton.jit
def space_steps(steps, decay, bias, bounds, vectors, M, heads, stride, least, most, BH: tl.constexpr):
    """BH heads of the chunks that begin in a tile. See the top of the file."""
    i, h_H = tl.arange(0, 64), tl.program_id(1) * BH + tl.arange(0, BH)
    decay_H = -tl.exp(tl.load(decay + h_H, mask=h_H < heads, other=0.0))
    bias_H = tl.load(bias + h_H, mask=h_H < heads, other=0.0)
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        first, end, begin, row = next_chunk(bounds, row, stop)
        if begin < end:
            m_C = begin + i
            seen = (m_C < end)[:, None] & (h_H < heads)[None, :]
            dt_CH = tl.load(steps + m_C.to(tl.int64)[:, None] * stride + h_H[None, :], mask=seen, other=0.0).to(tl.float32)
            s_CH = tl.where(seen, step_of(dt_CH + bias_H[None, :], least, most), 0.0)
            to_CH = vectors + h_H.to(tl.int64)[None, :] * M + m_C[:, None]
            tl.store(to_CH, s_CH, mask=seen)
            tl.store(to_CH + heads.to(tl.int64) * M, tl.cumsum(bounded(s_CH * decay_H[None, :]), 0), mask=seen)


@triton.jit
def space_scores(mixed, bounds, scores, M, heads, groups, P, S, PD: tl.constexpr, SD: tl.constexpr, BS: tl.constexpr, EXACT: tl.constexpr):
    """A group of the chunks that begin in a tile. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    group, i, s_S = tl.program_id(1), tl.arange(0, 64), tl.arange(0, BS)
    width = heads * P + 2 * groups * S
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        first, end, begin, row = next_chunk(bounds, row, stop)
        if begin < end:
            m_C = begin + i
            inside = m_C < end
            m = m_C.to(tl.int64)
            g_CC = tl.zeros((64, 64), tl.float32)
            for s0 in range(0, SD, BS):
                seen = inside[:, None] & (s0 + s_S < S)[None, :]
                from_CS = mixed + m[:, None] * width + heads * P + group * S + s0 + s_S[None, :]
                b_CS = tl.load(from_CS, mask=seen, other=0.0)
                g_CC += product(tl.load(from_CS + groups * S, mask=seen, other=0.0), tl.trans(b_CS))
            tl.store(scores + (m * groups + group)[:, None] * 64 + i[None, :], g_CC, mask=inside[:, None])


@triton.jit
def space_scan(mixed, bounds, vectors, states, places, state, M, heads, groups, P, S, capacity,
               PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, EXACT: tl.constexpr):
    """BP values at BS places of a head's state, of the sequences that begin in a tile; `state` null: none is kept. See the top
    of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    head, i, parts = tl.program_id(1), tl.arange(0, 64), tl.cdiv(P, BP)
    p_P, s_S = tl.program_id(2) % parts * BP + tl.arange(0, BP), tl.program_id(2) // parts * BS + tl.arange(0, BS)
    width, of_keys = heads * P + 2 * groups * S, heads * P + head * groups // heads * S
    at_PS, each_state = head * P * S + p_P[:, None] * S + s_S[None, :], (heads * P * S).to(tl.int64)
    seen_PS = (p_P < P)[:, None] & (s_S < S)[None, :]
    step, sums = vectors + head.to(tl.int64) * M, vectors + (heads + head).to(tl.int64) * M
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        first, end, row = next_sequence(bounds, row, stop)
        if first < end:
            h_PS = tl.zeros((BP, BS), tl.float32)
            for begin in range(first, end, 64):
                if begin > first:
                    tl.store(states + begin // 64 * each_state + at_PS, h_PS.to(states.dtype.element_ty), mask=seen_PS)
                if (begin + 64 < end) | (capacity > 0):
                    m_C = begin + i
                    inside = m_C < end
                    m = m_C.to(tl.int64)
                    last = tl.load(sums + tl.minimum(begin + 64, end) - 1)
                    by_C = tl.load(step + m_C, mask=inside, other=0.0) * tl.exp(last - tl.load(sums + tl.minimum(m_C, end - 1)))
                    from_CP = mixed + m[:, None] * width + head * P + p_P[None, :]
                    x_CP = tl.load(from_CP, mask=inside[:, None] & (p_P < P)[None, :], other=0.0)
                    from_CS = mixed + m[:, None] * width + of_keys + s_S[None, :]
                    b_CS = tl.load(from_CS, mask=inside[:, None] & (s_S < S)[None, :], other=0.0)
                    x_CP = (x_CP.to(tl.float32) * by_C[:, None]).to(b_CS.dtype)
                    h_PS = h_PS * tl.exp(last) + product(tl.trans(x_CP), b_CS)
            if capacity > 0:
                place = tl.load(places + end - 1)
                if place >= 0:
                    tl.store(state + (place // capacity).to(tl.int64) * each_state + at_PS, h_PS, mask=seen_PS)


@triton.jit
def space_out(mixed, bounds, vectors, skip, scores, states, out, M, heads, groups, P, S,
              PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, EXACT: tl.constexpr):
    """A head of the chunks that begin in a tile, BP values at a time. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    head, i, group = tl.program_id(1), tl.arange(0, 64), tl.program_id(1) * groups // heads
    width, of_queries = heads * P + 2 * groups * S, heads * P + (groups + group) * S
    each_state = (heads * P * S).to(tl.int64)
    step, sums = vectors + head.to(tl.int64) * M, vectors + (heads + head).to(tl.int64) * M
    through = tl.load(skip + head)
    el = mixed.dtype.element_ty
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        here = row
        first, end, begin, row = next_chunk(bounds, row, stop)
        if end <= first:
            m_C, p_P = here + i, tl.arange(0, PD)
            to_CP = out + (m_C.to(tl.int64) * heads + head)[:, None] * P + p_P[None, :]
            tl.store(to_CP, tl.zeros((64, PD), el), mask=(m_C < stop)[:, None] & (p_P < P)[None, :])
        elif begin < end:
            m_C = begin + i
            inside = m_C < end
            m = m_C.to(tl.int64)
            c_C, s_C = tl.load(sums + tl.minimum(m_C, end - 1)), tl.load(step + m_C, mask=inside, other=0.0)
            g_CC = tl.load(scores + (m * groups + group)[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
            p_CC = (g_CC * decays(c_C) * s_C[None, :]).to(el)
            for p0 in range(0, PD, BP):
                p_P = p0 + tl.arange(0, BP)
                seen = inside[:, None] & (p_P < P)[None, :]
                x_CP = tl.load(mixed + m[:, None] * width + head * P + p_P[None, :], mask=seen, other=0.0)
                out_CP = tl.zeros((64, BP), tl.float32)
                if begin > first:
                    for s0 in range(0, SD, BS):
                        s_S = s0 + tl.arange(0, BS)
                        from_CS = mixed + m[:, None] * width + of_queries + s_S[None, :]
                        q_CS = tl.load(from_CS, mask=inside[:, None] & (s_S < S)[None, :], other=0.0)
                        from_PS = states + begin // 64 * each_state + head * P * S + p_P[:, None] * S + s_S[None, :]
                        h_PS = tl.load(from_PS, mask=(p_P < P)[:, None] & (s_S < S)[None, :], other=0.0)
                        out_CP += product(q_CS, tl.trans(h_PS))
                    out_CP = out_CP * tl.exp(c_C)[:, None]
                out_CP += product(p_CC, x_CP) + through * x_CP.to(tl.float32)
                tl.store(out + (m * heads + head)[:, None] * P + p_P[None, :], out_CP.to(el), mask=seen)


@triton.jit
def space_decode(mixed, steps, decay, bias, skip, places, state, out, heads, groups, P, S, stride, capacity, least, most,
                 PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, EXACT: tl.constexpr):
    """BP values of a head of one row. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    m, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p_P, s_S = tl.program_id(2) * BP + tl.arange(0, BP), tl.arange(0, SD)
    row = mixed + m * (heads * P + 2 * groups * S)
    out_P = tl.zeros((BP,), tl.float32)
    place = tl.load(places + m)
    if place >= 0:
        at_PS = state + ((place // capacity).to(tl.int64) * heads + head) * P * S + p_P[:, None] * S + s_S[None, :]
        seen = (p_P < P)[:, None] & (s_S < S)[None, :]
        keys = row + heads * P + head * groups // heads * S + s_S
        b_S = tl.load(keys, mask=s_S < S, other=0.0).to(tl.float32)
        q_S = tl.load(keys + groups * S, mask=s_S < S, other=0.0).to(tl.float32)
        x_P = tl.load(row + head * P + p_P, mask=p_P < P, other=0.0).to(tl.float32)
        step = step_of(tl.load(steps + m * stride + head).to(tl.float32) + tl.load(bias + head), least, most)
        keeps = tl.exp(-tl.exp(tl.load(decay + head)) * step)
        h_PS = tl.fma((step * x_P)[:, None], b_S[None, :], tl.load(at_PS, mask=seen, other=0.0) * keeps)
        out_P = tl.sum(h_PS * q_S[None, :], axis=1) + tl.load(skip + head) * x_P
        tl.store(at_PS, h_PS, mask=seen)
    tl.store(out + (m * heads + head) * P + p_P, out_P.to(out.dtype.element_ty), mask=p_P < P)


# What is compiled.

from variants import for_tests, row

SIZES = "heads:i32 groups:i32 P:i32 S:i32"


def listed():
    """Heads of 64 with states of 128, as most released models have them; up to 128 and 256; and up to 32 for tests, which alone
    compute in f32."""
    for kind, P, S, BP, BS in (("ptr", 64, 128, 64, 64), ("ptr", 128, 256, 32, 64), ("ptr", 32, 32, 32, 32), ("f32", 32, 32, 32, 32)):
        size = dict(PD=P, SD=S)
        of = dict(**size, BP=BP, BS=BS, EXACT=int(P == 64))
        yield row("statespace", "space_scores", kind, f"mixed:c bounds:*i32 scores:*fp32 M:i32 {SIZES}", **size, BS=BS, EXACT=int(P == 64))
        scanned = f"mixed:c bounds:*i32 vectors:*fp32 states:c places:*i32 state:*fp32 M:i32 {SIZES} capacity:i32"
        yield row("statespace", "space_scan", kind, scanned, **of)
        yield row("statespace", "space_out", kind, f"mixed:c bounds:*i32 vectors:*fp32 skip:*fp32 scores:*fp32 states:c out:c M:i32 {SIZES}", **of)
        decoded = f"mixed:c steps:c decay:*fp32 bias:*fp32 skip:*fp32 places:*i32 state:*fp32 out:c {SIZES} stride:i32 capacity:i32 least:fp32 most:fp32"
        yield row("statespace", "space_decode", kind, decoded, **size, BP=min(BP, 32), EXACT=int(P == 64))


def variants():
    for kind in ("ptr", "f32"):
        parameters = "steps:c decay:*fp32 bias:*fp32 bounds:*i32 vectors:*fp32 M:i32 heads:i32 stride:i32 least:fp32 most:fp32"
        yield row("statespace", "space_steps", kind, parameters, BH=16)
    yield from (found for found in listed() if found["constants"]["PD"] > 32)
    yield from for_tests(found for found in listed() if found["constants"]["PD"] == 32)
