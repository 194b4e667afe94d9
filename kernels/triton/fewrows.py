"""A linear layer over few rows, each with its own adapter: what a generated token passes. Bound by reading the weight once.

    fewrows_product   part[p, m, n] = sum_k x[m, k] w[n, k]                 over the blocks of k of piece p
    fewrows_low       low[p, m, j]  = sum_k x[m, k] a[j, k]                 over the columns of k of piece p
    fewrows_sum       y[m, n] = sum_p part[p, m, n] + bias[n] + residual[m, n] + scale[l, g] sum_r low[m, column + r] b[r, n]

l = row_adapter[m] is the adapter of row m (-1: the base alone), g the linear that owns column n, low[m, j] the sum over p.

Shapes: x c[M, K]; w c[N, K]; y, residual c[M, N]; bias c[N]; row_adapter i32[M]; part f32[P, M, N]; low f32[Q, M, W], W at
least the columns of any adapter; factors, ranks and scale as adapters.py has them. M is any; K, N and firstColumn = [0,
first1, first2, N] are multiples of 8. residual may be y.

Order of sums. The pieces of k depend on K and N alone, a piece is summed in blocks of 16 columns by the tensor cores, one after
the other, and pieces in their order. What adapters add is a product of 16 rows for each adapter that has some of them, of which
each row takes its own. So a row's numbers depend on no other row and on no number of rows.

The weight's rows are the tall side of the product: 64 or 128 of them against 8 to 256 rows of x.

Launch: fewrows_product grid (ceil(N / BN), P, ceil(M / BM)), P = ceil(ceil(K / BK) / piece); fewrows_low grid
(ceil(M / BM), ceil(W / BJ), Q), Q = ceil(K / PART); fewrows_sum grid (sum over g of ceil(columns of g / BN), ceil(M / BM)).
"""
import triton
import triton.language as tl

from adapters import A, B, ends_of, factor, factor_rows, pick, ranks_of


@triton.jit
def fewrows_product(x, w, part, M, N, K, piece, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """One piece of the product of BM rows and BN columns. See the top of the file."""
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * piece
    last = tl.minimum(first + piece, tl.cdiv(K, BK))
    w_row = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    x_row = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    acc = tl.zeros((BN, BM), tl.float32)
    for block in range(first, last):
        k = block * BK + tl.arange(0, BK)
        w_NK = tl.load(w_row + k[None, :], mask=(k < K)[None, :], other=0.0)
        x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
        acc = tl.dot(w_NK, x_MK.T, acc, input_precision="ieee")
    at = (tl.program_id(1) * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(part + at, acc, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def fewrows_low(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, M, K, W, G,
                BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, PART: tl.constexpr):
    """One piece of BJ columns of s of BM rows, adapter by adapter. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, j0, part = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BJ, tl.program_id(2)
    j = j0 + tl.arange(0, BJ)
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
            acc = tl.zeros((BM, BJ), tl.float32)
            for k0 in range(part * PART, tl.minimum(K, part * PART + PART), BK):
                k = k0 + tl.arange(0, BK)
                x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
                a_JK = tl.load(a_row + k[None, :], mask=there & (k < K)[None, :], other=0.0)
                acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
            at = (part * M + m).to(tl.int64)[:, None] * W + j[None, :]
            tl.store(low + at, acc, mask=(here == adapter)[:, None] & (j < width)[None, :])
        left = tl.where(left == adapter, -1, left)
        adapter = tl.max(left, axis=0)


@triton.jit
def fewrows_sum(part, low, y, bias, residual, factors, scale, ranks, row_adapter, factors_stride, scale_stride, ranks_stride,
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
                b = factor(factors, factors_stride, adapter, g, rank, B, y.dtype.element_ty)
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
            left = tl.where(left == adapter, -1, left)
            adapter = tl.max(left, axis=0)
    if BIAS:
        acc += tl.load(bias + n, mask=n < last, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside)


# What is compiled.

# BN, BK, warps and stages of fewrows_product by the rows that it takes at once. On Hopper by the weight's bytes a second: 3.3
# TB/s of a 7B's at 64 rows, where cuBLAS has 3.6.
BLOCKS = {
    "tma": {16: (64, 64, 4, 6), 64: (64, 64, 4, 6), 128: (64, 64, 4, 4), 256: (128, 64, 8, 4)},
    "ptr": {16: (64, 64, 4, 4), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    "f32": {16: (64, 32, 4, 2), 64: (64, 32, 4, 2)},
}
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}
TABLES = {"factors": "*i64", "ranks": "*i32", "row_adapter": "*i32", "scale": "*fp32", "part": "*fp32", "low": "*fp32"}
NAMES = {
    "fewrows_product": "x w part M N K piece",
    "fewrows_low": "x low factors ranks row_adapter factors_stride ranks_stride M K W G",
    "fewrows_sum": "part low y bias residual factors scale ranks row_adapter factors_stride scale_stride ranks_stride M N pieces low_pieces W first1 first2 G",
}


def made(kernel, kinds, arch, dtype, warps, stages, **constants):
    signature = {name: TABLES.get(name) or (f"*{dtype}" if name in ("x", "w", "y", "bias", "residual") else "i32") for name in NAMES[kernel].split()}
    return dict(module="fewrows", kernel=kernel, kinds=kinds, launch={}, arch=arch, dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def variants():
    for kind, blocks in BLOCKS.items():
        for BM, (BN, BK, warps, stages) in blocks.items():
            yield made("fewrows_product", [kind], ARCH[kind], DTYPE[kind], warps, stages, BM=BM, BN=BN, BK=BK)
    for kinds, dtype in ((["tma", "ptr"], "bf16"), (["f32"], "fp32")):
        yield made("fewrows_low", kinds, "sm_80", dtype, 4, 3, BM=16, BJ=16, BK=128, PART=1024)
        for bias in (0, 1):
            for residual in (0, 1):
                for lora in (0, 1):
                    yield made("fewrows_sum", kinds, "sm_80", dtype, 4, 1, BM=16, BN=256, RB=16, BIAS=bias, RESIDUAL=residual, LORA=lora)
