"""The gradient of the gated delta rule (deltanet.py, whose names hold here), after delta_prepare and delta_scan with OUT = 0.

With the gradient G of the state after a chunk, from the last chunk of a sequence to the first, and dO that of out:

    dN = P^T dO + (e^(c_last - c) k) G         G' = e^(c_last) G + (e^c q)^T dO - W^T dN

    delta_scan_backward    dN, and G of each chunk but a sequence's last
    delta_chunk_backward   of a chunk and all heads of a key head: with X = T^T dN,
                           dA = -tril(X N^T, -1), dY = -X S^T, dP = tril(dO N^T), each of which has beta, c, q, k and v in it;
                           dmixed, and the gradients of b and a in their place

Shapes: dout c[M, heads V]; dn c[M, heads, V]; n is u as delta_scan left it; after c[M / 64, heads, K, V] has G at the place of
the next chunk's state; dmixed as mixed. Padding rows get zeros.

Launch: scan grid (ceil(M / 64), heads, ceil(V / BV)); chunk grid (ceil(M / 64), key heads).
"""
import triton
import triton.language as tl
from deltanet import by_length, decays, product, token_gates


@triton.jit
def delta_scan_backward(mixed, bounds, vectors, p, w, dout, dn, after, M, key_heads, heads, K, V,
                        KD: tl.constexpr, VD: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """BV values of a head of the sequences that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    k_K, v_V = tl.arange(0, KD), tl.program_id(2) * BV + tl.arange(0, BV)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    norms = M.to(tl.int64) * heads
    row = tl.program_id(0) * C
    stop = tl.minimum(row + C, M)
    at_KV, each_state = k_K[:, None] * V + v_V[None, :], (heads * K * V).to(tl.int64)
    seen_KV = (k_K < K)[:, None] & (v_V < V)[None, :]
    while row < stop:
        first, end = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
        if end <= first:
            row = stop
        else:
            if first == row:
                g_KV = tl.zeros((KD, BV), tl.float32)
                chunks = (end - first + C - 1) // C
                for back in range(0, chunks):
                    begin = first + (chunks - 1 - back) * C
                    m_C = begin + i
                    inside = m_C < end
                    m, at = m_C.to(tl.int64), m_C.to(tl.int64) * heads + head
                    seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
                    c_C = tl.load(vectors + at, mask=inside, other=0.0)
                    last = tl.load(vectors + (tl.minimum(begin + C, end) - 1).to(tl.int64) * heads + head)
                    p_CC = tl.load(p + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
                    do_CV = tl.load(dout + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
                    el = do_CV.dtype
                    after_KV = g_KV.to(el)
                    if back > 0:
                        to_KV = after + (begin + C) // C * each_state + head * K * V + at_KV
                        tl.store(to_KV, after_KV, mask=seen_KV)
                    by_C = tl.load(vectors + 2 * norms + at, mask=inside, other=0.0) * tl.exp(last - c_C)
                    from_CK = mixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :]
                    k_CK = tl.load(from_CK, mask=seen_K, other=0.0).to(tl.float32) * by_C[:, None]
                    dn_CV = (product(tl.trans(p_CC), do_CV) + product(k_CK.to(el), after_KV)).to(el)
                    tl.store(dn + at[:, None] * V + v_V[None, :], dn_CV, mask=seen_V)
                    by_C = tl.load(vectors + norms + at, mask=inside, other=0.0) * tl.exp(c_C)
                    from_CK = mixed + m[:, None] * width + key_head * K + k_K[None, :]
                    q_CK = tl.load(from_CK, mask=seen_K, other=0.0).to(tl.float32) * by_C[:, None]
                    w_CK = tl.load(w + at[:, None] * K + k_K[None, :], mask=seen_K, other=0.0)
                    g_KV = g_KV * tl.exp(last) + product(tl.trans(q_CK.to(el)), do_CV) - product(tl.trans(w_CK), dn_CV)
            row = tl.minimum(end, stop)


@triton.jit
def unit_backward(d_CK, x_CK, scale):
    """The gradient of x from that of x made as long as `scale`."""
    x = x_CK.to(tl.float32)
    by_C = by_length(x_CK, scale)
    y = x * by_C[:, None]
    along_C = tl.div_rn(tl.sum(d_CK * y, axis=1), scale * scale)
    return by_C[:, None] * (d_CK - along_C[:, None] * y)


@triton.jit
def delta_chunk_backward(mixed, gates, decay, bias, bounds, vectors, t, p, n, dn, dout, before, after, dmixed, M, key_heads, heads, K, V,
                         KD: tl.constexpr, VD: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a key head that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    key_head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    k_K, v_V = tl.arange(0, KD), tl.arange(0, VD)
    each = heads // key_heads
    width = 2 * key_heads * K + heads * V
    row = tl.program_id(0) * C
    stop = tl.minimum(row + C, M)
    at_KV, each_state = k_K[:, None] * V + v_V[None, :], (heads * K * V).to(tl.int64)
    seen_KV = (k_K < K)[:, None] & (v_V < V)[None, :]
    el = mixed.dtype.element_ty
    while row < stop:
        first, end = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
        begin = first + (row - first + C - 1) // C * C
        if end <= first:
            m_C = row + i
            m = m_C.to(tl.int64)
            seen_K = (m_C < stop)[:, None] & (k_K < K)[None, :]
            zeros = tl.zeros((64, KD), el)
            tl.store(dmixed + m[:, None] * width + key_head * K + k_K[None, :], zeros, mask=seen_K)
            tl.store(dmixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :], zeros, mask=seen_K)
            for head in range(key_head * each, (key_head + 1) * each):
                to_CV = dmixed + m[:, None] * width + 2 * key_heads * K + head * V + v_V[None, :]
                tl.store(to_CV, tl.zeros((64, VD), el), mask=(m_C < stop)[:, None] & (v_V < V)[None, :])
                tl.store(gates + m * 2 * heads + head, tl.zeros((64,), el), mask=m_C < stop)
                tl.store(gates + m * 2 * heads + heads + head, tl.zeros((64,), el), mask=m_C < stop)
            row = stop
        elif (begin >= end) | (begin >= stop):
            row = tl.minimum(end, stop)
        else:
            m_C = begin + i
            inside = m_C < end
            m = m_C.to(tl.int64)
            seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
            from_q = mixed + m[:, None] * width + key_head * K + k_K[None, :]
            from_k = mixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :]
            scale = tl.div_rn(1.0, tl.sqrt_rn(K * 1.0))
            dq_CK, dk_CK = tl.zeros((64, KD), tl.float32), tl.zeros((64, KD), tl.float32)
            for head in range(key_head * each, (key_head + 1) * each):
                at = m * heads + head
                g_C, beta_C, before_C = token_gates(gates, decay, bias, m_C, inside, head, heads)
                c_C = tl.load(vectors + at, mask=inside, other=0.0)
                last = tl.load(vectors + (tl.minimum(begin + C, end) - 1).to(tl.int64) * heads + head)
                e_C, rest_C = tl.exp(c_C), tl.where(inside, tl.exp(last - c_C), 0.0)
                n_CV = tl.load(n + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
                do_CV = tl.load(dout + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
                t_CC = tl.load(t + at[:, None] * 64 + i[None, :], mask=inside[:, None], other=0.0)
                dn_CV = tl.load(dn + at[:, None] * V + v_V[None, :], mask=seen_V, other=0.0)
                x_CV = product(tl.trans(t_CC), dn_CV)
                from_v = mixed + m[:, None] * width + 2 * key_heads * K + head * V + v_V[None, :]
                v_CV = tl.load(from_v, mask=seen_V, other=0.0).to(tl.float32)
                dbeta_C = tl.sum(x_CV * v_CV, axis=1)
                to_v = dmixed + m[:, None] * width + 2 * key_heads * K + head * V + v_V[None, :]
                tl.store(to_v, (x_CV * beta_C[:, None]).to(el), mask=seen_V)
                x_CV = x_CV.to(el)

                # Within the chunk: through A and P.
                d_CC = decays(c_C)
                dp_CC = product(do_CV, tl.trans(n_CV)) * d_CC
                da_CC = tl.where(i[:, None] > i[None, :], -product(x_CV, tl.trans(n_CV)), 0.0) * d_CC
                q_CK = tl.load(from_q, mask=seen_K, other=0.0)
                k_CK = tl.load(from_k, mask=seen_K, other=0.0)
                rq_C, rk_C = by_length(q_CK, scale), by_length(k_CK, 1.0)
                kk_CC = product(k_CK, tl.trans(k_CK)) * (rk_C[:, None] * rk_C[None, :])
                qk_CC = product(q_CK, tl.trans(k_CK)) * (rq_C[:, None] * rk_C[None, :])
                dbeta_C += tl.sum(da_CC * kk_CC, axis=1)
                through_CC = da_CC * kk_CC * beta_C[:, None] + dp_CC * qk_CC
                dc_C = tl.sum(through_CC, axis=1) - tl.sum(through_CC, axis=0)
                da_CC = da_CC * beta_C[:, None]
                unit_q, unit_k = (q_CK.to(tl.float32) * rq_C[:, None]), (k_CK.to(tl.float32) * rk_C[:, None])
                dq_CK += product(dp_CC.to(el), unit_k.to(el))
                dk_CK += product(tl.trans(dp_CC).to(el), unit_q.to(el))
                dk_CK += product((da_CC + tl.trans(da_CC)).to(el), unit_k.to(el))

                # By the state before the chunk: through out and W.
                if begin > first:
                    from_S = before + begin // C * each_state + head * K * V + at_KV
                    s_KV = tl.load(from_S, mask=seen_KV, other=0.0)
                    dos_CK = product(do_CV, tl.trans(s_KV)) * e_C[:, None]
                    dq_CK += dos_CK
                    dc_C += tl.sum(dos_CK * unit_q, axis=1)
                    dy_CK = -product(x_CV, tl.trans(s_KV)) * e_C[:, None]
                    along_C = tl.sum(dy_CK * unit_k, axis=1)
                    dbeta_C += along_C
                    dc_C += beta_C * along_C
                    dk_CK += dy_CK * beta_C[:, None]

                # By the state after it.
                if begin + C < end:
                    from_G = after + (begin + C) // C * each_state + head * K * V + at_KV
                    g_KV = tl.load(from_G, mask=seen_KV, other=0.0)
                    ng_CK = product(n_CV, tl.trans(g_KV)) * rest_C[:, None]
                    dk_CK += ng_CK
                    along_C = tl.sum(ng_CK * unit_k, axis=1)
                    dlast = tl.sum(along_C)
                    if begin > first:
                        from_S = before + begin // C * each_state + head * K * V + at_KV
                        s_KV = tl.load(from_S, mask=seen_KV, other=0.0)
                        dlast += tl.exp(last) * tl.sum(g_KV.to(tl.float32) * s_KV.to(tl.float32))
                    dc_C = dc_C - along_C + tl.where(i == C - 1, dlast, 0.0)

                # c sums g from the first token on.
                dg_C = tl.sum(dc_C) - tl.cumsum(dc_C, 0) + dc_C
                db_C = dbeta_C * beta_C * (1.0 - beta_C)
                da_C = -dg_C * tl.exp(tl.load(decay + head)) * tl.sigmoid(before_C)
                tl.store(gates + m * 2 * heads + head, db_C.to(el), mask=inside)
                tl.store(gates + m * 2 * heads + heads + head, da_C.to(el), mask=inside)
            q_CK = tl.load(from_q, mask=seen_K, other=0.0)
            k_CK = tl.load(from_k, mask=seen_K, other=0.0)
            to_q = dmixed + m[:, None] * width + key_head * K + k_K[None, :]
            tl.store(to_q, unit_backward(dq_CK, q_CK, scale).to(el), mask=seen_K)
            to_k = dmixed + m[:, None] * width + (key_heads + key_head) * K + k_K[None, :]
            tl.store(to_k, unit_backward(dk_CK, k_CK, 1.0).to(el), mask=seen_K)
            row = tl.minimum(begin + C, end)


# What is compiled.

from variants import row

SIZES = "M:i32 key_heads:i32 heads:i32 K:i32 V:i32"


def variants():
    """As deltanet.py."""
    for kind, dim, values in (("ptr", 128, 64), ("ptr", 32, 32), ("f32", 32, 32)):
        size, exact, warps = dict(KD=dim, VD=dim), int(dim == 128), 4 if kind == "ptr" and dim == 32 else 8
        scanned = f"mixed:c bounds:*i32 vectors:*fp32 p:c w:c dout:c dn:c after:c {SIZES}"
        yield row("deltanet_backward", "delta_scan_backward", kind, scanned, 4, **size, BV=values, EXACT=exact)
        chunk = "mixed:c gates:c decay:*fp32 bias:*fp32 bounds:*i32 vectors:*fp32 t:c p:c n:c dn:c dout:c before:c after:c dmixed:c"
        yield row("deltanet_backward", "delta_chunk_backward", kind, f"{chunk} {SIZES}", warps, **size, EXACT=exact)
