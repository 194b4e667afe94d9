"""The gated delta rule in chunks of C = 64 tokens (Yang et al. 2024), of packed sequences: forward, and a row over kept states.

Of value head h of a sequence, with the state S f32[K, V] before a chunk, c the sums of g = -e^decay softplus(a + bias) from the
chunk's first token on, beta = sigmoid(b), and q and k of length 1 (q over sqrt(K)):

    A = tril(beta k k^T e^(c_i - c_j), -1)    T = (I + A)^-1 beta    P = tril(q k^T e^(c_i - c_j))
    N = T (v - (e^c k) S)                     out = (e^c q) S + P N       S' = e^(c_last) S + (e^(c_last - c) k)^T N

    delta_prepare    T, P and vectors of a chunk and a head: c; what makes q and k of their lengths; the same of k times e^c and
                     times e^(c_last - c), and of q times e^c
    delta_scan       from chunk to chunk: N, and the states before chunks; the state after a sequence, if kept
    delta_out        out of a chunk and a head
    delta_decode     a row of each sequence, token by token: S = e^g S, S += k (beta (v - S^T k))^T, out = S^T q

A program of a grid over tiles of 64 rows takes the chunks, or the sequences, that begin in its tile. A chunk that is not its
sequence's first follows 64 rows of it, so that the state before it has a place of its own, begin // 64. Sums are f32 and begin
anew in each chunk; state and what follows from it are f32, and factors of products have the compute type. Rows of q, k and v
are factors as they are stored, without a way through registers: what they are multiplied by goes to the other factor or to the
result. The scans hold a state as S^T, by rows of v: then what one product makes is a factor of the next out of registers, and
no chunk waits for a way through shared memory.

Shapes: mixed c[M, 2 H K + heads V], H heads of q and of k, then those of v; gates c[M, 2 heads]; decay, bias f32[heads]; bounds
i32[M, 2], equal in padding rows, which reach to the end of a tile; out c[M, heads V]; vectors f32[12, heads, M], the last six
the backward pass's; t, p c[M, heads, 64]; n c[M, heads, V]; states c[M / 64, heads, V, K]; places i32[M]; state f32[S, heads,
K, V]. K is at most KD and V at most VD, and equal to them where EXACT = 1.

Launch: prepare grid (ceil(M / 64), heads, 2); out grid (ceil(M / 64), heads); scan grid (ceil(V / BV), heads, ceil(M / 64)), so
that the programs of a sequence begin together; decode grid (M, heads, ceil(V / BV)).
"""
import triton
import triton.language as tl
from chunks import bounded, chunk_rows, next_chunk, next_sequence, product, tile_rows


@triton.jit
def token_gates(gates, decay, bias, m_C, inside, head, heads):
    """g, beta and a + bias of rows m_C, f32[C]; 0, 0 outside."""
    row = gates + m_C.to(tl.int64) * 2 * heads + head
    before = tl.load(row + heads, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + head)
    softplus = tl.where(before > 20.0, before, tl.log(1.0 + tl.exp(tl.minimum(before, 20.0))))
    g_C = tl.where(inside, bounded(-tl.exp(tl.load(decay + head)) * softplus), 0.0)
    beta_C = tl.where(inside, tl.sigmoid(tl.load(row, mask=inside, other=0.0).to(tl.float32)), 0.0)
    return g_C, beta_C, before


@triton.jit
def by_length(x_CK, scale):
    """What rows are multiplied by to have this length, f32[C]."""
    x = x_CK.to(tl.float32)
    return tl.div_rn(scale, tl.sqrt_rn(tl.sum(x * x, axis=1) + 1e-6))


@triton.jit
def by_squares(x_CC, scale):
    """The same of rows whose products with one another are x."""
    i = tl.arange(0, 64)
    return scale * tl.rsqrt(tl.sum(tl.where(i[:, None] == i[None, :], x_CC, 0.0), axis=1) + 1e-6)


@triton.jit
def decays(c_C):
    """e^(c_i - c_j) where j <= i, else 0. c falls, so that a difference above 0 is of a row past the end, whose c is 0: with
    no limit its power could be infinite, and NaN after a product with that row's zeros."""
    i = tl.arange(0, 64)
    return tl.exp(tl.where(i[:, None] >= i[None, :], tl.minimum(c_C[:, None] - c_C[None, :], 0.0), float("-inf")))


