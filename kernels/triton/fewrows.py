"""A linear layer over few rows, each with its own adapter: what a generated token passes. Bound by reading the weight once.

    fewrows_product   part[p, m, n] = sum_k x[m, k] w[n, k]                 over the blocks of k of piece p
                      low[p, m, j]  = sum_k x[m, k] a[j, k]                 over the columns of k of piece p, where LOW = 1
    fewrows_sum       y[m, n] = (sum_p part[p, m, n] + scale[l, g] sum_r low[m, column + r] b[r, n]) gain[n] + bias[n]
                                + residual[m, n], gain that of dora.py where decomposed[l] = 1, else 1
    fewrows_swiglu    h[m, i] = silu(y[m, i]) y[m, I + i], without a residual, N = 2 I
    fewrows_rope      of y = heads of q, k and v, those of q and k rotated as rope_forward does: q to `out`, k and v to the
                      place of the row in the cache (decode.py), without a residual

l = row_adapter[m] is the adapter of row m (-1: the base alone), g the linear that owns column n, low[m, j] the sum over p.

Shapes: x c[M, K]; w c[N, K]; y, residual c[M, N]; bias c[N]; row_adapter i32[M]; part f32[P, M, N]; low f32[Q, M, W], W at
least the columns of any adapter; factors, ranks and scale as adapters.py has them; vectors and decomposed as dora.py, not read
where has_gains = 0. M is any; K, N and firstColumn = [0,
first1, first2, N] are multiples of 8. residual may be y; out c[M, N] of heads and kv_heads of D features, tables as rope.py's.

Order of sums. The pieces of k depend on K and N alone, a piece is summed in blocks of 16 columns by the tensor cores, one after
the other, and pieces in their order: by fewrows_sum, or, where SUMS = 1, by the product, which leaves a single part. What
adapters add is a product of 16 rows for each adapter that has some of them, of which each row takes its own. So a row's
numbers depend on no other row and on no number of rows. What follows a sum in its kernel reads it as the compute type has it.

The weight's rows are the tall side of the product: 64 or 128 of them against 8 to 256 rows of x.

`rows` is x. DESC variants take tensor descriptors: rows [BM, BK] and w [BN, BK].

Launch: fewrows_product grid (lows + tiles): lows = ceil(M / 16) ceil(W / 16) ceil(K / 1024) where LOW = 1, else 0; tiles =
ceil(N / BN) P ceil(M / BM), P = ceil(ceil(K / BK) / piece), with SUMS = 1 a P of 1 here. fewrows_sum grid (sum over g of
ceil(columns of g / BN), ceil(M / BM)); fewrows_swiglu grid (ceil(I / BN), ceil(M / BM)); fewrows_rope grid (heads + 2
kv_heads, ceil(M / BM)).
"""
import triton
import triton.language as tl

from adapters import A, B, ends_of, factor, factor_rows, pick, ranks_of
from decode import cache_row
from dora import GAIN_AT
from rope import pairs_of
from tile import load_tile


@triton.jit
def low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G,
             LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr):
    """One piece of LJ columns of s of LM rows, adapter by adapter."""
    tiles_m, tiles_j = tl.cdiv(M, LM), tl.cdiv(W, LJ)
    m, j0 = tile % tiles_m * LM + tl.arange(0, LM), tile // tiles_m % tiles_j * LJ
    part = tile // (tiles_m * tiles_j)
    j = j0 + tl.arange(0, LJ)
    here = tl.load(row_adapter + m, mask=m < M, other=-1)
    x_row = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    left = here
    adapter = tl.max(left, axis=0)
    while adapter >= 0:
        three = ranks_of(ranks, ranks_stride, adapter, G)
        ends = ends_of(three)
        end0, end1, width = ends
        if j0 < width:
            a_row, there = factor_rows(factors, factors_stride, adapter, j[:, None], three, ends, K, A, x.dtype.element_ty)
            acc = tl.zeros((LM, LJ), tl.float32)
            for k0 in tl.range(part * PART, tl.minimum(K, part * PART + PART), LK, num_stages=3):
                k = k0 + tl.arange(0, LK)
                x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
                a_JK = tl.load(a_row + k[None, :], mask=there & (k < K)[None, :], other=0.0)
                acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
            at = (part * M + m).to(tl.int64)[:, None] * W + j[None, :]
            tl.store(low + at, acc, mask=(here == adapter)[:, None] & (j < width)[None, :])
        left = tl.where(left == adapter, -1, left)
        adapter = tl.max(left, axis=0)


