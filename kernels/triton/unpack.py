"""Tiles of frozen weights in fewer bits, taken apart where a product reads them. Helpers only, no kernel. Formats: packed.py.

    INT8, FP8      codes[n, k], which the compute type holds exactly: the product is times scale[n], of FP8 2^(scale[n] - 127),
                   once it is summed
    NF4            book[code], rounded to bf16: the product over a block of 64 columns is times absmax[block] once it is summed
    MXFP4          book[code] 2^(scale[block] - 127), which the compute type holds exactly

A weight is of up to three linears, from rows 0, first1 and first2 on. What nf4 has of each begins at 0, absmax1 and absmax2
bytes of `scales`, at 0, nested1 and nested2 numbers of `nested`, and 4 numbers of `mean` apart.

Needs: K a multiple of 64 with NF4, of 32 with MXFP4, else of 16; BK 64 with NF4, else a multiple of 64. Codes from K on are 0:
what they are multiplied with must be, too.
"""
import triton
import triton.language as tl

from adapters import pick
from packed import MX_BLOCK, NESTED_BLOCK, NF4_BLOCK, power_of_2

# FORMAT: 0 dense, 1 INT8, 2 NF4, 3 FP8, 4 MXFP4.


@triton.jit
def blocks_of_rows(n, K, first1, first2, absmax1, absmax2, nested1, nested2, FORMAT: tl.constexpr):
    """Of rows n of a weight: the first of their blocks, and what lies before its absmax, its nested scale and its mean."""
    if FORMAT == 2:
        g = (n >= first1).to(tl.int32) + (n >= first2).to(tl.int32)
        begin = (n - pick(g, (0, first1, first2))).to(tl.int64) * (K // NF4_BLOCK)
        return begin, pick(g, (0, absmax1, absmax2)), pick(g, (0, nested1, nested2)), g * 4
    else:
        return n.to(tl.int64) * (K // MX_BLOCK), n, n, n


@triton.jit
def load_scales(scales, nested, rows, k0, K, BK: tl.constexpr, FORMAT: tl.constexpr):
    """What the blocks of BK columns from k0 on are multiplied by, as it lies in memory; beyond K the last block's."""
    begin, absmax_at, nested_at, mean_at = rows
    if FORMAT == 2:
        at = begin + tl.minimum(k0, K - NF4_BLOCK) // NF4_BLOCK
        return tl.load(scales + absmax_at + at), tl.load(nested + nested_at + at // NESTED_BLOCK)
    elif FORMAT == 4:
        block = tl.minimum(k0 // MX_BLOCK + tl.arange(0, BK // MX_BLOCK), K // MX_BLOCK - 1)
        code = tl.load(scales + begin[:, None] + block[None, :])
        return code, code
    else:
        return k0, k0


@triton.jit
def dynamic_near(q):
    """
    dynamic_value of packed.py but for its last bits, in fewer steps: 10^(e - 6) (0.9 (1 + (step + 0.5) / 2^e) - 0.8) with p + 1
    = 2^e + step.
    """
    p = tl.where(q >= 128, q - 128, 126 - q)
    bits = (p + 1).to(tl.float32).to(tl.int32, bitcast=True)
    fraction = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    half = (0x7E800000 - (bits & 0x7F800000)).to(tl.float32, bitcast=True)  # 0.5 / 2^e
    value = tl.exp2(((bits >> 23) - 133).to(tl.float32) * 3.321928094887362) * tl.fma(fraction + half, tl.zeros_like(half) + 0.9, tl.zeros_like(half) - 0.8)
    value = tl.where(q >= 128, value, -value)
    return tl.where(q == 127, 0.0, tl.where(q == 255, 1.0, value))


@triton.jit
def times_of(loaded, means, FORMAT: tl.constexpr):
    """What load_scales has as f32: of NF4 [rows, 1] of a block, of MXFP4 [rows, blocks]; `means` f32[rows]."""
    code, scale = loaded
    if FORMAT == 2:
        return tl.fma(dynamic_near(code.to(tl.int32)), scale, means)[:, None]
    else:
        e = code.to(tl.int32)
        return tl.where(e == 255, float("nan"), power_of_2(tl.maximum(e, 1) - 127)) * tl.where(e == 0, 0.5, 1.0)


@triton.jit
def load_codes(codes, n, k0, K, BK: tl.constexpr, FORMAT: tl.constexpr):
    """Codes of rows n and BK columns: bytes of two, or of one each."""
    EACH: tl.constexpr = 2 if (FORMAT == 2) | (FORMAT == 4) else 1
    byte = k0 // EACH + tl.arange(0, BK // EACH)
    at = codes + n.to(tl.int64)[:, None] * (K // EACH) + byte[None, :]
    if FORMAT == 2:  # whole blocks
        return tl.load(at)
    else:
        return tl.load(at, mask=(byte < K // EACH)[None, :], other=0.0)


def looked_up(book, swaps):
    """
    PTX that makes of four bytes, each of two codes, four pairs of bf16: the codes are looked up byte by byte in tables of eight
    bytes in two registers, by permutations that take a code's three low bits each, and its highest chooses of two. `swaps`:
    whether a byte's first code is in its high half.
    """
    low, high = [[sum((value >> shift & 255) << 8 * i for i, value in enumerate(book[4 * part : 4 * part + 4])) for part in range(4)] for shift in (0, 8)]
    first, second = (0x4051, 0x6273) if swaps else (0x5140, 0x7362)
    lines = [".reg .b32 code, high, low_byte, high_byte, a, b;"]
    for half in (0, 2):
        lines += ["and.b32 code, $4, 0x77777777;", "shr.b32 high, $4, 1;", "and.b32 high, high, 0x44444444;", "or.b32 high, high, 0x32103210;"] if half == 0 else []
        lines += ["shr.b32 code, code, 16;", "shr.b32 high, high, 16;"] if half else []
        for to, table in (("low_byte", low), ("high_byte", high)):
            lines += [f"prmt.b32 a, {table[0]:#x}, {table[1]:#x}, code;", f"prmt.b32 b, {table[2]:#x}, {table[3]:#x}, code;", f"prmt.b32 {to}, a, b, high;"]
        lines += [f"prmt.b32 ${half}, low_byte, high_byte, {first:#x};", f"prmt.b32 ${half + 1}, low_byte, high_byte, {second:#x};"]
    return "{" + " ".join(lines) + "}"


# As bits of bf16: QLoRA's values, and those of e2m1.
NF4_PAIRS = tl.constexpr(looked_up([0xBF80, 0xBF32, 0xBF06, 0xBECA, 0xBE92, 0xBE3D, 0xBDBA, 0, 0x3DA3, 0x3E25, 0x3E7C, 0x3EAD, 0x3EE2, 0x3F10, 0x3F39, 0x3F80], True))
MXFP4_PAIRS = tl.constexpr(looked_up([half << 15 | value for half in (0, 1) for value in (0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0)], False))


@triton.jit
def looked_up_pairs(codes, FORMAT: tl.constexpr):
    """i32 of bytes: two values in bf16, the first in the low half."""
    return tl.inline_asm_elementwise(NF4_PAIRS if FORMAT == 2 else MXFP4_PAIRS, "=r,=r,=r,=r,r", [codes], dtype=tl.int32, is_pure=True, pack=4)


@triton.jit
def fp8_value(code):
    """f32 of e4m3."""
    code = code.to(tl.int32)
    magnitude, exponent = code & 7, (code >> 3) & 15
    value = (magnitude + tl.where(exponent > 0, 8, 0)).to(tl.float32) * power_of_2(tl.maximum(exponent, 1) - 10)
    return tl.where(code & 127 == 127, float("nan"), value * tl.where(code > 127, -1.0, 1.0))


@triton.jit
def unpacked(codes, times, BN: tl.constexpr, BK: tl.constexpr, FORMAT: tl.constexpr, dtype: tl.constexpr):
    """The weight [BN, BK] of load_codes, of MXFP4 with times_of, of others without their scales."""
    if (FORMAT == 2) | (FORMAT == 4):
        pair = looked_up_pairs(codes, FORMAT)
        first, second = (pair & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True), (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        value = tl.join(first, second).reshape(BN, BK).to(dtype)
        if FORMAT == 4:
            value = (value.to(tl.float32).reshape(BN, BK // 32, 32) * times[:, :, None]).reshape(BN, BK).to(dtype)
        return value
    elif FORMAT == 3:
        return fp8_value(codes).to(dtype)
    else:
        return codes.to(dtype)
