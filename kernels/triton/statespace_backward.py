"""The gradients of Mamba 2's recurrence in chunks of C = 64 tokens, of packed sequences. statespace.py has the forward pass,
sizes and layouts.

With H the state before a chunk, dH' the gradient of that after it, D = do x^T e^(c_i - c_j) s_j where j <= i:

    dx = s (tril(G e^(c_i - c_j))^T do + e^(c_last - c) B dH'^T) + skip do      dH = e^(c_last) dH' + (e^c do)^T C
    dC = sum over a group's heads of D B + e^c do H       dB = sum over a group's heads of D^T C + e^(c_last - c) s x dH'
    dc = of each exponential its factor times its gradient
    ds = x by dx's part in brackets - e^decay times the sum of dc from a token on

    space_scan_backward      from chunk to chunk, last first: the gradients of the states after chunks
    space_values_backward    dx and dsteps of a chunk and a head
    space_keys_backward      dB and dC of a chunk and of HEADS heads that share them
    space_sum_backward       their sums over all heads of a group, in order; zeros in padding

Shapes: dout c[M, heads P]; before, after c[M / 64, heads, P, S]: states before chunks, and gradients of those after them, at
the place of the chunk that follows; dmixed c[M, heads P + 2 groups S]; dsteps c[M, heads], rows out_stride elements apart; sums
f32[parts, M, 2, groups, S], parts = ceil(heads / groups / HEADS).

Launch: scan grid (ceil(M / 64), heads, ceil(P / BP) ceil(S / BS)); values grid (ceil(M / 64), heads); keys grid
(ceil(M / 64), groups parts, ceil(S / BS)); sum grid (ceil(M / BM), ceil(2 groups S / BLOCK)).
"""
import triton
import triton.language as tl
from chunks import next_chunk, next_sequence, product, tile_rows
from statespace import decays, sizes_of, softplus


