"""A linear layer over few rows, each with its own adapter: what a generated token passes. Bound by reading the weight once.

    fewrows_product   part[p, m, n] = sum_k x[m, k] w[n, k]                 over the blocks of k of piece p
                      low[p, m, j]  = sum_k x[m, k] a[j, k]                 over the columns of k of piece p, where LOW = 1
    fewrows_sum       y[m, n] = (sum_p part[p, m, n] + scale[l, g] sum_r low[m, column + r] b[r, n]) gain[n] + bias[n]
                                + residual[m, n], gain that of dora.py where decomposed[l] = 1, else 1
    fewrows_swiglu    h[m, i] = silu(y[m, i]) y[m, I + i], without a residual, N = 2 I
    fewrows_rope      of y = heads of q, k and v, those of q and k rotated as rope_forward does: q to `out`, k and v to the
                      place of the row in the cache (decode.py), without a residual
    fewrows_norm      y = residual + weight x / sqrt(mean(x^2) + eps), with the bits of rmsnorm_forward

l = row_adapter[m] is the adapter of row m (-1: the base alone), g the linear that owns column n, low[m, j] the sum over p.

Shapes: x c[M, K]; w c[N, K]; y, residual c[M, N]; bias c[N]; row_adapter i32[M]; part f32[P, M, N]; low f32[Q, M, W], W at
least the columns of any adapter; factors, ranks and scale as adapters.py has them; vectors and decomposed as dora.py, not read
where has_gains = 0. M is any; K, N and firstColumn = [0, first1, first2, N] are multiples of 8. residual may be y; out c[M, N]
of heads and kv_heads of D features, tables as rope.py's.

Order of sums. The pieces of k depend on K and N alone, a piece is summed in blocks of 16 columns by the tensor cores, one after
the other, and pieces in their order: by fewrows_sum, or, where SUMS = 1, by the product, which leaves a single part. What
adapters add is a product of 16 rows for each adapter that has some of them, of which each row takes its own. So a row's
numbers depend on no other row and on no number of rows. What follows a sum in its kernel reads it as the compute type has it.

The weight's rows are the tall side of the product: 64 or 128 of them against 8 to 256 rows of x. On Hopper up to 64 rows are
multiplied by fewrows_hopper.py, with the same bits.

`rows` is x. DESC variants take tensor descriptors: rows [BM, BK] and w [BN, BK].

Launch: fewrows_product grid (lows + tiles): lows = ceil(M / 16) ceil(W / 16) ceil(K / 1024) where LOW = 1, else 0; tiles =
ceil(N / BN) P ceil(M / BM), P = ceil(ceil(K / BK) / piece), with SUMS = 1 a P of 1 here. fewrows_sum grid (sum over g of
ceil(columns of g / BN), ceil(M / BM)); fewrows_swiglu grid (ceil(I / BN), ceil(M / BM)); fewrows_rope grid (heads + 2
kv_heads, ceil(M / BM)); fewrows_norm grid (M), the variant with the least BLOCK >= H.

Kernels of sums are in fewrows_sums.py. A pass of a few rows is a chain of short kernels, whose time is that of loads that
wait for each other. So on Hopper the kernels overlap (overlap.py): a row's adapter, its ranks, addresses of factors and what
else is no activation is read, and weights come to L2, while the kernel before still runs.
"""
import triton
import triton.language as tl

from adapters import A, ends_of, factor_rows, ranks_of
from overlap import begin_next, prefetch, wait_for_previous
from rmsnorm import normed
from tile import load_tile

LINE = tl.constexpr(64)  # columns of bf16 that come to L2 together
AHEAD = tl.constexpr(512)  # columns of a weight's tile that come to L2 before x is there


@triton.jit
def low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j, K, G, dtype: tl.constexpr):
    """Columns that an adapter has in s, and rows j[:, 1] of A of all linears: their addresses, and which of them there are."""
    three = ranks_of(ranks, ranks_stride, adapter, G)
    ends = ends_of(three)
    end0, end1, width = ends
    a_row, there = factor_rows(factors, factors_stride, adapter, j, three, ends, K, A, dtype)
    return width, a_row, there


