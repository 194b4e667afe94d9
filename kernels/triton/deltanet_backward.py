"""The gradient of the gated delta rule (deltanet.py, whose names hold here), after delta_prepare and delta_scan.

With the gradient G of the state after a chunk, from the last chunk of a sequence to the first, and dO that of out:

    X = T^T (P^T dO + (e^(c_last - c) k) G)    G' = e^(c_last) G + (e^c q)^T dO - (beta e^c k)^T X

    delta_scan_backward    X, and G of each chunk but a sequence's last
    delta_chunk_backward   of a chunk and a head: dv; dA = -tril(X N^T, -1) and dP = tril(dO N^T), of which follow the parts of
                           the gradients of c and beta that go through them, and, in the places of T and P, what k is
                           multiplied by on its way to dk, and, for dq and dk, dP times what rows of q and of k are
                           multiplied by
    delta_state_backward   of a chunk and a head: dY = -X S^T and the like by the states before and after it; dqk, and the
                           gradients of b and a in their place
    delta_unit_backward    dmixed of q and k from the sums of dqk over the heads of a key head

Shapes: dout c[M, heads V]; x c[M, heads, V]; after c[M / 64, heads, K, V] has G at the place of the next chunk's state; dqk
c[2, M, heads, K] the gradients of q and k of length 1; dmixed as mixed. Padding rows get zeros.

Launch: scan grid (ceil(V / BV), heads, ceil(M / 64)); chunk and state grid (ceil(M / 64), heads, 2), as delta_prepare; unit
grid (ceil(M / BM), key heads, 2).
"""
import triton
import triton.language as tl
from chunks import next_chunk, next_sequence, product, tile_rows
from deltanet import by_length, decays, token_gates


