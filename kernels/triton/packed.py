"""Frozen weights in fewer bits, and back. Formats and their sources: src/device/packed.ts; ffi/native/packed.c does the same.

    int8_quantise     codes[n, k] = round(x[n, k] / scale[n]), scale[n] = max |x[n, k]| / 127
    nf4_quantise      codes and absmax of blocks of 64 values; two codes to a byte, the first in the high half
    nf4_mean          mean = sum absmax / blocks, in a fixed order
    nf4_nest          codes of absmax - mean, in blocks of 256 with a scale each
    nf4_dequantise    out[i] = book[code] (dynamic[absmax] nested + mean)
    int8_dequantise   out[n, k] = codes[n, k] scale[n]
    fp8_expand        codes[n, k] 2^e[n], codes in e4m3, on any GPU: fp8_dequantise of fp8.py for the weights of experts
    mxfp4_expand      out[i] = book[code] 2^(scale - 127) of blocks of 32 values, two codes to a byte, the first in the low half

Of several weights alike, those of experts, each part of the next one lies `step` bytes further, its values out_step elements.

Rounding: to nearest even, and to the lower of two codes of nf4 that are as near.

Shapes: x, out c[N, K] or c[size]; codes i8 or u8; scale, nested, mean f32; exponents u8[N], e + 127; absmax f32 in
nf4_quantise, nf4_mean and as input of nf4_nest, else u8. K a multiple of 8, size even; 16-byte alignment.

Launch, no scratch: int8_quantise (N); nf4_quantise (ceil(size / (64 BLOCKS))); nf4_mean (1); nf4_nest (ceil(blocks / 256));
nf4_dequantise and mxfp4_expand (ceil(size / BLOCK), 1, weights), WORDS threads; int8_dequantise and fp8_expand (N,
ceil(K / BLOCK), weights).

Why so: 2 bytes a value are written, which bounds these kernels if nothing else does. So a value is looked up, not chosen bit by
bit, what a block has in common is computed once, and lines are written whole.
"""
import triton
import triton.language as tl

NF4_BLOCK = tl.constexpr(64)
NESTED_BLOCK = tl.constexpr(256)
MX_BLOCK = tl.constexpr(32)


