"""The product of fewrows.py over a weight in fewer bits, taken apart where it is read: from a quarter to half of the bytes.

    fewrows_packed    part[p, m, n] and low[p, m, j] as fewrows_product has them
    fewrows_values    values[n, k] = what nf4's codes[n, k] stands for, without its scale: for many rows, whose tiles would each
                      take codes apart again. fewrows_packed with APART = 1 reads these as w, and gives the same bits on Hopper:
                      the tensor cores before it sum codes from registers in another order of k than values of shared memory.

FORMAT as unpack.py has it; with FP8 both factors are e4m3, as in fp8.py: codes[M, K] and scale f32[M] of fp8_quantise in
`rows` and `x_scale`, x itself for the low-rank product. Else `rows` is x. scales: f32[N] of int8, u8[N] of fp8, absmax of nf4.
DESC variants take tensor descriptors: rows [BM, BK] and w [BN, BK], of nf4's codes [BN, BK / 2]. values bf16[N, K], two to an
i32.

Launch: fewrows_packed as fewrows_product with LOW = 1; without adapters lows = 0. fewrows_values grid (ceil(N K / BLOCK)).
"""
import triton
import triton.language as tl

from fewrows import low_tile, piece_of
from overlap import begin_next, prefetch, wait_for_previous
from packed import power_of_2
from tile import load_tile
from unpack import blocks_of_rows, load_codes, load_scales, looked_up_pairs, times_of, unpacked

LINE = tl.constexpr(128)  # bytes that come to L2 together
AHEAD = tl.constexpr(8)  # lines of each row of a tile that come to L2 before x is there