@triton.jit
def space_scan_backward(mixed, bounds, vectors, dout, after, M, heads, groups, P, S,
                        PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, EXACT: tl.constexpr):
    """BP values at BS places of a head's state, of the sequences that begin in a tile. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    head, i, parts = tl.program_id(1), tl.arange(0, 64), tl.cdiv(P, BP)
    p_P, s_S = tl.program_id(2) % parts * BP + tl.arange(0, BP), tl.program_id(2) // parts * BS + tl.arange(0, BS)
    width, of_queries = heads * P + 2 * groups * S, heads * P + (groups + head * groups // heads) * S
    at_PS, each_state = head * P * S + p_P[:, None] * S + s_S[None, :], (heads * P * S).to(tl.int64)
    seen_PS = (p_P < P)[:, None] & (s_S < S)[None, :]
    sums = vectors + (heads + head).to(tl.int64) * M
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        first, end, row = next_sequence(bounds, row, stop)
        if first < end:
            g_PS = tl.zeros((BP, BS), tl.float32)
            chunks = (end - first + 63) // 64
            for back in range(0, chunks - 1):
                begin = first + (chunks - 1 - back) * 64
                m_C = begin + i
                inside = m_C < end
                m = m_C.to(tl.int64)
                last = tl.load(sums + tl.minimum(begin + 64, end) - 1)
                e_C = tl.exp(tl.load(sums + tl.minimum(m_C, end - 1)))
                from_CP = dout + (m * heads + head)[:, None] * P + p_P[None, :]
                do_CP = tl.load(from_CP, mask=inside[:, None] & (p_P < P)[None, :], other=0.0)
                from_CS = mixed + m[:, None] * width + of_queries + s_S[None, :]
                q_CS = tl.load(from_CS, mask=inside[:, None] & (s_S < S)[None, :], other=0.0)
                do_CP = (do_CP.to(tl.float32) * e_C[:, None]).to(q_CS.dtype)
                g_PS = g_PS * tl.exp(last) + product(tl.trans(do_CP), q_CS)
                tl.store(after + begin // 64 * each_state + at_PS, g_PS.to(after.dtype.element_ty), mask=seen_PS)


@triton.jit
def space_values_backward(mixed, steps, decay, bias, skip, bounds, vectors, scores, before, after, dout, dmixed, dsteps,
                          M, heads, groups, P, S, stride, out_stride, least, most,
                          PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, EXACT: tl.constexpr):
    """A head of the chunks that begin in a tile, BP values at a time. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    head, i, group = tl.program_id(1), tl.arange(0, 64), tl.program_id(1) * groups // heads
    width, of_keys = heads * P + 2 * groups * S, heads * P + group * S
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
            m = m_C.to(tl.int64)
            to_CP = dmixed + m[:, None] * width + head * P + p_P[None, :]
            tl.store(to_CP, tl.zeros((64, PD), el), mask=(m_C < stop)[:, None] & (p_P < P)[None, :])
            tl.store(dsteps + m * out_stride + head, tl.zeros((64,), el), mask=m_C < stop)
        elif begin < end:
            m_C = begin + i
            inside = m_C < end
            m = m_C.to(tl.int64)
            c_C, s_C = tl.load(sums + tl.minimum(m_C, end - 1)), tl.load(step + m_C, mask=inside, other=0.0)
            last = tl.load(sums + tl.minimum(begin + 64, end) - 1)
            do_x_CC = tl.zeros((64, 64), tl.float32)
            for p0 in range(0, PD, BP):
                p_P = p0 + tl.arange(0, BP)
                seen = inside[:, None] & (p_P < P)[None, :]
                do_CP = tl.load(dout + (m * heads + head)[:, None] * P + p_P[None, :], mask=seen, other=0.0)
                x_CP = tl.load(mixed + m[:, None] * width + head * P + p_P[None, :], mask=seen, other=0.0)
                do_x_CC += product(do_CP, tl.trans(x_CP))
            w_CC = tl.load(scores + (m * groups + group)[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0) * decays(c_C)
            do_x_CC = do_x_CC * w_CC * s_C[None, :]
            dc_C = tl.sum(do_x_CC, axis=1) - tl.sum(do_x_CC, axis=0)
            w_CC = w_CC.to(el)

            # By the state before the chunk and that after it; a first chunk has none before it, and a last one none after it
            # that has a gradient.
            e_C, rest_C = tl.exp(c_C), tl.where(inside, tl.exp(last - c_C), 0.0)
            ds_C, dlast = tl.zeros((64,), tl.float32), 0.0
            for p0 in range(0, PD, BP):
                p_P = p0 + tl.arange(0, BP)
                seen = inside[:, None] & (p_P < P)[None, :]
                do_CP = tl.load(dout + (m * heads + head)[:, None] * P + p_P[None, :], mask=seen, other=0.0)
                x_CP = tl.load(mixed + m[:, None] * width + head * P + p_P[None, :], mask=seen, other=0.0).to(tl.float32)
                read_CP, dx_CP = tl.zeros((64, BP), tl.float32), tl.zeros((64, BP), tl.float32)
                along = 0.0
                for s0 in range(0, SD, BS):
                    s_S = s0 + tl.arange(0, BS)
                    seen_S = inside[:, None] & (s_S < S)[None, :]
                    from_CS = mixed + m[:, None] * width + of_keys + s_S[None, :]
                    at_PS, seen_PS = head * P * S + p_P[:, None] * S + s_S[None, :], (p_P < P)[:, None] & (s_S < S)[None, :]
                    h_PS = tl.load(before + begin // 64 * each_state + at_PS, mask=seen_PS & (begin > first), other=0.0)
                    g_PS = tl.load(after + (begin // 64 + 1) * each_state + at_PS, mask=seen_PS & (begin + 64 < end), other=0.0)
                    dx_CP += product(tl.load(from_CS, mask=seen_S, other=0.0), tl.trans(g_PS))
                    read_CP += product(tl.load(from_CS + groups * S, mask=seen_S, other=0.0), tl.trans(h_PS))
                    along += tl.sum(tl.sum(h_PS.to(tl.float32) * g_PS.to(tl.float32), axis=1), axis=0)
                dlast += tl.exp(last) * along
                dx_CP = dx_CP * rest_C[:, None]
                along_C = s_C * tl.sum(dx_CP * x_CP, axis=1)
                dc_C += e_C * tl.sum(read_CP * do_CP.to(tl.float32), axis=1) - along_C
                dlast += tl.sum(along_C)
                dx_CP += product(tl.trans(w_CC), do_CP)
                ds_C += tl.sum(dx_CP * x_CP, axis=1)
                dx_CP = tl.fma(dx_CP, s_C[:, None], through * do_CP.to(tl.float32))
                tl.store(dmixed + m[:, None] * width + head * P + p_P[None, :], dx_CP.to(el), mask=seen)

            # c sums -e^decay s from the first token on; a step at a limit has no gradient.
            da_C = tl.sum(dc_C) - tl.cumsum(dc_C, 0) + dc_C + dlast
            before_C = tl.load(steps + m * stride + head, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + head)
            free_C = softplus(before_C)
            slope_C = tl.where((free_C < least) | (free_C > most), 0.0, tl.sigmoid(before_C))
            ds_C = (ds_C - tl.exp(tl.load(decay + head)) * da_C) * slope_C
            tl.store(dsteps + m * out_stride + head, ds_C.to(el), mask=inside)


@triton.jit
def space_keys_backward(mixed, bounds, vectors, before, after, dout, sums, M, heads, groups, P, S,
                        PD: tl.constexpr, SD: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, HEADS: tl.constexpr, EXACT: tl.constexpr):
    """BS places of HEADS heads of the chunks that begin in a tile. See the top of the file."""
    P, S = sizes_of(P, S, PD, SD, EXACT)
    each, i = heads // groups, tl.arange(0, 64)
    parts = tl.cdiv(each, HEADS)
    group, part, s_S = tl.program_id(1) // parts, tl.program_id(1) % parts, tl.program_id(2) * BS + tl.arange(0, BS)
    width, each_state = heads * P + 2 * groups * S, (heads * P * S).to(tl.int64)
    first_head, end_head = group * each + part * HEADS, group * each + tl.minimum((part + 1) * HEADS, each)
    el = mixed.dtype.element_ty
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        first, end, begin, row = next_chunk(bounds, row, stop)
        if begin < end:
            m_C = begin + i
            inside = m_C < end
            m = m_C.to(tl.int64)
            d_CC = tl.zeros((64, 64), tl.float32)
            db_CS, dq_CS = tl.zeros((64, BS), tl.float32), tl.zeros((64, BS), tl.float32)
            for head in range(first_head, end_head):
                step = vectors + M.to(tl.int64) * head
                sum_of = step + M.to(tl.int64) * heads
                c_C, s_C = tl.load(sum_of + tl.minimum(m_C, end - 1)), tl.load(step + m_C, mask=inside, other=0.0)
                last = tl.load(sum_of + tl.minimum(begin + 64, end) - 1)
                e_C, rest_C = tl.exp(c_C), tl.where(inside, tl.exp(last - c_C), 0.0) * s_C
                do_x_CC = tl.zeros((64, 64), tl.float32)
                b_CS, q_CS = tl.zeros((64, BS), tl.float32), tl.zeros((64, BS), tl.float32)
                for p0 in range(0, PD, BP):
                    p_P = p0 + tl.arange(0, BP)
                    seen = inside[:, None] & (p_P < P)[None, :]
                    do_CP = tl.load(dout + (m * heads + head)[:, None] * P + p_P[None, :], mask=seen, other=0.0)
                    x_CP = tl.load(mixed + m[:, None] * width + head * P + p_P[None, :], mask=seen, other=0.0)
                    at_PS, seen_PS = head * P * S + p_P[:, None] * S + s_S[None, :], (p_P < P)[:, None] & (s_S < S)[None, :]
                    h_PS = tl.load(before + begin // 64 * each_state + at_PS, mask=seen_PS & (begin > first), other=0.0)
                    g_PS = tl.load(after + (begin // 64 + 1) * each_state + at_PS, mask=seen_PS & (begin + 64 < end), other=0.0)
                    do_x_CC += product(do_CP, tl.trans(x_CP))
                    q_CS += product(do_CP, h_PS)
                    b_CS += product(x_CP, g_PS)
                d_CC = tl.fma(do_x_CC * decays(c_C), s_C[None, :], d_CC)
                dq_CS = tl.fma(q_CS, e_C[:, None], dq_CS)
                db_CS = tl.fma(b_CS, rest_C[:, None], db_CS)
            d_CC = d_CC.to(el)
            seen_S = inside[:, None] & (s_S < S)[None, :]
            from_CS = mixed + m[:, None] * width + heads * P + group * S + s_S[None, :]
            dq_CS += product(d_CC, tl.load(from_CS, mask=seen_S, other=0.0))
            db_CS += product(tl.trans(d_CC), tl.load(from_CS + groups * S, mask=seen_S, other=0.0))
            to_CS = sums + ((part * M.to(tl.int64) + m) * 2 * groups + group)[:, None] * S + s_S[None, :]
            tl.store(to_CS, db_CS, mask=seen_S)
            tl.store(to_CS + groups * S, dq_CS, mask=seen_S)


@triton.jit
def space_sum_backward(bounds, sums, dmixed, M, parts, inner, width, BM: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK features of BM rows, which begin after the `inner` of x, of `width` in all. See the top of the file."""
    m_M, w_W, size = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), width - inner
    m = m_M.to(tl.int64)
    inside = tl.load(bounds + 2 * m_M, mask=m_M < M, other=0) < tl.load(bounds + 2 * m_M + 1, mask=m_M < M, other=0)
    d_MW = tl.zeros((BM, BLOCK), tl.float32)
    for part in range(0, parts):
        from_MW = sums + (part * M.to(tl.int64) + m)[:, None] * size + w_W[None, :]
        d_MW += tl.load(from_MW, mask=inside[:, None] & (w_W < size)[None, :], other=0.0)
    to_MW = dmixed + m[:, None] * width + inner + w_W[None, :]
    tl.store(to_MW, d_MW.to(dmixed.dtype.element_ty), mask=(m_M < M)[:, None] & (w_W < size)[None, :])


# What is compiled.

from variants import for_tests, row

SIZES = "M:i32 heads:i32 groups:i32 P:i32 S:i32"


def listed():
    """As statespace.py."""
    for kind, P, S, BP, BS, keys in (("ptr", 64, 128, 64, 64, 128), ("ptr", 128, 256, 32, 64, 128), ("ptr", 32, 32, 32, 32, 32), ("f32", 32, 32, 32, 32, 32)):
        of = dict(PD=P, SD=S, BP=BP, BS=BS)
        scanned = f"mixed:c bounds:*i32 vectors:*fp32 dout:c after:c {SIZES}"
        yield row("statespace_backward", "space_scan_backward", kind, scanned, **of, EXACT=int(P == 64))
        values = f"mixed:c steps:c decay:*fp32 bias:*fp32 skip:*fp32 bounds:*i32 vectors:*fp32 scores:*fp32 before:c after:c dout:c dmixed:c dsteps:c {SIZES}"
        yield row("statespace_backward", "space_values_backward", kind, f"{values} stride:i32 out_stride:i32 least:fp32 most:fp32", 8 if P > 32 else 4, **of, EXACT=int(P == 64))
        of = dict(of, BS=keys, HEADS=8)
        found = f"mixed:c bounds:*i32 vectors:*fp32 before:c after:c dout:c sums:*fp32 {SIZES}"
        yield row("statespace_backward", "space_keys_backward", kind, found, 8 if keys == 128 else 4, **of, EXACT=int(P == 64))


def variants():
    for kind in ("ptr", "f32"):
        yield row("statespace_backward", "space_sum_backward", kind, "bounds:*i32 sums:*fp32 dmixed:c M:i32 parts:i32 inner:i32 width:i32", BM=4, BLOCK=256)
    yield from (found for found in listed() if found["constants"]["PD"] > 32)
    yield from for_tests(found for found in listed() if found["constants"]["PD"] == 32)
