"""The gradient of the gated delta rule (deltanet.py, whose names hold here), after delta_prepare and delta_scan.

With the gradient G of the state after a chunk, from the last chunk of a sequence to the first, and dO that of out:

    dv = T^T (P^T dO + (e^(c_last - c) k) G)    G' = e^(c_last) G + (e^c q)^T dO - (e^c k)^T dv

    delta_scan_backward    dv, and G of each chunk but a sequence's last
    delta_chunk_backward   of a chunk and a head: beta dA = -tril(dv N^T, -1) and dP = tril(dO N^T), of which follow the parts
                           of the gradients of c and beta that go through them, and, in the places of T and P, what k is
                           multiplied by on its way to dk, and, for dq and dk, dP times what rows of q and of k are
                           multiplied by
    delta_state_backward   of a chunk, a head and BK features of keys: -dv S^T and the like by the states before and after it;
                           dqk, and parts of the gradients of c and beta
    delta_gates_backward   the gradients of b and a in their place, from the sums of these parts
    delta_unit_backward    dmixed of q and k from the sums of dqk over the heads of a key head

The gradient of beta goes from kernel to kernel times beta, as that of b needs it: no division, whatever beta is.

Shapes: dout c[M, heads V]; after c[M / 64, heads, V, K] has G at the place of the next chunk's state; dqk c[2, M, heads, K] the
gradients of q and k of length 1; dmixed as mixed, of whose memory it has none. Padding rows get zeros.

Launch: scan grid (ceil(V / BV), heads, ceil(M / 64)); chunk grid (ceil(M / 64), heads, 2), as delta_prepare; state grid (PARTS
ceil(M / 64), heads, 2), PARTS = KD / BK; gates grid (ceil(M / 64), ceil(heads / BH)); unit grid (ceil(M / BM), key heads, 2).
"""
import triton
import triton.language as tl
from chunks import chunk_rows, next_chunk, next_sequence, product, tile_rows
from deltanet import by_length, decays