@triton.jit
def fewrows_product(x, rows, w, part, low, factors, ranks, row_adapter, factors_stride, ranks_stride, M, N, K, W, G, piece, lows,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, LOW: tl.constexpr, DESC: tl.constexpr,
                    LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    tile = tl.program_id(0)
    if LOW:
        if tile < lows:
            low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART)
            return
        tile -= lows
    tiles_n, blocks = tl.cdiv(N, BN), tl.cdiv(K, BK)
    pieces = tl.cdiv(blocks, piece)
    if SUMS:  # rows of tiles that read the same weight follow each other
        tiles_m = tl.cdiv(M, BM)
        p, tile_m, tile_n = 0, tile % tiles_m, tile // tiles_m
    else:
        p, tile_m, tile_n = tile // tiles_n % pieces, tile // (tiles_n * pieces), tile % tiles_n
    m0, n0 = tile_m * BM, tile_n * BN
    first = p * piece
    total = tl.zeros((BN, BM), tl.float32)
    if SUMS:
        acc = tl.zeros((BN, BM), tl.float32)
        tl.assume(blocks > 0)
        for block in range(0, blocks):
            w_NK, x_MK = load_tile(w, n0, block * BK, N, K, BN, BK, DESC), load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
            acc = tl.dot(w_NK, x_MK.T, acc, input_precision="ieee")
            if (block + 1) % piece == 0:
                total += acc
                acc = tl.zeros((BN, BM), tl.float32)
        if blocks % piece != 0:
            total += acc
    else:
        end = tl.minimum(first + piece, blocks)
        tl.assume(first < end)  # else ptxas runs the products of large tiles one by one (its note C7515)
        for block in range(first, end):
            w_NK, x_MK = load_tile(w, n0, block * BK, N, K, BN, BK, DESC), load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
            total = tl.dot(w_NK, x_MK.T, total, input_precision="ieee")
    n, m = n0 + tl.arange(0, BN), m0 + tl.arange(0, BM)
    at = (p * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(part + at, total, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
               m, n, g, first, last, M, N, pieces, low_pieces, W, G,
               BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, BIAS: tl.constexpr, LORA: tl.constexpr, dtype: tl.constexpr):
    """f32[BM, BN]: y without its residual at rows m and columns n of linear g, which has columns first .. last."""
    inside = (m < M)[:, None] & (n < last)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for p in range(pieces):
        acc += tl.load(part + (p * M).to(tl.int64) * N + at, mask=inside, other=0.0)
    if LORA:
        here = tl.load(row_adapter + m, mask=m < M, other=-1)
        left = here
        adapter = tl.max(left, axis=0)
        while adapter >= 0:
            three = ranks_of(ranks, ranks_stride, adapter, G)
            end0, end1, width = ends_of(three)
            rank, column = pick(g, three), pick(g, (0, end0, end1))
            if rank > 0:
                mine = here == adapter
                b = factor(factors, factors_stride, adapter, g, rank, B, dtype)
                out = tl.zeros((BM, BN), tl.float32)
                for r0 in range(0, rank, RB):
                    r = r0 + tl.arange(0, RB)
                    s_MR = tl.zeros((BM, RB), tl.float32)
                    for p in range(low_pieces):
                        low_at = (p * M + m).to(tl.int64)[:, None] * W + column + r[None, :]
                        s_MR += tl.load(low + low_at, mask=mine[:, None] & (r < rank)[None, :], other=0.0)
                    b_RN = tl.load(b + r.to(tl.int64)[:, None] * (last - first) + (n - first)[None, :], mask=(r < rank)[:, None] & (n < last)[None, :], other=0.0)
                    high = s_MR.to(b_RN.dtype)
                    out = tl.dot(high, b_RN, out, input_precision="ieee")
                    if b_RN.dtype == tl.bfloat16:  # what rounding took of s
                        out = tl.dot((s_MR - high.to(tl.float32)).to(b_RN.dtype), b_RN, out, input_precision="ieee")
                out *= tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g)
                acc += tl.where(mine[:, None], out, 0.0)  # another's factors may hold anything
                slot = tl.cast(adapter, tl.int64)
                has_gain = tl.load(decomposed + slot * decomposed_stride, mask=has_gains != 0, other=0)
                if has_gain != 0:
                    gain = tl.load(vectors + slot * vectors_stride + GAIN_AT).to(tl.pointer_type(tl.float32))
                    gain_N = tl.load(gain + n, mask=n < last, other=1.0)
                    acc = tl.where(mine[:, None], acc * gain_N[None, :], acc)
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
    if BIAS:
        acc += tl.load(bias + n, mask=n < last, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def linear_at(n, first1, first2, N):
    """The linear that owns column n, and its first and last column."""
    g = (n >= first1).to(tl.int32) + (n >= first2).to(tl.int32)
    return g, pick(g, (0, first1, first2)), pick(g, (first1, first2, N))


@triton.jit
def fewrows_sum(part, low, y, bias, residual, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                M, N, pieces, low_pieces, W, first1, first2, G,
                BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr):
    """BN columns of BM rows, all of one linear. See the top of the file."""
    N, first1, first2 = N // 8 * 8, first1 // 8 * 8, first2 // 8 * 8  # as they are
    block, m = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM)
    before1 = tl.cdiv(first1, BN)
    before2 = before1 + tl.cdiv(first2 - first1, BN)
    g = (block >= before1).to(tl.int32) + (block >= before2).to(tl.int32)
    block -= pick(g, (0, before1, before2))
    first, last = pick(g, (0, first1, first2)), pick(g, (first1, first2, N))
    n = first + block * BN + tl.arange(0, BN)
    acc = columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                     m, n, g, first, last, M, N, pieces, low_pieces, W, G, BM, BN, RB, BIAS, LORA, y.dtype.element_ty)
    inside = (m < M)[:, None] & (n < last)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def fewrows_swiglu(part, low, h, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                   M, N, pieces, low_pieces, W, first1, first2, G,
                   BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, BIAS: tl.constexpr, LORA: tl.constexpr):
    """BN columns of BM rows of gate and of up. See the top of the file."""
    N, first1, first2 = N // 16 * 16, first1 // 8 * 8, first2 // 8 * 8  # as they are
    I = N // 2
    i, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (m < M)[:, None] & (i < I)[None, :]
    dtype: tl.constexpr = h.dtype.element_ty
    g, first, last = linear_at(tl.program_id(0) * BN, first1, first2, N)
    gate = columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                      m, i, g, first, last, M, N, pieces, low_pieces, W, G, BM, BN, RB, BIAS, LORA, dtype)
    g, first, last = linear_at(I + tl.program_id(0) * BN, first1, first2, N)
    up = columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                    m, I + i, g, first, last, M, N, pieces, low_pieces, W, G, BM, BN, RB, BIAS, LORA, dtype)
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    tl.store(h + m.to(tl.int64)[:, None] * I + i[None, :], (gate * tl.sigmoid(gate) * up).to(dtype), mask=inside)