@triton.jit
def inverse(a_CC, EXACT: tl.constexpr):
    """(I + a)^-1 of a strictly lower triangular f32[64, 64]: blocks on the diagonal of 2 to 16 rows, then those below them."""
    # What is rounded to bf16 in the end needs no more than tf32.
    PRECISION: tl.constexpr = "tf32x3" if EXACT else "tf32"
    i, r = tl.arange(0, 64), tl.arange(0, 16)
    same = (i[:, None] // 16) == (i[None, :] // 16)
    blocks = tl.sum(tl.reshape(tl.where(same, a_CC, 0.0), (4, 16, 4, 16)), axis=2)
    x = tl.where(r[:, None] == r[None, :], 1.0, 0.0)[None, :, :] - tl.where((r[:, None] // 2 == r[None, :] // 2)[None, :, :], blocks, 0.0)
    for level in tl.static_range(1, 4):  # [[x, 0], [-y b x, y]] of blocks x and y, and b below x
        below = (r[:, None] // (2 << level) == r[None, :] // (2 << level)) & (r[:, None] // (1 << level) != r[None, :] // (1 << level))
        y = tl.dot(x, tl.where(below[None, :, :], blocks, 0.0), input_precision=PRECISION)
        x -= tl.dot(y, x, input_precision=PRECISION)
    x_CC = tl.where(same, tl.reshape(tl.broadcast_to(x[:, :, None, :], (4, 16, 4, 16)), (64, 64)), 0.0)
    # n^4 = 0, so that (I + n)^-1 = (I - n)(I + n^2).
    n_CC = tl.dot(x_CC, tl.where(same, 0.0, a_CC), input_precision=PRECISION)
    y_CC = x_CC + tl.dot(tl.dot(n_CC, n_CC, input_precision=PRECISION), x_CC, input_precision=PRECISION)
    return y_CC - tl.dot(n_CC, y_CC, input_precision=PRECISION)


@triton.jit
def prepare_chunk(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, M, key_heads, heads, K, V,
                  KD: tl.constexpr):
    """The chunk at or after a row, if one begins before `stop`; the row after it."""
    head, C, i, k_K = tl.program_id(1), 64, tl.arange(0, 64), tl.arange(0, KD)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    each, place = M.to(tl.int64) * heads, vectors + head.to(tl.int64) * M
    first, end, begin, row = next_chunk(bounds, row, stop)
    if begin < end:
        m_C = begin + i
        inside = m_C < end
        seen_K = inside[:, None] & (k_K < K)[None, :]
        q_rows = chunk_rows(mixed + key_head * K, begin, width)
        q_CK = tl.load(q_rows + k_K[None, :], mask=seen_K, other=0.0)
        k_CK = tl.load(q_rows + key_heads * K + k_K[None, :], mask=seen_K, other=0.0)
        g_C, beta_C, _ = token_gates(gates, decay, bias, m_C, inside, head, heads)
        c_C = tl.cumsum(g_C, 0)
        kk_CC = product(k_CK, tl.trans(k_CK))
        rq_C, rk_C = by_squares(product(q_CK, tl.trans(q_CK)), tl.rsqrt(K * 1.0)), by_squares(kk_CC, 1.0)
        d_CC = decays(c_C)
        to_C = place + m_C
        last, e_C = tl.sum(tl.where(m_C == tl.minimum(begin + 64, end) - 1, c_C, 0.0)), tl.exp(c_C)
        tl.store(to_C, c_C, mask=inside)
        tl.store(to_C + each, rq_C, mask=inside)
        tl.store(to_C + 2 * each, rk_C, mask=inside)
        tl.store(to_C + 3 * each, rk_C * e_C, mask=inside)
        tl.store(to_C + 4 * each, rk_C * tl.exp(last - c_C), mask=inside)
        tl.store(to_C + 5 * each, rq_C * e_C, mask=inside)
        p_CC = product(q_CK, tl.trans(k_CK)) * (rq_C[:, None] * rk_C[None, :]) * d_CC
        tl.store(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], p_CC.to(q_CK.dtype), mask=inside[:, None])
        a_CC = kk_CC * ((beta_C * rk_C)[:, None] * rk_C[None, :]) * d_CC
        t_CC = inverse(tl.where(i[:, None] > i[None, :], a_CC, 0.0), EXACT=mixed.dtype.element_ty == tl.float32)
        tl.store(chunk_rows(t + head * 64, begin, heads * 64) + i[None, :], (t_CC * beta_C[None, :]).to(q_CK.dtype), mask=inside[:, None])
    return row


@triton.jit
def delta_prepare(mixed, gates, decay, bias, bounds, vectors, t, p, M, key_heads, heads, K, V,
                  KD: tl.constexpr, VD: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a head that begin in a tile. See the top of the file. Most tiles have one, which the program of (.., .., 0)
    takes without a loop: what is the same in all turns of a loop lies in registers, of which there are too few. That of
    (.., .., 1) takes the others."""
    if EXACT:
        K, V = KD, VD
    row, stop = tile_rows(tl.program_id(0), M)
    if EXACT == 0:
        row = tl.where(tl.program_id(2) == 0, row, stop)
    elif tl.program_id(2) == 0:
        prepare_chunk(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, M, key_heads, heads, K, V, KD)
        row = stop
    else:
        _, _, _, row = next_chunk(bounds, row, stop)
    while row < stop:
        row = prepare_chunk(row, stop, mixed, gates, decay, bias, bounds, vectors, t, p, M, key_heads, heads, K, V, KD)


@triton.jit
def delta_scan(mixed, bounds, vectors, t, n, states, places, state, M, key_heads, heads, K, V, capacity,
               KD: tl.constexpr, VD: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """BV values of a head of the sequences that begin in a tile; capacity 0: no state is kept. See the top of the file."""
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
            s_VK = tl.zeros((BV, KD), tl.float32)
            for begin in range(first, end, 64):
                m_C = begin + i
                inside = m_C < end
                seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
                last = tl.load(of_head + tl.minimum(begin + 64, end) - 1)
                k_CK = tl.load(chunk_rows(mixed + (key_heads + key_head) * K, begin, width) + k_K[None, :], mask=seen_K, other=0.0)
                v_CV = tl.load(chunk_rows(mixed + 2 * key_heads * K + head * V, begin, width) + v_V[None, :], mask=seen_V, other=0.0)
                t_CC = tl.load(chunk_rows(t + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
                reads_C = tl.load(of_head + 3 * each + m_C, mask=inside, other=0.0)
                writes_C = tl.load(of_head + 4 * each + m_C, mask=inside, other=0.0)
                el = k_CK.dtype
                before_VK = s_VK.to(el)
                tl.store(states + begin // 64 * each_state + head * K * V + at_VK, before_VK, mask=seen_VK & (begin > first))
                read_VC = product(before_VK, tl.trans(k_CK)) * -reads_C[None, :]
                n_VC = product(tl.trans(v_CV), tl.trans(t_CC)) + product(read_VC.to(el), tl.trans(t_CC))
                tl.store(chunk_rows(n + head * V, begin, heads * V) + v_V[None, :], tl.trans(n_VC.to(el)), mask=seen_V)
                n_VC = n_VC * writes_C[None, :]
                s_VK = s_VK * tl.exp(last) + product(n_VC.to(el), k_CK)
            if capacity > 0:
                place = tl.load(places + end - 1)
                if place >= 0:
                    to_VK = ((place // capacity).to(tl.int64) * heads + head) * K * V + k_K[None, :] * V + v_V[:, None]
                    tl.store(state + to_VK, s_VK, mask=seen_VK)


@triton.jit
def delta_out(mixed, bounds, vectors, p, n, states, out, M, key_heads, heads, K, V,
              KD: tl.constexpr, VD: tl.constexpr, EXACT: tl.constexpr):
    """The chunks of a head that begin in a tile. See the top of the file."""
    if EXACT:
        K, V = KD, VD
    head, C, i = tl.program_id(1), 64, tl.arange(0, 64)
    k_K, v_V = tl.arange(0, KD), tl.arange(0, VD)
    key_head = head * key_heads // heads
    width = 2 * key_heads * K + heads * V
    row, stop = tile_rows(tl.program_id(0), M)
    while row < stop:
        here = row
        first, end, begin, row = next_chunk(bounds, row, stop)
        if end <= first:
            m_C = here + i
            zeros = tl.zeros((64, VD), out.dtype.element_ty)
            to_CV = out + (m_C.to(tl.int64) * heads + head)[:, None] * V + v_V[None, :]
            tl.store(to_CV, zeros, mask=(m_C < stop)[:, None] & (v_V < V)[None, :])
        elif begin < end:
            m_C = begin + i
            inside = m_C < end
            seen_K, seen_V = inside[:, None] & (k_K < K)[None, :], inside[:, None] & (v_V < V)[None, :]
            q_CK = tl.load(chunk_rows(mixed + key_head * K, begin, width) + k_K[None, :], mask=seen_K, other=0.0)
            from_VK = states + begin // 64 * (heads * K * V).to(tl.int64) + head * K * V + v_V[:, None] * K + k_K[None, :]
            s_VK = tl.load(from_VK, mask=(v_V < tl.where(begin > first, V, 0))[:, None] & (k_K < K)[None, :], other=0.0)
            p_CC = tl.load(chunk_rows(p + head * 64, begin, heads * 64) + i[None, :], mask=inside[:, None], other=0.0)
            n_CV = tl.load(chunk_rows(n + head * V, begin, heads * V) + v_V[None, :], mask=seen_V, other=0.0)
            asks_C = tl.load(vectors + (5 * heads + head).to(tl.int64) * M + m_C, mask=inside, other=0.0)
            out_CV = product(q_CK, tl.trans(s_VK)) * asks_C[:, None] + product(p_CC, n_CV)
            tl.store(chunk_rows(out + head * V, begin, heads * V) + v_V[None, :], out_CV.to(out.dtype.element_ty), mask=seen_V)


@triton.jit
def delta_decode(mixed, gates, decay, bias, places, state, out, key_heads, heads, K, V, capacity,
                 KD: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr):
    """BV values of a head of one row. See the top of the file."""
    if EXACT:
        K = KD
    m, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k_K, v_V = tl.arange(0, KD), tl.program_id(2) * BV + tl.arange(0, BV)
    key_head = head * key_heads // heads
    row = mixed + m * (2 * key_heads * K + heads * V)
    out_V = tl.zeros((BV,), tl.float32)
    place = tl.load(places + m)
    if place >= 0:
        at_KV = state + ((place // capacity).to(tl.int64) * heads + head) * K * V + k_K[:, None] * V + v_V[None, :]
        seen_KV = (k_K < K)[:, None] & (v_V < V)[None, :]
        q_K = tl.load(row + key_head * K + k_K, mask=k_K < K, other=0.0).to(tl.float32)
        k_K_ = tl.load(row + (key_heads + key_head) * K + k_K, mask=k_K < K, other=0.0).to(tl.float32)
        q_K = q_K * tl.div_rn(tl.div_rn(1.0, tl.sqrt_rn(K * 1.0)), tl.sqrt_rn(tl.sum(q_K * q_K) + 1e-6))
        k_K_ = k_K_ * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(k_K_ * k_K_) + 1e-6))
        v = tl.load(row + 2 * key_heads * K + head * V + v_V, mask=v_V < V, other=0.0).to(tl.float32)
        before = tl.load(gates + m * 2 * heads + heads + head).to(tl.float32) + tl.load(bias + head)
        softplus = tl.where(before > 20.0, before, tl.log(1.0 + tl.exp(tl.minimum(before, 20.0))))
        beta = tl.sigmoid(tl.load(gates + m * 2 * heads + head).to(tl.float32))
        s_KV = tl.load(at_KV, mask=seen_KV, other=0.0) * tl.exp(-tl.exp(tl.load(decay + head)) * softplus)
        change_V = beta * (v - tl.sum(s_KV * k_K_[:, None], axis=0))
        s_KV = tl.fma(k_K_[:, None], change_V[None, :], s_KV)
        out_V = tl.sum(s_KV * q_K[:, None], axis=0)
        tl.store(at_KV, s_KV, mask=seen_KV)
    tl.store(out + (m * heads + head) * V + v_V, out_V.to(out.dtype.element_ty), mask=v_V < V)


# What is compiled.

from variants import by_chip, for_tests, row

INPUTS = "mixed:c gates:c decay:*fp32 bias:*fp32"
SIZES = "key_heads:i32 heads:i32 K:i32 V:i32"
PREPARED = f"{INPUTS} bounds:*i32 vectors:*fp32 t:c p:c M:i32 {SIZES}"
SCANNED = f"mixed:c bounds:*i32 vectors:*fp32 t:c n:c states:c places:*i32 state:*fp32 M:i32 {SIZES} capacity:i32"
READ = f"mixed:c bounds:*i32 vectors:*fp32 p:c n:c states:c out:c M:i32 {SIZES}"
DECODED = f"{INPUTS} places:*i32 state:*fp32 out:c {SIZES} capacity:i32"


def small():
    """Heads up to 32, which alone compute in f32."""
    for kind in ("ptr", "f32"):
        some = dict(KD=32, VD=32, EXACT=0)
        yield row("deltanet", "delta_prepare", kind, PREPARED, **some)
        yield row("deltanet", "delta_scan", kind, SCANNED, **some, BV=32)
        yield row("deltanet", "delta_out", kind, READ, **some)
        yield row("deltanet", "delta_decode", kind, DECODED, 4, KD=32, BV=32, EXACT=0)


def variants():
    """Heads of 128, as released models have them."""
    whole = dict(KD=128, VD=128, EXACT=1)
    yield from by_chip("deltanet", "delta_prepare", PREPARED, (4, 1), (8, 1), **whole)
    yield from by_chip("deltanet", "delta_scan", SCANNED, (4, 3), (8, 1), **whole, BV=64)
    yield from by_chip("deltanet", "delta_out", READ, (4, 1), (8, 1), **whole)
    yield row("deltanet", "delta_decode", "ptr", DECODED, 4, KD=128, BV=32, EXACT=1)
    yield from for_tests(small())