@triton.jit
def delta_scan_backward(mixed, bounds, vectors, t, p, dout, dmixed, after, M, key_heads, heads, K, V,
                        KD: tl.constexpr, VD: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """BV values of a head of the sequences that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    head, i = tl.program_id(1), tl.arange(0, 64)
    k_K, v_V = tl.arange(0, KD), tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    each, of_head = M.to(tl.int64) * heads, vectors + head.to(tl.int64) * M
    at_VK, each_state = v_V[:, None] * K + k_K[None, :], (heads * K * V).to(tl.int64)
    seen_VK = (v_V < V)[:, None] & (k_K < K)[None, :]
    row, stop = tile_rows(tl.program_id(2), M)
    while row < stop:
        first, end, row = next_sequence(bounds, row, stop)
        if first < end:
            g_VK = tl.zeros((BV, KD), tl.float32)
            chunks = (end - first + 63) // 64
            for back in range(0, chunks):
                begin = first + (chunks - 1 - back) * 64
                m_C = begin + i
                inside = m_C < end
                q_rows = chunk_rows(mixed + key_head * K, begin, width)
                seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
                last = tl.load(of_head + tl.minimum(begin + 64, end) - 1)
                q_CK = tl.load(q_rows + k_K[None, :], mask=seen_K, other=0.0)
                k_CK = tl.load(q_rows + key_heads * K + k_K[None, :], mask=seen_K, other=0.0)
                t_CC = tl.load(chunk_rows(t + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
                p_CC = tl.load(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
                do_CV = tl.load(chunk_rows(dout + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0)
                reads_C = tl.load(of_head + 3 * each + m_C, mask=inside, other=0.0)
                writes_C = tl.load(of_head + 4 * each + m_C, mask=inside, other=0.0)
                asks_C = tl.load(of_head + 5 * each + m_C, mask=inside, other=0.0)
                el = do_CV.dtype
                after_VK = g_VK.to(el)
                tl.store(after + (begin + 64) // 64 * each_state + head * K * V + at_VK, after_VK, mask=seen_VK & (back > 0))
                dn_VC = product(after_VK, tl.trans(k_CK)) * writes_C[None, :] + product(tl.trans(do_CV), p_CC)
                x_VC = product(dn_VC.to(el), t_CC)
                tl.store(chunk_rows(dmixed + 2 * key_heads * K + head * V, begin, width) + v_V[None, :], tl.trans(x_VC.to(el)), mask=seen_V)
                do_VC = (tl.trans(do_CV).to(tl.float32) * asks_C[None, :]).to(el)
                x_VC = (x_VC * reads_C[None, :]).to(el)
                g_VK = g_VK * tl.exp(last) + product(do_VC, q_CK) - product(x_VC, k_CK)


@triton.jit
def chunk_backward(row, stop, mixed, bounds, vectors, t, p, n, dout, dmixed, M, key_heads, heads, K, V,
                   KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """As prepare_chunk of deltanet.py."""
    head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    norms = M.to(tl.int64) * heads
    el = mixed.dtype.element_ty
    here = row
    first, end, begin, row = next_chunk(bounds, row, stop)
    if end <= first:
        m_C, v_V = here + i, tl.arange(0, VD)
        to_CV = dmixed + m_C.to(tl.int64)[:, None] * width + 2 * key_heads * K + head * V + v_V[None, :]
        tl.store(to_CV, tl.zeros((64, VD), el), mask=(m_C < stop)[:, None] & (v_V < V)[None, :])
    elif begin < end:
        m_C = begin + i
        inside = m_C < end
        of_C, q_rows = vectors + head.to(tl.int64) * M + m_C, chunk_rows(mixed + key_head * K, begin, width)
        p_CC = tl.load(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
        dbeta_C = tl.zeros((64,), tl.float32)
        dp_CC, da_CC = tl.zeros((64, 64), tl.float32), tl.zeros((64, 64), tl.float32)
        for value in range(0, VD, BV):
            v_V = value + tl.arange(0, BV)
            seen_V = inside[:, None] & (v_V < V)[None, :]
            n_CV = tl.load(chunk_rows(n + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0)
            do_CV = tl.load(chunk_rows(dout + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0)
            dv_CV = tl.load(chunk_rows(dmixed + 2 * key_heads * K + head * V, begin, width) + v_V[None, :], mask=seen_V, other=0.0)
            v_CV = tl.load(chunk_rows(mixed + 2 * key_heads * K + head * V, begin, width) + v_V[None, :], mask=seen_V, other=0.0)
            dp_CC += product(do_CV, tl.trans(n_CV))
            da_CC -= product(dv_CV, tl.trans(n_CV))
            dbeta_C += tl.sum(dv_CV.to(tl.float32) * v_CV.to(tl.float32), axis=1)
        kk_CC = tl.zeros((64, 64), tl.float32)
        for key in range(0, KD, BK):
            k_K = key + tl.arange(0, BK)
            k_CK = tl.load(q_rows + key_heads * K + k_K[None, :], mask=inside[:, None] & (k_K < K)[None, :], other=0.0)
            kk_CC += product(k_CK, tl.trans(k_CK))
        c_C = tl.load(of_C, mask=inside, other=0.0)
        rq_C, rk_C = tl.load(of_C + norms, mask=inside, other=0.0), tl.load(of_C + 2 * norms, mask=inside, other=0.0)
        d_CC = decays(c_C)
        through_CC = dp_CC * p_CC.to(tl.float32)
        dp_CC = dp_CC * d_CC * (rq_C[:, None] * rk_C[None, :])
        da_CC = tl.where(i[:, None] > i[None, :], da_CC, 0.0) * d_CC
        kk_CC = kk_CC * (rk_C[:, None] * rk_C[None, :])
        dbeta_C += tl.sum(da_CC * kk_CC, axis=1)
        through_CC = tl.fma(da_CC, kk_CC, through_CC)
        dc_C = tl.sum(through_CC, axis=1) - tl.sum(through_CC, axis=0)
        tl.store(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], dp_CC.to(el), mask=inside[:, None])
        tl.store(chunk_rows(t + head * 64, begin, heads * 64) + i[None, :], ((da_CC + tl.trans(da_CC)) * rk_C[None, :]).to(el), mask=inside[:, None])
        tl.store(of_C + 6 * norms, dc_C, mask=inside)
        tl.store(of_C + 7 * norms, dbeta_C, mask=inside)
    return row


@triton.jit
def delta_chunk_backward(mixed, bounds, vectors, t, p, n, dout, dmixed, M, key_heads, heads, K, V,
                         KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a head that begin in a tile, BK or BV features at a time. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    row, stop = tile_rows(tl.program_id(0), M)
    if EXACT == 0:
        row = tl.where(tl.program_id(2) == 0, row, stop)
    elif tl.program_id(2) == 0:
        chunk_backward(row, stop, mixed, bounds, vectors, t, p, n, dout, dmixed, M, key_heads, heads, K, V, KD, VD, BK, BV)
        row = stop
    else:
        _, _, _, row = next_chunk(bounds, row, stop)
    while row < stop:
        row = chunk_backward(row, stop, mixed, bounds, vectors, t, p, n, dout, dmixed, M, key_heads, heads, K, V, KD, VD, BK, BV)


@triton.jit
def state_backward(row, stop, part, mixed, bounds, vectors, t, p, n, dout, dmixed, before, after, dqk, M, key_heads, heads, K, V,
                   KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr):
    """As prepare_chunk of deltanet.py."""
    head, i, k_K, v_V = tl.program_id(1), tl.arange(0, 64), part * BK + tl.arange(0, BK), tl.arange(0, VD)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    norms, each_state = M.to(tl.int64) * heads, (heads * K * V).to(tl.int64)
    el = mixed.dtype.element_ty
    first, end, begin, row = next_chunk(bounds, row, stop)
    if begin < end:
        m_C = begin + i
        inside = m_C < end
        seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
        of_C, of_VK = vectors + head.to(tl.int64) * M + m_C, head * K * V + v_V[:, None] * K + k_K[None, :]
        # A first chunk has no state before it, and a last one none after it that has a gradient.
        most_before, most_after = tl.where(begin > first, V, 0), tl.where(begin + 64 < end, V, 0)
        s_VK = tl.load(before + begin // 64 * each_state + of_VK, mask=(v_V < most_before)[:, None] & (k_K < K)[None, :], other=0.0)
        g_VK = tl.load(after + (begin + 64) // 64 * each_state + of_VK, mask=(v_V < most_after)[:, None] & (k_K < K)[None, :], other=0.0)
        through = tl.sum(tl.sum(g_VK.to(tl.float32) * s_VK.to(tl.float32), axis=1), axis=0)
        q_rows = chunk_rows(mixed + key_head * K, begin, width) + k_K[None, :]
        q_CK, k_CK = tl.load(q_rows, mask=seen_K, other=0.0), tl.load(q_rows + key_heads * K, mask=seen_K, other=0.0)
        dp_CC = tl.load(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
        c_C = tl.load(of_C, mask=inside, other=0.0)
        rq_C, rk_C = tl.load(of_C + norms, mask=inside, other=1.0), tl.load(of_C + 2 * norms, mask=inside, other=1.0)
        last = tl.load(vectors + head.to(tl.int64) * M + tl.minimum(begin + 64, end) - 1)
        e_C, rest_C = tl.exp(c_C), tl.where(inside, tl.exp(last - c_C), 0.0)
        of_dqk = chunk_rows(dqk + head * K, begin, heads * K) + k_K[None, :]

        dq_CK = product(tl.load(chunk_rows(dout + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0), s_VK) * e_C[:, None]
        dc_C = rq_C * tl.sum(dq_CK * q_CK.to(tl.float32), axis=1)
        dq_CK += product(dp_CC, k_CK) * tl.div_rn(1.0, rq_C)[:, None]
        tl.store(of_dqk, dq_CK.to(el), mask=seen_K)

        dv_CV = tl.load(chunk_rows(dmixed + 2 * key_heads * K + head * V, begin, width) + v_V[None, :], mask=seen_V, other=0.0)
        dk_CK = product(dv_CV, s_VK) * -e_C[:, None]
        dbeta_C = rk_C * tl.sum(dk_CK * k_CK.to(tl.float32), axis=1)
        by_CK = product(tl.load(chunk_rows(n + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0), g_VK) * rest_C[:, None]
        along_C = rk_C * tl.sum(by_CK * k_CK.to(tl.float32), axis=1)
        dc_C += dbeta_C - along_C + tl.where(m_C == tl.minimum(begin + 64, end) - 1, tl.sum(along_C) + tl.exp(last) * through, 0.0)
        dk_CK += by_CK + product(tl.trans(dp_CC), q_CK) * tl.div_rn(1.0, rk_C)[:, None]
        dk_CK += product(tl.load(chunk_rows(t + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0), k_CK)
        tl.store(of_dqk + norms * K, dk_CK.to(el), mask=seen_K)
        to_C = of_C + (8 + 2 * part) * norms
        tl.store(to_C, dc_C, mask=inside)
        tl.store(to_C + norms, dbeta_C, mask=inside)
    return row


@triton.jit
def delta_state_backward(mixed, bounds, vectors, t, p, n, dout, dmixed, before, after, dqk, M, key_heads, heads, K, V,
                         KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr):
    """BK features of keys of the chunks of a head that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    PARTS: tl.constexpr = KD // BK
    part = tl.program_id(0) % PARTS
    row, stop = tile_rows(tl.program_id(0) // PARTS, M)
    if EXACT == 0:
        row = tl.where(tl.program_id(2) == 0, row, stop)
    elif tl.program_id(2) == 0:
        state_backward(row, stop, part, mixed, bounds, vectors, t, p, n, dout, dmixed, before, after, dqk, M, key_heads, heads, K, V, KD, VD, BK)
        row = stop
    else:
        _, _, _, row = next_chunk(bounds, row, stop)
    while row < stop:
        row = state_backward(row, stop, part, mixed, bounds, vectors, t, p, n, dout, dmixed, before, after, dqk, M, key_heads, heads, K, V, KD, VD, BK)


@triton.jit
def delta_gates_backward(gates, decay, bias, bounds, vectors, M, heads, BH: tl.constexpr, PARTS: tl.constexpr):
    """BH heads of the chunks that begin in a tile. See the top of the file."""
    i, h_H = tl.arange(0, 64), tl.program_id(1) * BH + tl.arange(0, BH)
    each = M.to(tl.int64) * heads
    own_H = h_H < heads
    decay_H, bias_H = tl.exp(tl.load(decay + h_H, mask=own_H, other=0.0)), tl.load(bias + h_H, mask=own_H, other=0.0)
    el = gates.dtype.element_ty
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        here = row
        first, end, begin, row = next_chunk(bounds, row, stop)
        pads = end <= first  # then all rows from here on, whose gradients are 0
        begin, end = tl.where(pads, here, begin), tl.where(pads, stop, end)
        if begin < end:
            m_C = begin + i
            inside = (m_C < end)[:, None] & own_H[None, :]
            seen = inside & (pads == 0)
            at_CH = h_H.to(tl.int64)[None, :] * M + m_C[:, None]
            dc_CH, dbeta_CH = tl.zeros((64, BH), tl.float32), tl.zeros((64, BH), tl.float32)
            for part in tl.static_range(0, PARTS + 1):
                dc_CH += tl.load(vectors + (6 + 2 * part) * each + at_CH, mask=seen, other=0.0)
                dbeta_CH += tl.load(vectors + (7 + 2 * part) * each + at_CH, mask=seen, other=0.0)
            # c sums g from the first token on.
            dg_CH = tl.sum(dc_CH, axis=0)[None, :] - tl.cumsum(dc_CH, 0) + dc_CH
            of_CH = gates + m_C.to(tl.int64)[:, None] * 2 * heads + h_H[None, :]
            beta_CH = tl.sigmoid(tl.load(of_CH, mask=seen, other=0.0).to(tl.float32))
            before_CH = tl.load(of_CH + heads, mask=seen, other=0.0).to(tl.float32) + bias_H[None, :]
            da_CH = -dg_CH * decay_H[None, :] * tl.sigmoid(before_CH)
            tl.store(of_CH, tl.where(seen, dbeta_CH * (1.0 - beta_CH), 0.0).to(el), mask=inside)
            tl.store(of_CH + heads, tl.where(seen, da_CH, 0.0).to(el), mask=inside)



@triton.jit
def delta_unit_backward(mixed, bounds, dqk, dmixed, M, key_heads, heads, K, V,
                        KD: tl.constexpr, VD: tl.constexpr, BM: tl.constexpr, EXACT: tl.constexpr):
    """q or k of a key head of BM rows. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    m_M, k_K, key_head, which = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, KD), tl.program_id(1), tl.program_id(2)
    m, each = m_M.to(tl.int64), heads // key_heads
    first_M, end_M = tl.load(bounds + 2 * m_M, mask=m_M < M, other=0), tl.load(bounds + 2 * m_M + 1, mask=m_M < M, other=0)
    inside = first_M < end_M
    seen = inside[:, None] & (k_K < K)[None, :]
    d_MK = tl.zeros((BM, KD), tl.float32)
    for head in range(key_head * each, (key_head + 1) * each):
        at = (which * M.to(tl.int64) + m) * heads + head
        d_MK += tl.load(dqk + at[:, None] * K + k_K[None, :], mask=seen, other=0.0).to(tl.float32)
    of = m[:, None] * (2 * key_heads * K + heads * V) + (which * key_heads + key_head) * K + k_K[None, :]
    x_MK = tl.load(mixed + of, mask=seen, other=0.0)
    scale = tl.where(which == 0, tl.div_rn(1.0, tl.sqrt_rn(K * 1.0)), 1.0)
    by_M = by_length(x_MK, scale)
    y_MK = x_MK.to(tl.float32) * by_M[:, None]
    along_M = tl.div_rn(tl.sum(d_MK * y_MK, axis=1), scale * scale)
    dx_MK = by_M[:, None] * (d_MK - along_M[:, None] * y_MK)
    tl.store(dmixed + of, dx_MK.to(dmixed.dtype.element_ty), mask=(m_M < M)[:, None] & (k_K < K)[None, :])


# What is compiled.

from variants import by_chip, for_tests, row

SIZES = "M:i32 key_heads:i32 heads:i32 K:i32 V:i32"
SCANNED = f"mixed:c bounds:*i32 vectors:*fp32 t:c p:c dout:c dmixed:c after:c {SIZES}"
CHUNK = f"mixed:c bounds:*i32 vectors:*fp32 t:c p:c n:c dout:c dmixed:c {SIZES}"
STATE = f"mixed:c bounds:*i32 vectors:*fp32 t:c p:c n:c dout:c dmixed:c before:c after:c dqk:c {SIZES}"
GATES = "gates:c decay:*fp32 bias:*fp32 bounds:*i32 vectors:*fp32 M:i32 heads:i32"
UNIT = f"mixed:c bounds:*i32 dqk:c dmixed:c {SIZES}"


def small():
    """Heads up to 32, which alone compute in f32."""
    for kind in ("ptr", "f32"):
        some = dict(KD=32, VD=32, EXACT=0)
        yield row("deltanet_backward", "delta_scan_backward", kind, SCANNED, **some, BV=32)
        yield row("deltanet_backward", "delta_chunk_backward", kind, CHUNK, **some, BK=32, BV=32)
        yield row("deltanet_backward", "delta_state_backward", kind, STATE, **some, BK=32)
        yield row("deltanet_backward", "delta_gates_backward", kind, GATES, BH=16, PARTS=1)
        yield row("deltanet_backward", "delta_unit_backward", kind, UNIT, **some, BM=16)


def variants():
    """As deltanet.py."""
    whole = dict(KD=128, VD=128, EXACT=1)
    yield from by_chip("deltanet_backward", "delta_scan_backward", SCANNED, (4, 2), (8, 1), **whole, BV=64)
    yield from by_chip("deltanet_backward", "delta_chunk_backward", CHUNK, (4, 1), (8, 1), **whole, BK=128, BV=128)
    for found in by_chip("deltanet_backward", "delta_state_backward", STATE, (4, 1), (8, 1), **whole, BK=64):
        # Halves of keys spill 3.6 KB a thread on Ampere, all at once 0.6.
        yield found if found["arch"] == "sm_90a" else dict(found, constants=dict(whole, BK=128))
    for parts in (1, 2):
        yield row("deltanet_backward", "delta_gates_backward", "ptr", GATES, BH=16, PARTS=parts)
    yield row("deltanet_backward", "delta_unit_backward", "ptr", UNIT, **whole, BM=16)
    yield from for_tests(small())