@triton.jit
def fewrows_rope(part, low, out, cache, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                 M, N, pieces, low_pieces, W, first1, first2, G,
                 positions, places, pages, cos, sin, q_scale, q_weight, k_weight, heads, kv_heads, D, R, scaled, eps,
                 BM: tl.constexpr, HALF: tl.constexpr, RB: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, LORA: tl.constexpr):
    """One head of BM rows. See the top of the file."""
    N, first1, first2 = N // 8 * 8, first1 // 8 * 8, first2 // 8 * 8  # as they are
    if EXACT:
        D = D // (2 * HALF) * (2 * HALF)
    half = D // 2
    head, m = tl.program_id(0), tl.program_id(1) * BM + tl.arange(0, BM)
    i = tl.arange(0, HALF)
    lower, upper = pairs_of(i, R, half, EXACT)
    dtype: tl.constexpr = out.dtype.element_ty
    g, first, last = linear_at(head * D, first1, first2, N)
    beyond = last + i  # features that a head has not
    lo = columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                    m, tl.where(i < half, head * D + lower, beyond), g, first, last, M, N, pieces, low_pieces, W, G, BM, HALF, RB, BIAS, LORA, dtype)
    hi = columns_of(part, low, bias, factors, scale, ranks, row_adapter, vectors, decomposed, factors_stride, scale_stride, ranks_stride, vectors_stride, decomposed_stride, has_gains,
                    m, tl.where(i < half, head * D + upper, beyond), g, first, last, M, N, pieces, low_pieces, W, G, BM, HALF, RB, BIAS, LORA, dtype)
    lo, hi = lo.to(dtype).to(tl.float32), hi.to(dtype).to(tl.float32)
    is_q, is_v = head < heads, head >= heads + kv_heads
    inside = (m < M)[:, None] & (i < half)[None, :]
    x_lo, x_hi = lo, hi
    if NORM:
        mean = tl.div_rn(tl.sum(lo * lo + hi * hi, axis=1), D.to(tl.float32))
        rstd = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, None]
        weight = tl.where(is_q, q_weight, k_weight)
        x_lo = tl.load(weight + lower, mask=i < half, other=0.0)[None, :] * (lo * rstd)
        x_hi = tl.load(weight + upper, mask=i < half, other=0.0)[None, :] * (hi * rstd)
    position = tl.load(positions + m, mask=m < M, other=0)
    angle = position.to(tl.int64)[:, None] * R + i[None, :]
    rotated = (i < R)[None, :] & (m < M)[:, None]
    cos_MI, sin_MI = tl.load(cos + angle, mask=rotated, other=1.0), tl.load(sin + angle, mask=rotated, other=0.0)
    by = tl.load(q_scale + position, mask=(m < M) & (scaled != 0) & is_q, other=1.0)[:, None]
    y_lo, y_hi = (x_lo * cos_MI - x_hi * sin_MI) * by, (x_hi * cos_MI + x_lo * sin_MI) * by
    y_lo, y_hi = tl.where(is_v, lo, y_lo).to(dtype), tl.where(is_v, hi, y_hi).to(dtype)
    if is_q:
        row = out + m.to(tl.int64)[:, None] * N + head * D
        tl.store(row + lower[None, :], y_lo, mask=inside)
        tl.store(row + upper[None, :], y_hi, mask=inside)
    else:
        place = tl.load(places + m, mask=m < M, other=-1)
        row = cache + cache_row(pages, place, place >= 0).to(tl.int64)[:, None] * (2 * kv_heads * D) + (head - heads) * D
        kept = inside & (place >= 0)[:, None]
        tl.store(row + lower[None, :], y_lo, mask=kept)
        tl.store(row + upper[None, :], y_hi, mask=kept)


