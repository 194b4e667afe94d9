"""Causal attention within packed sequences (flash attention): forward, and a backward that gives the same bits every time.

    attention_forward       out[m] = sum_n p[m, n] v[n],  p[m, n] = exp(scale q[m] k[n] - lse[m]) over the rows n that m sees
    attention_backward_q    delta[m] = sum(dout[m] out[m]);  dq[m] = scale sum_n ds[m, n] k[n],
                            ds[m, n] = p[m, n] (dout[m] v[n] - delta[m])
    attention_backward_kv   dv[n] = sum_m p[m, n] dout[m],  dk[n] = scale sum_m ds[m, n] q[m], over the query heads
                            that share n's head

With CAP = 1 scores s = scale q k become cap tanh(s / cap), and ds is multiplied by 1 - tanh(s / cap)^2.

Row m sees rows max(first, m - window + 1) .. m of its sequence, bounds[m] = (first, one past the last), window 0 = no limit; a
row with equal bounds is padding: it sees nothing, nothing sees it, its out, dq, dk and dv are 0. Query head h reads key head h
C / Q.

Shapes: qkv, dqkv c[M, (Q + 2C) D], heads of q, then k, then v; out, dout c[M, Q D]; lse (natural log), delta f32[Q, M]; bounds
i32[M, 2]. Needs: M a multiple of 128, sequences one after another, scale > 0, all of qkv and dout finite, 16-byte alignment. D
is HEAD_DIM where EXACT = 1, else any number up to it (slower: for tests).

Launch, in this order: q_rows and kv_rows are both qkv, do_rows is dout; attention_backward_kv reads the delta of
the launch before it.
    attention_forward       grid (M / BM, Q)
    attention_backward_q    grid (M / BM, Q)
    attention_backward_kv   grid (M / BN, C); with MAKES = 1 and then 2 where a program has no registers for dk and dv
With PARTS = 1 its grid is (M / BN, C splits): a program sums over one of `splits` equal shares of the query heads, where few
key heads would leave a GPU idle, and writes to parts f32[splits, M, 2C D], scratch, which
    attention_sum_keys      grid (M, ceil(2C D / BLOCK))
adds up. On Hopper attention_hopper.py does the same, launched alike.

Why so: scores are recomputed for dq and for dk, dv apart, because a dq summed over key tiles of several programs would need
atomics, whose order changes. Tiles begin at multiples of their height, a divisor of 128 like an adapter's first row, and what a
tile visits follows from its own rows' bounds: what else is in the batch changes no bit. Each sum runs over tiles in the order
of rows, and a tile of keys that a row does not see leaves its sums as they are, to the bit. Programs with the longest loops
start first.
"""
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # a maximum before the first score: finite, so that no inf - inf arises