@triton.jit
def int8_quantise(x, codes, scale, K, BLOCK: tl.constexpr):
    """A row a program, read twice: the second time from a cache."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    first = tl.program_id(0).to(tl.int64) * K
    most = tl.zeros((BLOCK,), tl.float32)
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.abs(tl.load(x + first + k, mask=k < K, other=0.0).to(tl.float32)))
    largest = tl.max(most)
    inverse = tl.where(largest > 0, tl.div_rn(127.0, largest), 0.0)
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        v = tl.load(x + first + k, mask=k < K, other=0.0).to(tl.float32)
        tl.store(codes + first + k, nearest_whole(v, inverse).to(tl.int8), mask=k < K)
    tl.store(scale + tl.program_id(0), tl.div_rn(largest, 127.0))


@triton.jit
def nearest_whole(v, inverse):
    """v inverse to nearest even, below 2^22: the sum has no bits left for a fraction. Rounded once, as in packed.c."""
    return tl.fma(v, inverse + tl.zeros_like(v), tl.zeros_like(v) + 12582912.0) - 12582912.0


@triton.jit
def nf4_value(code):
    """The 16 values of the code book, chosen bit by bit: quantiles of the normal distribution (QLoRA, appendix E)."""
    b0, b1, b2, b3 = (code & 1) != 0, (code & 2) != 0, (code & 4) != 0, (code & 8) != 0
    v0 = tl.where(b1, tl.where(b0, -0.39491748809814453, -0.5250730514526367), tl.where(b0, -0.6961928009986877, -1.0))
    v1 = tl.where(b1, tl.where(b0, 0.0, -0.09105003625154495), tl.where(b0, -0.18477343022823334, -0.28444138169288635))
    v2 = tl.where(b1, tl.where(b0, 0.33791524171829224, 0.24611230194568634), tl.where(b0, 0.16093020141124725, 0.07958029955625534))
    v3 = tl.where(b1, tl.where(b0, 1.0, 0.7229568362236023), tl.where(b0, 0.5626170039176941, 0.44070982933044434))
    return tl.where(b3, tl.where(b2, v3, v2), tl.where(b2, v1, v0))


@triton.jit
def nf4_code(v):
    """The code of the nearest value: how many of the middles between neighbours lie below v."""
    code = tl.zeros_like(v).to(tl.int32)
    for q in tl.static_range(15):
        code += (v > (nf4_value(q) + nf4_value(q + 1)) * 0.5).to(tl.int32)
    return code


@triton.jit
def bound(i, exponent):
    """
    Bound i of the 2^exponent equal parts of [0.1, 1], in units of 2^-30, as torch.linspace computes it in f32: from the nearer
    end, rounded once. In these units 0.1f and the parts of 0.9f are whole, up to an exponent of 6.
    """
    from_first = 107374184 + 15099494 * (i << (6 - exponent))
    from_last = 1073741824 - 15099494 * (((1 << exponent) - i) << (6 - exponent))
    return tl.where(2 * i < (1 << exponent), from_first, from_last).to(tl.float32)


@triton.jit
def dynamic_value(q):
    """
    Of the signed dynamic code of 8 bits, ascending: 127 is 0, 255 is 1; p counts the others from the smallest, of either sign.
    Each is the middle of two bounds times a power of ten, in f32 with the bits of bitsandbytes, as on a CPU.
    """
    p = tl.where(q >= 128, q - 128, 126 - q)
    p = tl.minimum(tl.maximum(p, 0), 126)
    exponent = ((p + 1).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # floor(log2(p + 1)): p = 2^exponent - 1 + step
    step = p + 1 - (1 << exponent)
    power = tl.where(exponent == 6, 1.0, tl.where(exponent == 5, 1e-1, tl.where(exponent == 4, 1e-2, tl.where(
        exponent == 3, 1e-3, tl.where(exponent == 2, 1e-4, tl.where(exponent == 1, 1e-5, 1e-6)))))).to(tl.float32)
    value = power * ((bound(step, exponent) + bound(step + 1, exponent)) * 2**-31)
    value = tl.where(q >= 128, value, -value)
    return tl.where(q == 127, 0.0, tl.where(q == 255, 1.0, value))


@triton.jit
def nf4_quantise(x, codes, absmax, size, BLOCKS: tl.constexpr):
    """BLOCKS blocks a program."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    i = block[:, None] * NF4_BLOCK + tl.arange(0, NF4_BLOCK)[None, :]
    v = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    most = tl.max(tl.abs(v), axis=1)
    inverse = tl.where(most > 0, tl.div_rn(1.0, most), 0.0)
    code = nf4_code(v * inverse[:, None])
    high, low = tl.split(code.reshape(BLOCKS, NF4_BLOCK // 2, 2))
    at = block[:, None] * (NF4_BLOCK // 2) + tl.arange(0, NF4_BLOCK // 2)[None, :]
    tl.store(codes + at, (high * 16 + low).to(tl.uint8), mask=2 * at < size)
    tl.store(absmax + block, most, mask=block * NF4_BLOCK < size)


@triton.jit
def nf4_mean(absmax, mean, blocks, BLOCK: tl.constexpr):
    """One program, for the order of the sum."""
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, blocks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(absmax + i, mask=i < blocks, other=0.0).to(tl.float64)
    tl.store(mean, (tl.sum(total) / blocks.to(tl.float64)).to(tl.float32))


@triton.jit
def nf4_nest(absmax, mean, nested, codes, blocks):
    """A block of 256 absolute maxima a program."""
    i = tl.program_id(0) * NESTED_BLOCK + tl.arange(0, NESTED_BLOCK)
    v = tl.where(i < blocks, tl.load(absmax + i, mask=i < blocks, other=0.0) - tl.load(mean), 0.0)
    most = tl.max(tl.abs(v))
    v *= tl.where(most > 0, tl.div_rn(1.0, most), 0.0)
    code = tl.zeros_like(v).to(tl.int32)
    for q in range(255):
        code += (v > (dynamic_value(q) + dynamic_value(q + 1)) * 0.5).to(tl.int32)
    tl.store(codes + i, code.to(tl.uint8), mask=i < blocks)
    tl.store(nested + tl.program_id(0), most)


@triton.jit
def words_at(codes, first, left, WORDS: tl.constexpr, TURNS: tl.constexpr):
    """
    TURNS words of 8 codes from value `first` on for each of WORDS threads, next to each other in each turn, so that a warp
    writes the 8 values of each in whole lines; all are under way before the first is needed. `left` values are there.
    """
    start = codes.to(tl.pointer_type(tl.int32)) + first // 8
    words = ()
    for turn in tl.static_range(TURNS):
        word = turn * WORDS + tl.arange(0, WORDS)
        words = words + (tl.load(start + word, mask=word * 8 < left, other=0, eviction_policy="evict_first"),)
    return words


@triton.jit
def store_words(out, left, words, book, times, flip, WORDS: tl.constexpr, TURNS: tl.constexpr, SHARING: tl.constexpr):
    """out[i] = book[code] times[i // (8 SHARING)]; flip 4: the first of a byte's codes is in the high half, 0: in the low."""
    bits = (tl.arange(0, 8) * 4) ^ flip
    for turn in tl.static_range(TURNS):
        word = turn * WORDS + tl.arange(0, WORDS)
        code = (words[turn][:, None] >> bits[None, :]) & 15
        value = tl.gather(book, code.reshape(WORDS * 8), 0).reshape(WORDS, 8) * tl.gather(times, word // SHARING, 0)[:, None]
        i = word[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(out + i, value.to(out.dtype.element_ty), mask=(word * 8 < left)[:, None])


@triton.jit
def nf4_dequantise(codes, absmax, nested, mean, out, size, step, out_step, BLOCK: tl.constexpr, WORDS: tl.constexpr):
    """BLOCK values a program, of BLOCK / 64 blocks."""
    step, out_step = step // 256 * 256, out_step // 8 * 8  # as they are: tells the compiler that weights are aligned
    weight = tl.program_id(2).to(tl.int64)
    codes, absmax, out = codes + weight * step, absmax + weight * step, out + weight * out_step
    nested, mean = nested + weight * (step // 4), mean + weight * (step // 4)
    TURNS: tl.constexpr = BLOCK // 8 // WORDS
    first = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(size - first, BLOCK).to(tl.int32)
    block = tl.arange(0, BLOCK // NF4_BLOCK)
    some = block * NF4_BLOCK < left
    quantised = tl.load(absmax + first // NF4_BLOCK + block, mask=some, other=0).to(tl.int32)
    scale = tl.load(nested + (first // NF4_BLOCK + block) // NESTED_BLOCK, mask=some, other=0.0)
    words = words_at(codes, first, left, WORDS, TURNS)
    most = dynamic_value(quantised)
    most = tl.fma(most, scale, tl.zeros_like(most)) + tl.load(mean)  # the product is rounded before the sum
    store_words(out + first, left, words, nf4_value(tl.arange(0, 16)), most, 4, WORDS, TURNS, NF4_BLOCK // 8)


@triton.jit
def int8_dequantise(codes, scale, out, K, step, out_step, BLOCK: tl.constexpr):
    """A part of a row a program."""
    K, step, out_step = K // 8 * 8, step // 256 * 256, out_step // 8 * 8
    weight = tl.program_id(2).to(tl.int64)
    codes, scale, out = codes + weight * step, scale + weight * (step // 4), out + weight * out_step
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + n * K + k, mask=k < K, other=0).to(tl.float32)
    tl.store(out + n * K + k, (code * tl.load(scale + n)).to(out.dtype.element_ty), mask=k < K)


@triton.jit
def power_of_2(exponent):
    """f32, of -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def mxfp4_expand(codes, scale, out, size, step, out_step, BLOCK: tl.constexpr, WORDS: tl.constexpr):
    """BLOCK values a program, of BLOCK / 32 blocks."""
    step, out_step = step // 256 * 256, out_step // 8 * 8
    weight = tl.program_id(2).to(tl.int64)
    codes, scale, out = codes + weight * step, scale + weight * step, out + weight * out_step
    TURNS: tl.constexpr = BLOCK // 8 // WORDS
    first = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(size - first, BLOCK).to(tl.int32)
    block = tl.arange(0, BLOCK // MX_BLOCK)
    e = tl.load(scale + first // MX_BLOCK + block, mask=block * MX_BLOCK < left, other=127).to(tl.int32)
    words = words_at(codes, first, left, WORDS, TURNS)
    times = tl.where(e == 255, float("nan"), power_of_2(tl.maximum(e, 1) - 127)) * tl.where(e == 0, 0.5, 1.0)
    store_words(out + first, left, words, mx_value(tl.arange(0, 16)), times, 0, WORDS, TURNS, MX_BLOCK // 8)


@triton.jit
def mx_value(code):
    """Of e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, that of 0 among them."""
    exponent, half = (code >> 1) & 3, (code & 1).to(tl.float32) * 0.5
    value = tl.where(exponent == 0, half, (1.0 + half) * power_of_2(exponent - 1))
    return value * tl.where(code > 7, -1.0, 1.0)


@triton.jit
def fp8_expand(codes, exponents, out, K, step, out_step, BLOCK: tl.constexpr):
    """A part of a row a program."""
    K, step, out_step = K // 8 * 8, step // 256 * 256, out_step // 8 * 8
    weight = tl.program_id(2).to(tl.int64)
    codes, exponents, out = codes + weight * step, exponents + weight * step, out + weight * out_step
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + n * K + k, mask=k < K, other=0).to(tl.int32)
    magnitude, exponent = code & 7, (code >> 3) & 15
    power = power_of_2(tl.maximum(exponent, 1) - 10)  # without an exponent that of 1
    value = (magnitude + tl.where(exponent > 0, 8, 0)).to(tl.float32) * power
    value = tl.where(code & 127 == 127, float("nan"), value * tl.where(code > 127, -1.0, 1.0))
    row_scale = power_of_2(tl.load(exponents + n).to(tl.int32) - 127)
    tl.store(out + n * K + k, (value * row_scale).to(out.dtype.element_ty), mask=k < K)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("packed", "int8_quantise", kind, "x:c codes:*i8 scale:*fp32 K:i32", warps=8, BLOCK=4096)
        yield row("packed", "int8_dequantise", kind, "codes:*i8 scale:*fp32 out:c K:i32 step:i64 out_step:i64", BLOCK=2048)
        yield row("packed", "mxfp4_expand", kind, "codes:*u8 scale:*u8 out:c size:i64 step:i64 out_step:i64", BLOCK=8192, WORDS=128)
        yield row("packed", "nf4_quantise", kind, "x:c codes:*u8 absmax:*fp32 size:i64", BLOCKS=32)
        yield row("packed", "nf4_dequantise", kind, "codes:*u8 absmax:*u8 nested:*fp32 mean:*fp32 out:c size:i64 step:i64 out_step:i64", BLOCK=8192, WORDS=128)
    yield row("packed", "fp8_expand", "ptr", "codes:*u8 exponents:*u8 out:c K:i32 step:i64 out_step:i64", BLOCK=2048)
    yield row("packed", "nf4_mean", None, "absmax:*fp32 mean:*fp32 blocks:i32", warps=8, BLOCK=4096)
    yield row("packed", "nf4_nest", None, "absmax:*fp32 mean:*fp32 nested:*fp32 codes:*u8 blocks:i32")