# What is compiled.

# BN, BK, warps and stages of fewrows_product by the rows that it takes at once; with SUMS for many rows. On Hopper by the
# weight's bytes a second: 3.3 TB/s of a 7B's at 64 rows, where cuBLAS has 3.6.
BLOCKS = {
    "tma": {16: (64, 64, 4, 6), 64: (64, 64, 4, 6), 128: (64, 64, 4, 4), 256: (128, 64, 8, 4)},
    "ptr": {16: (64, 64, 4, 4), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    "f32": {16: (64, 32, 4, 2), 64: (64, 32, 4, 2)},
}
MANY = {"tma": (128, 128, 64, 8, 4), "ptr": (128, 128, 32, 8, 3), "f32": (64, 64, 32, 4, 2)}  # BM, BN, BK, warps, stages
# Rows, columns and columns of x that a product of s takes, and columns of x of a piece of it.
LOW = dict(LM=16, LJ=16, LK=128, PART=1024)
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}
# HALF and EXACT of fewrows_rope, as of rope.py.
HALVES = {"bf16": ((32, 1), (64, 1), (128, 0)), "fp32": ((128, 0),)}
OF_DTYPE = "x rows w y h out cache bias residual".split()
POINTERS = {"factors": "*i64", "vectors": "*i64", "decomposed": "*i32", "ranks": "*i32", "row_adapter": "*i32", "positions": "*i32", "places": "*i32", "pages": "*i32", "eps": "fp32"}
POINTERS |= dict.fromkeys("scale part low cos sin q_scale q_weight k_weight".split(), "*fp32")
SUM = "bias factors scale ranks row_adapter vectors decomposed factors_stride scale_stride ranks_stride vectors_stride decomposed_stride has_gains M N pieces low_pieces W first1 first2 G"
NAMES = {
    "fewrows_product": "x rows w part low factors ranks row_adapter factors_stride ranks_stride M N K W G piece lows",
    "fewrows_sum": SUM.replace("bias", "part low y bias residual"),
    "fewrows_swiglu": f"part low h {SUM}",
    "fewrows_rope": f"part low out cache {SUM} positions places pages cos sin q_scale q_weight k_weight heads kv_heads D R scaled eps",
}