@triton.jit
def row_offsets(row0, head, heads, D, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Places of a head's part of rows in a matrix [M, heads D], int64."""
    row = row0 + tl.arange(0, ROWS)
    return row.to(tl.int64)[:, None] * (heads * D) + (head * D + tl.arange(0, HEAD_DIM))[None, :]


@triton.jit
def load_rows(base, row0, head, heads, D, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr):
    """[ROWS, HEAD_DIM]: a head's part of rows of a matrix [M, heads D], zeros beyond D. M is a multiple of ROWS."""
    if EXACT:
        return tl.load(base + row_offsets(row0, head, heads, D, ROWS, HEAD_DIM))
    else:
        return tl.load(base + row_offsets(row0, head, heads, D, ROWS, HEAD_DIM), mask=(tl.arange(0, HEAD_DIM) < D)[None, :], other=0.0)


@triton.jit
def store_rows(base, row0, head, heads, D, value, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr):
    """Rounds f32[ROWS, HEAD_DIM] to the matrix's type and writes it as a head's part of rows."""
    at = base + row_offsets(row0, head, heads, D, ROWS, HEAD_DIM)
    if EXACT:
        tl.store(at, value.to(base.dtype.element_ty))
    else:
        tl.store(at, value.to(base.dtype.element_ty), mask=(tl.arange(0, HEAD_DIM) < D)[None, :])


@triton.jit
def place(heads):
    """Tile and head of a program: all heads of a tile come before the next tile."""
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    return program // heads, program % heads


@triton.jit
def first_seen(bounds, m, M, window):
    """i32: the first row that each of rows m sees, M for padding; and whether the row is one of a sequence."""
    first, last = tl.load(bounds + 2 * m), tl.load(bounds + 2 * m + 1)
    begin = tl.maximum(first, tl.where(window > 0, m - window + 1, 0))
    return tl.where(first < last, begin, M), first < last


@triton.jit
def seen_until(bounds, n, M, window):
    """i32: one past the last row that sees each of rows n, 0 for padding; and whether the row is one of a sequence."""
    first, last = tl.load(bounds + 2 * n), tl.load(bounds + 2 * n + 1)
    end = tl.minimum(last, tl.where(window > 0, n + tl.minimum(window, M), M))
    return tl.where(first < last, end, 0), first < last


@triton.jit
def key_range(m, begin, real, BN: tl.constexpr):
    """Keys that a tile of queries m sees: rows lo .. hi, lo at a key tile; every row of a sequence sees all of whole ..
    m[0]."""
    lo = tl.min(begin) // BN * BN
    hi = tl.max(tl.where(real, m + 1, 0))
    whole = tl.max(tl.where(real, begin, 0))
    return lo, hi, whole


@triton.jit
def capped(s, scale, cap, CAP: tl.constexpr):
    """Scores, and what makes powers of 2 of them."""
    if CAP:
        return cap * (2.0 * tl.sigmoid(2.0 * (scale / cap) * s) - 1.0), LOG2E  # tanh
    else:
        return s, scale * LOG2E


@triton.jit
def cap_slope(ds, s, cap, CAP: tl.constexpr):
    """The gradient of scores before the cap, from that after it."""
    if CAP:
        share = s / cap
        return ds * (1.0 - share * share)
    else:
        return ds


@triton.jit
def attention_forward(q_rows, kv_rows, bounds, out, lse, M, D, heads, kv_heads, scale, window, cap,
                      BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, CAP: tl.constexpr):
    """One head of BM rows. See the top of the file."""
    if EXACT:
        D = HEAD_DIM
    all_heads = heads + 2 * kv_heads
    tile, head = place(heads)
    k_head = heads + head * kv_heads // heads
    m0 = M - BM - tile * BM  # later rows see more
    m = m0 + tl.arange(0, BM)
    begin, real = first_seen(bounds, m, M, window)
    lo, hi, whole = key_range(m, begin, real, BN)

    q = load_rows(q_rows, m0, head, all_heads, D, BM, HEAD_DIM, EXACT)
    acc = tl.zeros((BM, HEAD_DIM), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    high = tl.full((BM,), LOWEST, tl.float32)
    for n0 in tl.range(lo, hi, BN):
        k = load_rows(kv_rows, n0, k_head, all_heads, D, BN, HEAD_DIM, EXACT)
        s, to_log2 = capped(tl.dot(q, k.T, input_precision="ieee"), scale, cap, CAP)
        if (n0 < whole) | (n0 + BN > m0 + 1):
            n = n0 + tl.arange(0, BN)
            s = tl.where((n[None, :] >= begin[:, None]) & (n[None, :] <= m[:, None]), s, float("-inf"))
        higher = tl.maximum(high, tl.max(s, 1) * to_log2)
        p = tl.exp2(tl.fma(s, to_log2, -higher[:, None]))
        less = tl.exp2(high - higher)
        total = tl.fma(total, less, tl.sum(p, 1))
        acc = acc * less[:, None]
        v = load_rows(kv_rows, n0, k_head + kv_heads, all_heads, D, BN, HEAD_DIM, EXACT)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        high = higher
    total = tl.where(real, total, 1.0)
    tl.store(lse + head.to(tl.int64) * M + m, tl.where(real, (high + tl.log2(total)) * LN2, 0.0))
    store_rows(out, m0, head, heads, D, tl.where(real[:, None], acc / total[:, None], 0.0), BM, HEAD_DIM, EXACT)


@triton.jit
def attention_backward_q(q_rows, kv_rows, do_rows, bounds, out, lse, delta, dqkv, M, D, heads, kv_heads, scale, window, cap,
                         BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, CAP: tl.constexpr):
    """dq and delta of one head of BM rows. See the top of the file."""
    if EXACT:
        D = HEAD_DIM
    all_heads = heads + 2 * kv_heads
    tile, head = place(heads)
    k_head = heads + head * kv_heads // heads
    m0 = M - BM - tile * BM
    m = m0 + tl.arange(0, BM)
    begin, real = first_seen(bounds, m, M, window)
    lo, hi, whole = key_range(m, begin, real, BN)

    q = load_rows(q_rows, m0, head, all_heads, D, BM, HEAD_DIM, EXACT)
    do = load_rows(do_rows, m0, head, heads, D, BM, HEAD_DIM, EXACT)
    row = head.to(tl.int64) * M + m
    lse_M = tl.load(lse + row) * LOG2E
    delta_M = tl.sum(do.to(tl.float32) * load_rows(out, m0, head, heads, D, BM, HEAD_DIM, EXACT).to(tl.float32), 1)
    tl.store(delta + row, delta_M)
    dq = tl.zeros((BM, HEAD_DIM), tl.float32)
    for n0 in tl.range(lo, hi, BN):
        k = load_rows(kv_rows, n0, k_head, all_heads, D, BN, HEAD_DIM, EXACT)
        v = load_rows(kv_rows, n0, k_head + kv_heads, all_heads, D, BN, HEAD_DIM, EXACT)
        s, to_log2 = capped(tl.dot(q, k.T, input_precision="ieee"), scale, cap, CAP)
        dp = tl.dot(do, v.T, input_precision="ieee")
        p = tl.exp2(tl.fma(s, to_log2, -lse_M[:, None]))
        if (n0 < whole) | (n0 + BN > m0 + 1):
            n = n0 + tl.arange(0, BN)
            p = tl.where((n[None, :] >= begin[:, None]) & (n[None, :] <= m[:, None]), p, 0.0)
        ds = cap_slope(p * (dp - delta_M[:, None]), s, cap, CAP)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    store_rows(dqkv, m0, head, all_heads, D, tl.where(real[:, None], dq * scale, 0.0), BM, HEAD_DIM, EXACT)


@triton.jit
def attention_backward_kv(q_rows, kv_rows, do_rows, bounds, lse, delta, dqkv, parts, M, D, heads, kv_heads, splits, scale, window, cap,
                          BM: tl.constexpr, BN: tl.constexpr, HEAD_DIM: tl.constexpr, EXACT: tl.constexpr, CAP: tl.constexpr, MAKES: tl.constexpr, PARTS: tl.constexpr):
    """dk (MAKES = 1), dv (2) or both (0) of one key head of BN rows. Scores lie transposed: p and ds are left operands as they
    are. See the top of the file."""
    if EXACT:
        D = HEAD_DIM
    all_heads = heads + 2 * kv_heads
    if PARTS:
        tile, share = place(kv_heads * splits)
        k_head, split = share // splits, share % splits
        group = heads // kv_heads // splits
    else:
        tile, k_head = place(kv_heads)
        share, split, group = k_head, 0, heads // kv_heads
    n0 = tile * BN  # earlier rows are seen by more
    n = n0 + tl.arange(0, BN)
    end, real = seen_until(bounds, n, M, window)
    lo = tl.min(tl.where(real, n, M)) // BM * BM
    tiles = tl.cdiv(tl.maximum(tl.max(end) - lo, 0), BM)
    whole = tl.min(tl.where(real, end, M))  # rows n0 + BN - 1 .. whole see every key of a sequence

    k = load_rows(kv_rows, n0, heads + k_head, all_heads, D, BN, HEAD_DIM, EXACT)
    v = load_rows(kv_rows, n0, heads + kv_heads + k_head, all_heads, D, BN, HEAD_DIM, EXACT)
    dk = tl.zeros((BN, HEAD_DIM), tl.float32)
    dv = tl.zeros((BN, HEAD_DIM), tl.float32)
    for i in tl.range(group * tiles):
        head = share * group + i // tiles
        m0 = lo + i % tiles * BM
        m = m0 + tl.arange(0, BM)
        row = head.to(tl.int64) * M + m
        q = load_rows(q_rows, m0, head, all_heads, D, BM, HEAD_DIM, EXACT)
        do = load_rows(do_rows, m0, head, heads, D, BM, HEAD_DIM, EXACT)
        s, to_log2 = capped(tl.dot(k, q.T, input_precision="ieee"), scale, cap, CAP)
        if MAKES != 2:
            dp = tl.dot(v, do.T, input_precision="ieee")
        p = tl.exp2(tl.fma(s, to_log2, (tl.load(lse + row) * -LOG2E)[None, :]))
        if (m0 < n0 + BN - 1) | (m0 + BM > whole):
            p = tl.where((m[None, :] >= n[:, None]) & (m[None, :] < end[:, None]), p, 0.0)
        if MAKES != 1:
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        if MAKES != 2:
            ds = cap_slope(p * (dp - tl.load(delta + row)[None, :]), s, cap, CAP)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    dk, dv = tl.where(real[:, None], dk * scale, 0.0), tl.where(real[:, None], dv, 0.0)
    if PARTS:
        row0, part_heads = split * M + n0, 2 * kv_heads
        if MAKES != 2:
            store_rows(parts, row0, k_head, part_heads, D, dk, BN, HEAD_DIM, EXACT)
        if MAKES != 1:
            store_rows(parts, row0, kv_heads + k_head, part_heads, D, dv, BN, HEAD_DIM, EXACT)
    else:
        if MAKES != 2:
            store_rows(dqkv, n0, heads + k_head, all_heads, D, dk, BN, HEAD_DIM, EXACT)
        if MAKES != 1:
            store_rows(dqkv, n0, heads + kv_heads + k_head, all_heads, D, dv, BN, HEAD_DIM, EXACT)


@triton.jit
def attention_sum_keys(parts, dqkv, M, heads, kv_heads, D, splits, BLOCK: tl.constexpr):
    """dk and dv of rows as the sums of their parts, in their order."""
    D = D // 8 * 8  # as it is: tells the compiler that rows are aligned
    width = 2 * kv_heads * D
    m, w = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + (split * M + m) * width + w, mask=w < width, other=0.0)
    tl.store(dqkv + m * ((heads + 2 * kv_heads) * D) + heads * D + w, total.to(dqkv.dtype.element_ty), mask=w < width)
