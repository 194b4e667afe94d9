"""The product of fewrows.py over a weight in fewer bits, taken apart where it is read: from a quarter to half of the bytes.

    fewrows_packed    part[p, m, n] and low[p, m, j] as fewrows_product has them

FORMAT as unpack.py has it; with FP8 both factors are e4m3, as in fp8.py: codes[M, K] and scale f32[M] of fp8_quantise in
`rows` and `x_scale`, x itself for the low-rank product. Else `rows` is x. scales: f32[N] of int8, u8[N] of fp8, absmax of nf4.

Launch: as fewrows_product with LOW = 1; without adapters lows = 0.
"""
import triton
import triton.language as tl

from fewrows import low_tile
from packed import power_of_2
from unpack import blocks_of_rows, load_codes, load_scales, times_of, unpacked


@triton.jit
def partial_product(rows, w, scales, nested, x_scale, of_rows, means, n, m, inside, first, end, K,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """f32[BN, BM]: the sum over blocks first .. end - 1 of columns. n and m are rows that there are."""
    total = tl.zeros((BN, BM), tl.float32)
    x_row = rows + m.to(tl.int64)[:, None] * K
    now = load_scales(scales, nested, of_rows, first * BK, K, BK, FORMAT)  # a block early: no stages fetch them
    tl.assume(first < end)  # as in fewrows.py
    for block in range(first, end):
        codes = load_codes(w, n, block * BK, K, BK, FORMAT)
        k = block * BK + tl.arange(0, BK)
        if FORMAT == 2:
            x_MK = tl.load(x_row + k[None, :])
            later = load_scales(scales, nested, of_rows, (block + 1) * BK, K, BK, FORMAT)
            own = tl.dot(unpacked(codes, now, BN, BK, FORMAT, dtype), x_MK.T, input_precision="ieee")  # of a block of each row
            total = tl.fma(own, times_of(now, means, FORMAT) + tl.zeros_like(own), total)
            now = later
        else:
            x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
            if FORMAT == 3:
                total = tl.dot(codes, x_MK.T, total)
            else:
                total = tl.dot(codes.to(dtype), x_MK.T, total, input_precision="ieee")
    if (FORMAT == 1) | (FORMAT == 3):
        if FORMAT == 3:
            times = power_of_2(tl.load(scales + n).to(tl.int32) - 127)[:, None] * tl.load(x_scale + m)[None, :]
        else:
            times = tl.load(scales + n)[:, None] + tl.zeros_like(total)
        total = tl.where(inside, total * times, 0.0)  # by a mask, so that no variant contracts it with a sum that follows
    return total


@triton.jit
def fewrows_packed(x, rows, x_scale, w, scales, nested, mean, part, low, factors, ranks, row_adapter, factors_stride, ranks_stride,
                   M, N, K, W, G, piece, lows, first1, first2, absmax1, absmax2, nested1, nested2,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, FORMAT: tl.constexpr,
                   LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    K, N = K // 16 * 16, N // 8 * 8  # as they are: tells the compiler that rows are aligned
    if FORMAT == 2:
        K = K // 64 * 64
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    tile = tl.program_id(0)
    if tile < lows:
        low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART, 0)
        return
    tile -= lows
    tiles_n, blocks = tl.cdiv(N, BN), tl.cdiv(K, BK)
    pieces = tl.cdiv(blocks, piece)
    if SUMS:
        tiles_m = tl.cdiv(M, BM)
        p, tile_m, tile_n = 0, tile % tiles_m, tile // tiles_m
    else:
        p, tile_m, tile_n = tile // tiles_n % pieces, tile // (tiles_n * pieces), tile % tiles_n
    n, m = tile_n * BN + tl.arange(0, BN), tile_m * BM + tl.arange(0, BM)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (p * M + m).to(tl.int64)[None, :] * N + n[:, None]
    n, m = tl.minimum(n, N - 1), tl.minimum(m, M - 1)  # what there is: loads need no mask for others
    of_rows = blocks_of_rows(n, K, first1, first2, absmax1, absmax2, nested1, nested2, FORMAT)
    means = scales.to(tl.pointer_type(tl.float32))
    if FORMAT == 2:
        means = tl.load(mean + of_rows[3])
    dtype: tl.constexpr = x.dtype.element_ty
    if SUMS:
        total = tl.zeros((BN, BM), tl.float32)
        for first in range(0, blocks, piece):
            total += partial_product(rows, w, scales, nested, x_scale, of_rows, means, n, m, inside, first, tl.minimum(first + piece, blocks), K, BM, BN, BK, FORMAT, dtype)
    else:
        total = partial_product(rows, w, scales, nested, x_scale, of_rows, means, n, m, inside, p * piece, tl.minimum((p + 1) * piece, blocks), K, BM, BN, BK, FORMAT, dtype)
    tl.store(part + at, total, mask=inside)


# What is compiled.

# BN, BK, warps and stages by the rows that a tile has, and, with SUMS, for many rows: BM before them.
BLOCKS = {16: (128, 128, 8, 4), 64: (128, 128, 8, 4)}
MANY = (128, 128, 128, 8, 3)
NF4_BLOCK = 64
FORMATS = {"int8": 1, "nf4": 2, "fp8": 3}
CODES = {"int8": "*i8", "nf4": "*u8", "fp8": "*fp8e4nv"}
LOW = dict(LM=16, LJ=16, LK=128, PART=1024)
PARAMETERS = "x:*bf16 rows:{rows} x_scale:*fp32 w:{codes} scales:{scales} nested:*fp32 mean:*fp32 part:*fp32 low:*fp32 factors:*i64 ranks:*i32 row_adapter:*i32 factors_stride:i32 ranks_stride:i32 "
NUMBERS = "M:i32 N:i32 K:i32 W:i32 G:i32 piece:i32 lows:i32 first1:i32 first2:i32 absmax1:i32 absmax2:i32 nested1:i32 nested2:i32"
ARCH = {"tma": "sm_90a", "ptr": "sm_80"}


def variants():
    for kind, oldest in ARCH.items():
        for name, FORMAT in FORMATS.items():
            arch = "sm_89" if (kind, name) == ("ptr", "fp8") else oldest
            types = dict(rows=CODES[name] if name == "fp8" else "*bf16", codes=CODES[name], scales="*fp32" if name == "int8" else "*u8")
            signature = dict(parameter.split(":") for parameter in (PARAMETERS.format(**types) + NUMBERS).split())
            for sums, (BM, BN, BK, warps, stages) in (*((0, (BM, *of)) for BM, of in BLOCKS.items()), (1, MANY)):
                if name == "nf4":
                    BM, BK = BM if kind == "tma" else min(BM, 64), NF4_BLOCK  # Ampere would spill more
                constants = dict(BM=BM, BN=BN, BK=BK, SUMS=sums, FORMAT=FORMAT, **LOW)
                yield dict(module="fewrows_packed", kernel="fewrows_packed", kinds=[kind], launch={}, arch=arch, dtype="bf16", constants=constants, warps=warps,
                           stages=stages if kind == "tma" else min(stages, 3), signature=signature)