def made(kernel, kinds, arch, dtype, warps, stages, **constants):
    signature = {name: POINTERS.get(name) or (f"*{dtype}" if name in OF_DTYPE else "i32") for name in NAMES[kernel].split()}
    return dict(module="fewrows", kernel=kernel, kinds=kinds, launch={}, arch=arch, dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def products(kind, BM, BN, BK, warps, stages, sums):
    """With and without low-rank products; of many rows on Hopper by tensor descriptors."""
    desc = int(kind == "tma" and BM >= 128)
    for low in (0, 1):
        found = made("fewrows_product", [kind], ARCH[kind], DTYPE[kind], warps, stages, BM=BM, BN=BN, BK=BK, SUMS=sums, LOW=low, DESC=desc, **LOW)
        if desc:
            found["signature"] |= {"rows": f"tensordesc<bf16[{BM},{BK}]>", "w": f"tensordesc<bf16[{BN},{BK}]>"}
        yield found


def variants():
    for kind, blocks in BLOCKS.items():
        for BM, (BN, BK, warps, stages) in blocks.items():
            yield from products(kind, BM, BN, BK, warps, stages, 0)
        yield from products(kind, *MANY[kind], 1)
    for kinds, dtype in ((["tma", "ptr"], "bf16"), (["f32"], "fp32")):
        for bias in (0, 1):
            for lora in (0, 1):
                for residual in (0, 1):
                    yield made("fewrows_sum", kinds, "sm_80", dtype, 4, 1, BM=16, BN=256, RB=16, BIAS=bias, RESIDUAL=residual, LORA=lora)
                yield made("fewrows_swiglu", kinds, "sm_80", dtype, 4, 1, BM=16, BN=128, RB=16, BIAS=bias, LORA=lora)
                for half, exact in HALVES[dtype]:
                    for norm in (0, 1):
                        yield made("fewrows_rope", kinds, "sm_80", dtype, 4, 1, BM=16, HALF=half, RB=16, EXACT=exact, NORM=norm, BIAS=bias, LORA=lora)