@triton.jit
def fewrows_values(codes, values, size, BLOCK: tl.constexpr):
    """BLOCK values, 4 BLOCK bits of codes. See the top of the file."""
    size = size // 64 * 64  # as it is: tells the compiler that whole words are inside
    byte = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    tl.store(values + byte, looked_up_pairs(tl.load(codes + byte, mask=byte < size // 2, other=0), 2), mask=byte < size // 2)


@triton.jit
def multiplied(acc, now, block, rows, w, scales, nested, of_rows, means, n0, m0, n, m, M, N, K,
               BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FORMAT: tl.constexpr, APART: tl.constexpr, DESC: tl.constexpr, dtype: tl.constexpr):
    """acc with the product over a block of columns, and the scales of the next block, which no stages fetch."""
    k = block * BK + tl.arange(0, BK)
    if APART:
        w_NK, x_MK = load_tile(w, n0, block * BK, N, K, BN, BK, DESC), load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
    else:
        if DESC:
            EACH: tl.constexpr = 2 if FORMAT == 2 else 1
            codes = load_tile(w, n0, block * (BK // EACH), N, K // EACH, BN, BK // EACH, DESC)
            x_MK = load_tile(rows, m0, block * BK, M, K, BM, BK, DESC)
        else:
            codes = load_codes(w, n, block * BK, K, BK, FORMAT)
            x_row = rows + m.to(tl.int64)[:, None] * K
            if FORMAT == 2:  # whole blocks
                x_MK = tl.load(x_row + k[None, :])
            else:
                x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
        w_NK = codes if FORMAT == 3 else unpacked(codes, now, BN, BK, FORMAT, dtype)
    if FORMAT == 2:
        later = load_scales(scales, nested, of_rows, (block + 1) * BK, K, BK, FORMAT)
        own = tl.dot(w_NK, x_MK.T, input_precision="ieee")  # of a block of each row
        acc = tl.fma(own, times_of(now, means, FORMAT) + tl.zeros_like(own), acc)
        now = later
    else:
        acc = tl.dot(w_NK, x_MK.T, acc, input_precision="ieee")
    return acc, now


@triton.jit
def scaled(total, scales, x_scale, n, m, inside, FORMAT: tl.constexpr):
    """A sum over a piece with the scales that all its columns have."""
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
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SUMS: tl.constexpr, FORMAT: tl.constexpr, APART: tl.constexpr, DESC: tl.constexpr,
                   LM: tl.constexpr, LJ: tl.constexpr, LK: tl.constexpr, PART: tl.constexpr, OVERLAPS: tl.constexpr):
    """One piece of the product of BM rows and BN columns, or a tile of s. See the top of the file."""
    begin_next(OVERLAPS)
    K, N = K // 16 * 16, N // 8 * 8  # as they are: tells the compiler that rows are aligned
    if FORMAT == 2:
        K = K // 64 * 64
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    tile = tl.program_id(0)
    if tile < lows:
        low_tile(x, low, factors, ranks, row_adapter, factors_stride, ranks_stride, tile, M, K, W, G, LM, LJ, LK, PART, OVERLAPS)
        return
    tile -= lows
    p, tile_m, tile_n, blocks = piece_of(tile, M, N, K, piece, BM, BN, BK, SUMS)
    n0, m0 = tile_n * BN, tile_m * BM
    n, m = n0 + tl.arange(0, BN), m0 + tl.arange(0, BM)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (p * M + m).to(tl.int64)[None, :] * N + n[:, None]
    n, m = tl.minimum(n, N - 1), tl.minimum(m, M - 1)  # what there is: loads need no mask for others
    if OVERLAPS and not SUMS and not APART and not DESC:  # the beginning of the codes' rows, while what makes x still runs
        EACH: tl.constexpr = 2 if FORMAT == 2 else 1
        byte = p * piece * BK // EACH + tl.arange(0, AHEAD)[None, :] * LINE
        prefetch(w.to(tl.int64) + n.to(tl.int64)[:, None] * (K // EACH) + byte, (n >= 0)[:, None] & (byte < tl.minimum(K, (p + 1) * piece * BK) // EACH))
    of_rows = blocks_of_rows(n, K, first1, first2, absmax1, absmax2, nested1, nested2, FORMAT)
    means = scales.to(tl.pointer_type(tl.float32))
    if FORMAT == 2:
        means = tl.load(mean + of_rows[3])
    dtype: tl.constexpr = x.dtype.element_ty
    wait_for_previous(OVERLAPS)
    acc = tl.zeros((BN, BM), tl.float32)
    if SUMS and FORMAT == 2:  # one loop of both has no registers for three sums
        total = tl.zeros((BN, BM), tl.float32)
        for first in range(0, blocks, piece):
            end = tl.minimum(first + piece, blocks)
            acc = tl.zeros((BN, BM), tl.float32)
            now = load_scales(scales, nested, of_rows, first * BK, K, BK, FORMAT)
            tl.assume(first < end)
            for block in range(first, end):
                acc, now = multiplied(acc, now, block, rows, w, scales, nested, of_rows, means, n0, m0, n, m, M, N, K, BM, BN, BK, FORMAT, APART, DESC, dtype)
            total += acc
    elif SUMS:
        total = tl.zeros((BN, BM), tl.float32)
        now = load_scales(scales, nested, of_rows, 0, K, BK, FORMAT)
        tl.assume(blocks > 0)  # as in fewrows.py
        for block in range(0, blocks):
            acc, now = multiplied(acc, now, block, rows, w, scales, nested, of_rows, means, n0, m0, n, m, M, N, K, BM, BN, BK, FORMAT, APART, DESC, dtype)
            if (block + 1) % piece == 0:
                total += scaled(acc, scales, x_scale, n, m, inside, FORMAT)
                acc = tl.zeros((BN, BM), tl.float32)
        if blocks % piece != 0:
            total += scaled(acc, scales, x_scale, n, m, inside, FORMAT)
    else:
        first, end = p * piece, tl.minimum((p + 1) * piece, blocks)
        now = load_scales(scales, nested, of_rows, first * BK, K, BK, FORMAT)
        tl.assume(first < end)
        for block in range(first, end):
            acc, now = multiplied(acc, now, block, rows, w, scales, nested, of_rows, means, n0, m0, n, m, M, N, K, BM, BN, BK, FORMAT, APART, DESC, dtype)
        total = scaled(acc, scales, x_scale, n, m, inside, FORMAT)
    tl.store(part + at, total, mask=inside)


# What is compiled.

# BM, BN, BK, warps, stages and SUMS (0 where it is left out), by the rows up to which a product takes them; of codes, but
# where SUMS is not 0 of nf4's values on Hopper. All of a format and kind give the same bits. Measured on an H200 with the
# shapes of a 7B, us a layer at 320, 384, 448, 512 rows: int8 in tiles of 128 over codes 442, 465, 586, 604, of 256 907, 740,
# 618, 560, over values 516, 510, 582, 573; nf4 over codes 593, 616, 789, 940, over values 659, 591, 818, 681. By pointers at
# 192, 256, 384, 512 rows: int8 in tiles of 64 505, 724, 969, 1274, of 128 787, 791, 1083, 1414; nf4 533, 702, 1042, 1447, of
# 128 1016, 998, 1494, 1983.
TILES = {
    ("tma", "int8"): {64: (64, 128, 128, 4, 3), 256: (256, 64, 64, 4, 3), 448: (128, 128, 64, 4, 4)},
    ("tma", "nf4"): {64: (64, 128, 64, 4, 4), 320: (128, 64, 64, 4, 3), 512: (128, 64, 64, 4, 4, 1)},
    ("tma", "fp8"): {16: (16, 64, 128, 4, 4), 192: (64, 128, 128, 4, 4), 512: (256, 128, 128, 8, 4)},
    ("ptr", "int8"): {16: (16, 128, 128, 8, 3), 512: (64, 64, 128, 4, 3)},
    ("ptr", "nf4"): {16: (16, 128, 64, 8, 3), 512: (64, 128, 64, 4, 3)},
    ("ptr", "fp8"): {16: (16, 64, 128, 4, 3), 128: (64, 64, 128, 4, 3), 512: (128, 128, 128, 8, 3, 1)},
}
# The fewest rows of some tiles, and rows above which they are taken again.
RANGES = {("tma", "int8", 256): dict(FROM=193, ABOVE=448)}
FORMATS = {"int8": 1, "nf4": 2, "fp8": 3}
CODES = {"int8": "i8", "nf4": "u8", "fp8": "fp8e4nv"}
LOW = dict(LM=16, LJ=16, LK=128, PART=1024)
from variants import row

PARAMETERS = "x:*bf16 rows:{rows} x_scale:*fp32 w:{w} scales:{scales} nested:*fp32 mean:*fp32 part:*fp32 low:*fp32 factors:*i64 ranks:*i32 row_adapter:*i32 factors_stride:i32 ranks_stride:i32 "
NUMBERS = "M:i32 N:i32 K:i32 W:i32 G:i32 piece:i32 lows:i32 first1:i32 first2:i32 absmax1:i32 absmax2:i32 nested1:i32 nested2:i32"
ARCH = {"tma": "sm_90a", "ptr": "sm_80"}


def product(kind, name, until, BM, BN, BK, warps, stages, sums=0):
    apart, desc = int(sums and name != "fp8" and kind == "tma"), int(kind == "tma" and BM >= 64)
    rows, codes = CODES["fp8"] if name == "fp8" else "bf16", "bf16" if apart else CODES[name]
    types = dict(rows=f"*{rows}", w=f"*{codes}", scales="*fp32" if name == "int8" else "*u8")
    if desc:
        types |= dict(rows=f"tensordesc<{rows}[{BM},{BK}]>", w=f"tensordesc<{codes}[{BN},{BK // 2 if name == 'nf4' and not apart else BK}]>")
    signature = dict(parameter.split(":") for parameter in (PARAMETERS.format(**types) + NUMBERS).split())
    constants = dict(BM=BM, BN=BN, BK=BK, SUMS=sums, FORMAT=FORMATS[name], APART=apart, DESC=desc, OVERLAPS=int(kind == "tma"), **LOW)
    arch = "sm_89" if (kind, name) == ("ptr", "fp8") else ARCH[kind]
    return dict(module="fewrows_packed", kernel="fewrows_packed", kinds=[kind], launch=dict(UNTIL=until), arch=arch, dtype="bf16", constants=constants, warps=warps,
                stages=stages, signature=signature)


def variants():
    """In the order of the rows that they are for."""
    for (kind, name), tiles in TILES.items():
        for until, of in tiles.items():
            found = product(kind, name, until, *of)
            yield dict(found, launch=found["launch"] | RANGES.get((kind, name, until), {}))
    yield dict(row("fewrows_packed", "fewrows_values", "ptr", "codes:*u8 values:*i32 size:i32", BLOCK=4096), kinds=["tma"])