@triton.jit
def low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G,
             LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """One piece of LJ columns of s of LM rows, adapter by adapter. What it needs of the first one's tables comes before x."""
    tiles_m, tiles_j = tl.cdiv(M, LM), tl.cdiv(W, LJ)
    m, j0 = tile % tiles_m * LM + tl.arange(0, LM), tile // tiles_m % tiles_j * LJ
    part = tile // (tiles_m * tiles_j)
    j = j0 + tl.arange(0, LJ)
    dtype: tl.constexpr = x.dtype.element_ty
    here = tl.load(row_adapter + m, mask=m < M, other=-1)
    x_row = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    left = here
    adapter = tl.max(left, axis=0)
    width, a_row, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j[:, None], K, G, dtype)
    address = a_row.to(tl.int64)
    if OVERLAPS:
        line = part * PART + tl.arange(0, PART // LINE)[None, :] * LINE
        prefetch(address + line * 2, there & (line < K))
    wait_for_previous(OVERLAPS)
    while adapter >= 0:
        if j0 < width:
            a_row = tl.multiple_of(address.to(tl.pointer_type(dtype)), (16, 16))
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
        width, a_row, there = low_rows(factors, ranks, factors_stride, ranks_stride, adapter, j[:, None], K, G, dtype)
        address = a_row.to(tl.int64)


@triton.jit
def piece_of(tile, M, N, K, piece, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr):
    """What a tile of a product is: its piece, row and column of tiles, and how many blocks of columns x has."""
    tiles_m, tiles_n, blocks = tl.cdiv(M, BM), tl.cdiv(N, BN), tl.cdiv(K, BK)
    tile_m, rest = tile % tiles_m, tile // tiles_m  # tiles that read the same weight follow each other
    if SUMS:
        return 0, tile_m, rest, blocks
    else:
        return rest // tiles_n, tile_m, rest % tiles_n, blocks


@triton.jit
def fewrows_product(x, rows, w, part, low, factors, ranks, row_adapter, factors_stride, ranks_stride, M, N, K, W, G, piece, lows,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, LOW: tl.constexpr, DESC: tl.constexpr,
                    LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    begin_next(OVERLAPS)
    K, N = K // 8 * 8, N // 8 * 8  # as they are: tells the compiler that rows are aligned to 16 bytes
    tile = tl.program_id(0)
    if LOW:
        if tile < lows:
            low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART, OVERLAPS)
            return
        tile -= lows
    p, tile_m, tile_n, blocks = piece_of(tile, M, N, K, piece, BM, BN, BK, SUMS)
    m0, n0 = tile_m * BM, tile_n * BN
    first = p * piece
    if OVERLAPS and not SUMS and not DESC:  # the beginning of the weight's rows, while what makes x still runs
        row = n0 + tl.arange(0, BN)[:, None]
        line = first * BK + tl.arange(0, AHEAD // LINE)[None, :] * LINE
        prefetch(w.to(tl.int64) + (row.to(tl.int64) * K + line) * 2, (row < N) & (line < tl.minimum(K, (first + piece) * BK)))
    wait_for_previous(OVERLAPS)
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
def fewrows_norm(x, weight, residual, y, H, eps, has_residual, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    """One row. See the top of the file."""
    begin_next(OVERLAPS)
    H = H // 8 * 8  # as it is
    m, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = h < H
    w_H = tl.load(weight + h, mask=inside, other=0.0)
    wait_for_previous(OVERLAPS)
    x_H = tl.load(x + m * H + h, mask=inside, other=0.0).to(tl.float32)
    residual_H = tl.load(residual + m * H + h, mask=inside & (has_residual != 0), other=0.0)
    y_H = normed(x_H, tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x_H * x_H), H.to(tl.float32)) + eps)), w_H)
    tl.store(y + m * H + h, (y_H + residual_H.to(tl.float32)).to(y.dtype.element_ty), mask=inside)


# What is compiled.

from attention_variants import descriptor

