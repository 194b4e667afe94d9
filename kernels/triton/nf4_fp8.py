"""Weights in nf4 for products in e4m3: taken apart to the codes that fp8.py multiplies, not to what the device computes in.

    nf4_exponents    2^e[n] the least power of two that is at least max |w[n]| / 448
    nf4_codes        codes[n, k] = e4m3(w[n, k] / 2^e[n])
    nf4_turned       turned[k, n] = codes[n, k], for the product with W

w[n, k] = book[code] (dynamic[absmax] nested + mean) as nf4_dequantise of packed.py has it, in f32. The largest value of a block
is its absmax, so that a row's blocks say what its largest is.

Shapes: codes u8[N K / 2], absmax u8[N K / 64], nested, mean f32 of one linear; exponents u8[N], e + 127; out e4m3[N, K], or
turned [K, N] in rows that are `stride` apart. Needs: N and stride multiples of 16, K of 64, so that a block lies in one row.

Launch, no scratch: nf4_exponents (N); nf4_codes (ceil(N K / BLOCK)), WORDS threads; nf4_turned (ceil(K / TK), ceil(N / TN)).

Why so: a byte is written where nf4_dequantise writes two, and the tensor cores read as many.
"""
import triton
import triton.language as tl

from fp8 import exponent_of, inverse_power, to_e4m3
from packed import NESTED_BLOCK, NF4_BLOCK, dynamic_value, nf4_value, words_at


@triton.jit
def absmax_of(absmax, nested, mean, block, inside):
    """The largest magnitudes of blocks."""
    quantised = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
    most = dynamic_value(quantised)
    scale = tl.load(nested + block // NESTED_BLOCK, mask=inside, other=0.0)
    return tl.fma(most, scale, tl.zeros_like(most)) + tl.load(mean)  # the product is rounded before the sum


@triton.jit
def nf4_exponents(absmax, nested, mean, exponents, K, BLOCK: tl.constexpr):
    """A row a program."""
    blocks = K // NF4_BLOCK
    first = tl.program_id(0).to(tl.int64) * blocks
    most = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, blocks, BLOCK):
        block = begin + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.where(block < blocks, tl.abs(absmax_of(absmax, nested, mean, first + block, block < blocks)), 0.0))
    tl.store(exponents + tl.program_id(0), exponent_of(tl.max(most)).to(tl.uint8))


@triton.jit
def nf4_codes(codes, absmax, nested, mean, exponents, out, size, K, BLOCK: tl.constexpr, WORDS: tl.constexpr, HALVES: tl.constexpr):
    """BLOCK values a program, of BLOCK / 64 blocks."""
    TURNS: tl.constexpr = BLOCK // 8 // WORDS
    first = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(size - first, BLOCK).to(tl.int32)
    at = tl.arange(0, BLOCK // NF4_BLOCK)
    block, some = first // NF4_BLOCK + at, at * NF4_BLOCK < left
    words = words_at(codes, first, left, WORDS, TURNS)
    row = block // (K // NF4_BLOCK)
    times = absmax_of(absmax, nested, mean, block, some) * inverse_power(tl.load(exponents + row, mask=some, other=127))
    book = nf4_value(tl.arange(0, 16))
    bits = (tl.arange(0, 8) * 4) ^ 4  # the first of a byte's codes is in the high half
    for turn in tl.static_range(TURNS):
        word = turn * WORDS + tl.arange(0, WORDS)
        code = (words[turn][:, None] >> bits[None, :]) & 15
        value = tl.gather(book, code.reshape(WORDS * 8), 0).reshape(WORDS, 8) * tl.gather(times, word // (NF4_BLOCK // 8), 0)[:, None]
        i = word[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(out + first + i, to_e4m3(value, HALVES), mask=(word * 8 < left)[:, None])


@triton.jit
def nf4_turned(codes, absmax, nested, mean, exponents, turned, N, K, stride, TN: tl.constexpr, TK: tl.constexpr, HALVES: tl.constexpr):
    """A tile a program."""
    N, K, stride = N // 16 * 16, K // 64 * 64, stride // 16 * 16  # as they are: tells the compiler that rows are aligned
    BLOCKS: tl.constexpr = TK // NF4_BLOCK
    k0, n = tl.program_id(0) * TK, tl.program_id(1) * TN + tl.arange(0, TN)
    across, word = k0 // NF4_BLOCK + tl.arange(0, BLOCKS), k0 // 8 + tl.arange(0, TK // 8)
    row = n.to(tl.int64)[:, None]
    there = (n < N)[:, None]
    words = tl.load(codes.to(tl.pointer_type(tl.int32)) + row * (K // 8) + word[None, :], mask=there & (word * 8 < K)[None, :], other=0)
    some = there & (across * NF4_BLOCK < K)[None, :]
    times = absmax_of(absmax, nested, mean, row * (K // NF4_BLOCK) + across[None, :], some)
    times *= inverse_power(tl.load(exponents + n, mask=n < N, other=127))[:, None]
    bits = (tl.arange(0, 8) * 4) ^ 4
    code = (words[:, :, None] >> bits[None, None, :]) & 15
    value = tl.gather(nf4_value(tl.arange(0, 16)), code.reshape(TN * TK), 0).reshape(TN, BLOCKS, NF4_BLOCK) * times[:, :, None]
    k = k0 + tl.arange(0, TK)
    out = turned + k.to(tl.int64)[:, None] * stride + n[None, :]
    tl.store(out, to_e4m3(value.reshape(TN, TK), HALVES).T, mask=(k < K)[:, None] & (n < N)[None, :])


# What is compiled.

from variants import HALVES

ARCH = {"tma": "sm_90a", "ptr": "sm_89"}
BLOCKS = "codes:*u8 absmax:*u8 nested:*fp32 mean:*fp32 exponents:*u8"
KERNELS = {
    "nf4_exponents": ("absmax:*u8 nested:*fp32 mean:*fp32 exponents:*u8 K:i32", 1, dict(BLOCK=128)),
    "nf4_codes": (f"{BLOCKS} out:*fp8e4nv size:i64 K:i32", 4, dict(BLOCK=8192, WORDS=128)),
    "nf4_turned": (f"{BLOCKS} turned:*fp8e4nv N:i32 K:i32 stride:i32", 4, dict(TN=128, TK=128)),
}


def variants():
    for kind, arch in ARCH.items():
        for kernel, (parameters, warps, constants) in KERNELS.items():
            signature = dict(parameter.split(":") for parameter in parameters.split())
            if "fp8e4nv" in parameters:
                constants = constants | dict(HALVES=HALVES[kind])
            yield dict(module="nf4_fp8", kernel=kernel, kinds=[kind], arch=arch, dtype="bf16", constants=constants, warps=warps, stages=1, signature=signature)