@triton.jit
def delta_scan_backward(mixed, bounds, vectors, t, p, dout, x, after, M, key_heads, heads, K, V,
                        KD: tl.constexpr, VD: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """BV values of a head of the sequences that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    k_K, v_V = tl.arange(0, KD), tl.program_id(0) * BV + tl.arange(0, BV)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    norms = M.to(tl.int64) * heads
    row, stop = tile_rows(tl.program_id(2), M)
    at_KV, each_state = k_K[:, None] * V + v_V[None, :], (heads * K * V).to(tl.int64)
    seen_KV = (k_K < K)[:, None] & (v_V < V)[None, :]
    while row < stop:
        first, end, row = next_sequence(bounds, row, stop)
        if first < end:
            g_KV = tl.zeros((KD, BV), tl.float32)
            chunks = (end - first + C - 1) // C
            for back in range(0, chunks):
                begin = first + (chunks - 1 - back) * C
                m_C = begin + i
                inside = m_C < end
                m, at = m_C.to(tl.int64), m_C.to(tl.int64) * heads + head
                seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
                c_C = tl.load(vectors + at, mask=inside, other=0.0)
                rq_C, rk_C = tl.load(vectors + norms + at, mask=inside, other=0.0), tl.load(vectors + 2 * norms + at, mask=inside, other=0.0)
                beta_C = tl.load(vectors + 3 * norms + at, mask=inside, other=0.0)
                last = tl.load(vectors + (tl.minimum(begin + C, end) - 1).to(tl.int64) * heads + head)
                q_CK = tl.load(mixed + m[:, None] * width + key_head * K + k_K[None, :], mask=seen_K, other=0.0)
                k_CK = tl.load(mixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :], mask=seen_K, other=0.0)
                t_CC = tl.load(t + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
                p_CC = tl.load(p + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
                do_CV = tl.load(dout + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
                el = do_CV.dtype
                after_KV = g_KV.to(el)
                if back > 0:
                    to_KV = after + (begin + C) // C * each_state + head * K * V + at_KV
                    tl.store(to_KV, after_KV, mask=seen_KV)
                dn_CV = product(k_CK, after_KV) * (rk_C * tl.exp(last - c_C))[:, None] + product(tl.trans(p_CC), do_CV)
                x_CV = product(tl.trans(t_CC), dn_CV.to(el))
                tl.store(x + at[:, None] * V + v_V[None, :], x_CV.to(el), mask=seen_V)
                do_CV = (do_CV.to(tl.float32) * (rq_C * tl.exp(c_C))[:, None]).to(el)
                x_CV = (x_CV * (beta_C * rk_C * tl.exp(c_C))[:, None]).to(el)
                g_KV = g_KV * tl.exp(last) + product(tl.trans(q_CK), do_CV) - product(tl.trans(k_CK), x_CV)


@triton.jit
def chunk_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, dmixed, M, key_heads, heads, K, V,
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
        m = m_C.to(tl.int64)
        at = m * heads + head
        g_C, beta_C, before_C = token_gates(gates, decay, bias, m_C, inside, head, heads)
        p_CC = tl.load(p + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
        dbeta_C = tl.zeros((64,), tl.float32)
        dp_CC, da_CC = tl.zeros((64, 64), tl.float32), tl.zeros((64, 64), tl.float32)
        for value in range(0, VD, BV):
            v_V = value + tl.arange(0, BV)
            seen_V = inside[:, None] & (v_V < V)[None, :]
            n_CV = tl.load(n + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
            do_CV = tl.load(dout + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
            x_CV = tl.load(x + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
            of_v = m[:, None] * width + 2 * key_heads * K + head * V + v_V[None, :]
            dp_CC += product(do_CV, tl.trans(n_CV))
            da_CC -= product(x_CV, tl.trans(n_CV))
            x32_CV = x_CV.to(tl.float32)
            dbeta_C += tl.sum(x32_CV * tl.load(mixed + of_v, mask=seen_V, other=0.0).to(tl.float32), axis=1)
            tl.store(dmixed + of_v, (x32_CV * beta_C[:, None]).to(el), mask=seen_V)
        kk_CC = tl.zeros((64, 64), tl.float32)
        for key in range(0, KD, BK):
            k_K = key + tl.arange(0, BK)
            of_k = m[:, None] * width + (key_heads + key_head) * K + k_K[None, :]
            k_CK = tl.load(mixed + of_k, mask=inside[:, None] & (k_K < K)[None, :], other=0.0)
            kk_CC += product(k_CK, tl.trans(k_CK))
        c_C = tl.load(vectors + at, mask=inside, other=0.0)
        rq_C, rk_C = tl.load(vectors + norms + at, mask=inside, other=0.0), tl.load(vectors + 2 * norms + at, mask=inside, other=0.0)
        d_CC = decays(c_C)
        through_CC = dp_CC * p_CC.to(tl.float32)
        dp_CC = dp_CC * d_CC * (rq_C[:, None] * rk_C[None, :])
        da_CC = tl.where(i[:, None] > i[None, :], da_CC, 0.0) * d_CC
        kk_CC = kk_CC * (rk_C[:, None] * rk_C[None, :])
        dbeta_C += tl.sum(da_CC * kk_CC, axis=1)
        da_CC = da_CC * beta_C[:, None]
        through_CC += da_CC * kk_CC
        dc_C = tl.sum(through_CC, axis=1) - tl.sum(through_CC, axis=0)
        tl.store(p + at[:, None] * 64 + i[None, :], dp_CC.to(el), mask=inside[:, None])
        tl.store(t + at[:, None] * 64 + i[None, :], ((da_CC + tl.trans(da_CC)) * rk_C[None, :]).to(el), mask=inside[:, None])
        tl.store(vectors + 4 * norms + at, dc_C, mask=inside)
        tl.store(vectors + 5 * norms + at, dbeta_C, mask=inside)
    return row


@triton.jit
def delta_chunk_backward(mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, dmixed, M, key_heads, heads, K, V,
                         KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a head that begin in a tile, BK or BV features at a time. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    row, stop = tile_rows(tl.program_id(0), M)
    if EXACT == 0:
        row = tl.where(tl.program_id(2) == 0, row, stop)
    elif tl.program_id(2) == 0:
        chunk_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, dmixed, M, key_heads, heads, K, V, KD, VD, BK, BV)
        row = stop
    else:
        _, _, _, row = next_chunk(bounds, row, stop)
    while row < stop:
        row = chunk_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, dmixed, M, key_heads, heads, K, V, KD, VD, BK, BV)


@triton.jit
def state_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, before, after, dqk, M, key_heads, heads, K, V,
                   KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """As prepare_chunk of deltanet.py."""
    head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    norms, each_state = M.to(tl.int64) * heads, (heads * K * V).to(tl.int64)
    el = mixed.dtype.element_ty
    here = row
    first, end, begin, row = next_chunk(bounds, row, stop)
    if end <= first:
        m_C = here + i
        m = m_C.to(tl.int64)
        tl.store(gates + m * 2 * heads + head, tl.zeros((64,), el), mask=m_C < stop)
        tl.store(gates + m * 2 * heads + heads + head, tl.zeros((64,), el), mask=m_C < stop)
    elif begin < end:
        m_C = begin + i
        inside = m_C < end
        m = m_C.to(tl.int64)
        at = m * heads + head
        g_C, beta_C, before_C = token_gates(gates, decay, bias, m_C, inside, head, heads)
        c_C = tl.load(vectors + at, mask=inside, other=0.0)
        rq_C, rk_C = tl.load(vectors + norms + at, mask=inside, other=1.0), tl.load(vectors + 2 * norms + at, mask=inside, other=1.0)
        dc_C, dbeta_C = tl.load(vectors + 4 * norms + at, mask=inside, other=0.0), tl.load(vectors + 5 * norms + at, mask=inside, other=0.0)
        last = tl.load(vectors + (tl.minimum(begin + C, end) - 1).to(tl.int64) * heads + head)
        e_C, rest_C = tl.exp(c_C), tl.where(inside, tl.exp(last - c_C), 0.0)
        from_before, from_after = before + begin // C * each_state + head * K * V, after + (begin + C) // C * each_state + head * K * V
        # A first chunk has no state before it, and a last one none after it that has a gradient.
        most_before, most_after = tl.where(begin > first, K, 0), tl.where(begin + C < end, K, 0)
        through_last = 0.0
        for key in range(0, KD, BK):
            k_K = key + tl.arange(0, BK)
            dos_CK, dy_CK, ng_CK = tl.zeros((64, BK), tl.float32), tl.zeros((64, BK), tl.float32), tl.zeros((64, BK), tl.float32)
            for value in range(0, VD, BV):
                v_V = value + tl.arange(0, BV)
                seen_V = inside[:, None] & (v_V < V)[None, :]
                of_V, of_state = at[:, None] * V + v_V[None, :], k_K[:, None] * V + v_V[None, :]
                s_KV = tl.load(from_before + of_state, mask=(k_K < most_before)[:, None] & (v_V < V)[None, :], other=0.0)
                dos_CK += product(tl.load(dout + of_V, mask=seen_V, other=0.0), tl.trans(s_KV))
                dy_CK -= product(tl.load(x + of_V, mask=seen_V, other=0.0), tl.trans(s_KV))
                g_KV = tl.load(from_after + of_state, mask=(k_K < most_after)[:, None] & (v_V < V)[None, :], other=0.0)
                ng_CK += product(tl.load(n + of_V, mask=seen_V, other=0.0), tl.trans(g_KV))
                through_last += tl.sum(tl.sum(g_KV.to(tl.float32) * s_KV.to(tl.float32), axis=1), axis=0)
            seen_K = inside[:, None] & (k_K < K)[None, :]
            q_CK = tl.load(mixed + m[:, None] * width + key_head * K + k_K[None, :], mask=seen_K, other=0.0)
            k_CK = tl.load(mixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :], mask=seen_K, other=0.0)
            dp_CC = tl.load(p + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
            dos_CK = dos_CK * e_C[:, None]
            dc_C += rq_C * tl.sum(dos_CK * q_CK.to(tl.float32), axis=1)
            dq_CK = dos_CK + product(dp_CC, k_CK) * tl.div_rn(1.0, rq_C)[:, None]
            tl.store(dqk + at[:, None] * K + k_K[None, :], dq_CK.to(el), mask=seen_K)
            ng_CK, dy_CK = ng_CK * rest_C[:, None], dy_CK * e_C[:, None]
            along_C = rk_C * tl.sum(dy_CK * k_CK.to(tl.float32), axis=1)
            dbeta_C += along_C
            dc_C += beta_C * along_C
            along_C = rk_C * tl.sum(ng_CK * k_CK.to(tl.float32), axis=1)
            dc_C = dc_C - along_C + tl.where(i == C - 1, tl.sum(along_C), 0.0)
            dk_CK = dy_CK * beta_C[:, None] + ng_CK + product(tl.trans(dp_CC), q_CK) * tl.div_rn(1.0, rk_C)[:, None]
            dk_CK += product(tl.load(t + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0), k_CK)
            tl.store(dqk + norms * K + at[:, None] * K + k_K[None, :], dk_CK.to(el), mask=seen_K)
        dc_C += tl.where(i == C - 1, tl.exp(last) * through_last, 0.0)

        # c sums g from the first token on.
        dg_C = tl.sum(dc_C) - tl.cumsum(dc_C, 0) + dc_C
        db_C = dbeta_C * beta_C * (1.0 - beta_C)
        da_C = -dg_C * tl.exp(tl.load(decay + head)) * tl.sigmoid(before_C)
        tl.store(gates + m * 2 * heads + head, db_C.to(el), mask=inside)
        tl.store(gates + m * 2 * heads + heads + head, da_C.to(el), mask=inside)
    return row


@triton.jit
def delta_state_backward(mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, before, after, dqk, M, key_heads, heads, K, V,
                         KD: tl.constexpr, VD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a head that begin in a tile, BK times BV features of a state at a time. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    row, stop = tile_rows(tl.program_id(0), M)
    if EXACT == 0:
        row = tl.where(tl.program_id(2) == 0, row, stop)
    elif tl.program_id(2) == 0:
        state_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, before, after, dqk, M, key_heads, heads, K, V, KD, VD, BK, BV)
        row = stop
    else:
        _, _, _, row = next_chunk(bounds, row, stop)
    while row < stop:
        row = state_backward(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, n, x, dout, before, after, dqk, M, key_heads, heads, K, V, KD, VD, BK, BV)


@triton.jit
def delta_unit_backward(mixed, bounds, dqk, dmixed, M, key_heads, heads, K, V, KD: tl.constexpr, BM: tl.constexpr, EXACT: tl.constexpr):
    """q or k of a key head of BM rows. See the top of the file."""
    if EXACT:
        K = KD
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
SCANNED = f"mixed:c bounds:*i32 vectors:*fp32 t:c p:c dout:c x:c after:c {SIZES}"
INPUTS = "mixed:c gates:c decay:*fp32 bias:*fp32 bounds:*i32 vectors:*fp32 t:c p:c n:c x:c dout:c"
CHUNK = f"{INPUTS} dmixed:c {SIZES}"
STATE = f"{INPUTS} before:c after:c dqk:c {SIZES}"
UNIT = f"mixed:c bounds:*i32 dqk:c dmixed:c {SIZES}"


def small():
    """Heads up to 32, which alone compute in f32."""
    for kind in ("ptr", "f32"):
        some = dict(KD=32, VD=32, EXACT=0)
        yield row("deltanet_backward", "delta_scan_backward", kind, SCANNED, **some, BV=32)
        yield row("deltanet_backward", "delta_chunk_backward", kind, CHUNK, **some, BK=32, BV=32)
        yield row("deltanet_backward", "delta_state_backward", kind, STATE, **some, BK=32, BV=32)
        yield row("deltanet_backward", "delta_unit_backward", kind, UNIT, KD=32, BM=16, EXACT=0)


def variants():
    """As deltanet.py."""
    whole = dict(KD=128, VD=128, EXACT=1)
    yield from by_chip("deltanet_backward", "delta_scan_backward", SCANNED, (8, 2), (8, 1), **whole, BV=64)
    yield from by_chip("deltanet_backward", "delta_chunk_backward", CHUNK, (4, 1), (8, 1), **whole, BK=64, BV=64)
    yield from by_chip("deltanet_backward", "delta_state_backward", STATE, (4, 1), (8, 1), **whole, BK=64, BV=64)
    yield row("deltanet_backward", "delta_unit_backward", "ptr", UNIT, KD=128, BM=16, EXACT=1)
    yield from for_tests(small())