# BN, BK, warps and stages of fewrows_product by the rows that it takes at once; with SUMS for many rows.
BLOCKS = {
    "tma": {128: (64, 64, 4, 4), 256: (128, 64, 8, 4)},
    "ptr": {16: (64, 64, 4, 4), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    "f32": {16: (64, 32, 4, 2), 64: (64, 32, 4, 2)},
}
# The same of fewrows_hopper.py: BN, BK, stages of weights and of rows, and how many programs a multiprocessor holds. A launch
# takes the first that holds all of its programs at once, or the last.
STREAMS = {16: ((64, 64, 8, 8, 2), (64, 64, 6, 6, 3)), 64: ((64, 64, 5, 5, 2), (64, 64, 4, 4, 3))}
GATED = {16: (64, 64, 4, 6, 2), 64: (64, 64, 2, 3, 3)}
MANY = {"tma": (128, 128, 64, 8, 4), "ptr": (128, 128, 32, 8, 3), "f32": (64, 64, 32, 4, 2)}  # BM, BN, BK, warps, stages
# Rows, columns and columns of x that a product of s takes, and columns of x of a piece of it.
LOW = dict(LM=16, LJ=16, LK=128, PART=1024)
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}
# Widest row and warps of fewrows_norm, as of rmsnorm.py.
NORMS = {"tma": ((1024, 1), (4096, 4), (8192, 8), (16384, 16)), "f32": ((16384, 16),)}
NORMS["ptr"] = NORMS["tma"]
# HALF and EXACT of fewrows_rope, as of rope.py.
HALVES = {"bf16": ((32, 1), (64, 1), (128, 0)), "fp32": ((128, 0),)}
OF_DTYPE = "x rows w y h out cache bias residual".split()
POINTERS = {"factors": "*i64", "vectors": "*i64", "decomposed": "*i32", "ranks": "*i32", "row_adapter": "*i32", "positions": "*i32", "weight": "*fp32", "places": "*i32", "pages": "*i32", "eps": "fp32"}
POINTERS |= dict.fromkeys("scale part low cos sin q_scale q_weight k_weight".split(), "*fp32")
SUM = "factors scale ranks row_adapter vectors decomposed factors_stride scale_stride ranks_stride vectors_stride decomposed_stride has_gains has_bias {}M N pieces low_pieces W first1 first2 G"
NAMES = {
    "fewrows_product": "x rows w part low factors ranks row_adapter factors_stride ranks_stride M N K W G piece lows",
    "fewrows_sum": f"part low y bias residual {SUM.format('has_residual ')}",
    "fewrows_swiglu": f"part low h bias {SUM.format('')}",
    "fewrows_rope": f"part low out cache bias {SUM.format('')} positions places pages cos sin q_scale q_weight k_weight heads kv_heads D R scaled eps",
    "fewrows_norm": "x weight residual y H eps has_residual",
    "fewrows_gated": "rows w h M N K",
}


def made(kernel, kinds, arch, dtype, warps, stages, **constants):
    signature = {name: POINTERS.get(name) or (f"*{dtype}" if name in OF_DTYPE else "i32") for name in NAMES[kernel].split()}
    constants["OVERLAPS"] = int(kinds == ["tma"])
    module = "fewrows" if kernel in ("fewrows_product", "fewrows_norm") else "fewrows_sums"
    return dict(module=module, kernel=kernel, kinds=kinds, launch={}, arch=arch, dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def products(kind, BM, BN, BK, warps, stages, sums):
    """With and without low-rank products; of many rows on Hopper by tensor descriptors."""
    desc = int(kind == "tma" and BM >= 128)
    for low in (0, 1):
        found = made("fewrows_product", [kind], ARCH[kind], DTYPE[kind], warps, stages, BM=BM, BN=BN, BK=BK, SUMS=sums, LOW=low, DESC=desc, **LOW)
        if desc:
            found["signature"] |= {"rows": f"tensordesc<bf16[{BM},{BK}]>", "w": f"tensordesc<bf16[{BN},{BK}]>"}
        yield found


def stream(kernel, BM, BN, BK, stages, row_stages, together, **constants):
    found = made(kernel, ["tma"], "sm_90a", "bf16", 4, 1, BM=BM, BN=BN, BK=BK, **constants)
    found["signature"] |= {"rows": descriptor("bf16", BM, BK, 128), "w": descriptor("bf16", BN, BK, 128)}
    found["constants"] |= dict(STAGES=stages, ROW_STAGES=row_stages)
    return dict(found, module="fewrows_hopper", launch=dict(TOGETHER=together))


def variants():
    for BM, choices in STREAMS.items():
        for blocks in choices:
            for low in (0, 1):
                yield stream("fewrows_product", BM, *blocks, SUMS=0, LOW=low, DESC=1, **LOW)
    for BM, blocks in GATED.items():
        yield stream("fewrows_gated", BM, *blocks)
    for kind, blocks in BLOCKS.items():
        for BM, (BN, BK, warps, stages) in blocks.items():
            yield from products(kind, BM, BN, BK, warps, stages, 0)
        yield from products(kind, *MANY[kind], 1)
    for kind, arch in ARCH.items():
        dtype = DTYPE[kind]
        for lora in (0, 1):
            yield made("fewrows_sum", [kind], arch, dtype, 4, 1, BM=16, BN=128, RB=16, LORA=lora)
            yield made("fewrows_swiglu", [kind], arch, dtype, 4, 1, BM=16, BN=64, RB=16, LORA=lora)
            for half, exact in HALVES[dtype]:
                for norm in (0, 1):
                    yield made("fewrows_rope", [kind], arch, dtype, 8 if half == 128 else 4, 1, BM=16, HALF=half, RB=16, EXACT=exact, NORM=norm, LORA=lora)
        for block, warps in NORMS[kind]:
            yield made("fewrows_norm", [kind], arch, dtype, warps, 1, BLOCK=block)
