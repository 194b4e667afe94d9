"""The linear layer of linear.py over a frozen weight in e4m3, multiplied in e4m3 by the tensor cores of Hopper, or of Ada by
pointers.

    fp8_pack          codes[n, k] = e4m3(x[n, k] / 2^e[n]), 2^e[n] the least power of two that is at least max |x[n]| / 448
    turn              turned[k, n] = codes[n, k]
    fp8_dequantise    out[n, k] = codes[n, k] 2^e[n]
    fp8_quantise      codes[m, k] = e4m3(v / scale[m]), v = x[m, k] or x[m, k] 2^e[k] of columns, scale[m] = max |v| / 448
    fp8_forward       y[m, n]  = x_scale[m] 2^e[n] sum_k x[m, k] w[n, k] + bias[n] + residual[m, n]
                      + what linear_forward adds for adapters
    fp8_backward      dx[m, k] = dy_scale[m] sum_n dy[m, n] turned[k, n] + what linear_backward adds for adapters

x and dy are codes of fp8_quantise, row by row, so that other adapters change nothing; dy's have the weight's scales in them
(columns), so that one scale a row is left. These are powers of two: a byte each, for their rows are read with each row of dy,
and a value times one is held in bf16 as it is. e4m3 has the same digits at any power of two. A NaN stays one.

The tensor cores want both factors to run along the sum, hence the turned copy. They keep about 14 bits of a sum (more would
take the registers of a second accumulator), a tenth of what rounding to e4m3 loses.

Shapes: x codes[M, K], w codes[N, K], turned codes[K, N], dy codes[M, N]; x_scale, dy_scale f32[M]; exponents (w_scale, columns)
u8[N], e + 127; the rest as linear.py. K and N multiples of 16. Launch: fp8_pack (N); fp8_quantise (M); turn (ceil(K / BLOCK),
ceil(N / BLOCK)); fp8_dequantise (N, ceil(K / BLOCK)); the products as linear.py. No scratch.
"""
import triton
import triton.language as tl

from linear import backward_half, dropout_of_tile, forward_half, low_of_tile
from tile import halves, load_tile, tile_place

MOST = tl.constexpr(448.0)  # the largest e4m3


@triton.jit
def power(exponent):
    """2^e, f32, of e + 127: 1 to 254."""
    return (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent_of(most):
    """e + 127 of the least power of two that is at least most / 448, of weights that are no smaller than e4m3's at 2^-126."""
    bits = tl.div_rn(most, MOST).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    return tl.minimum(tl.maximum(exponent, 1), 253)


@triton.jit
def inverse_power(exponent):
    return ((254 - exponent.to(tl.int32)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def at_columns(v, columns, k, K):
    """Some of a row in f32, times the columns' powers of two."""
    return v * power(tl.load(columns + k, mask=k < K, other=127))


@triton.jit
def scale_of(most, scale):
    """Writes the scale of a row and returns its inverse."""
    largest = tl.max(most)
    tl.store(scale + tl.program_id(0), tl.div_rn(largest, MOST))
    return tl.where(largest > 0, tl.div_rn(MOST, largest), 0.0)


@triton.jit
def row_part(base, k, K):
    """Some of a row that is read once; caches are for the columns."""
    return tl.load(base + k, mask=k < K, other=0.0, cache_modifier=".cg")


@triton.jit
def to_e4m3(v, HALVES: tl.constexpr):
    """
    f32 to the nearest e4m3. Before Hopper Triton goes by f16, to which it cuts v: HALVES = 1 sets the last bit that f16 holds
    where bits are cut off, so that what is above the middle of two numbers stays above it.
    """
    if HALVES:
        bits = v.to(tl.int32, bitcast=True)
        v = (bits | (((bits & 0x1FFF) != 0).to(tl.int32) << 13)).to(tl.float32, bitcast=True)
    return v.to(tl.float8e4nv)


@triton.jit
def store_part(v, inverse, codes, k, K, HALVES: tl.constexpr):
    """v inverse in e4m3, which ends at 448."""
    tl.store(codes + k, to_e4m3(v.to(tl.float32) * inverse, HALVES), mask=k < K)


@triton.jit
def fp8_pack(x, exponents, codes, K, BLOCK: tl.constexpr, HALVES: tl.constexpr):
    """A row of a weight a program, read twice."""
    K = K // 16 * 16  # as it is: tells the compiler that rows are aligned
    x, codes = x + tl.program_id(0).to(tl.int64) * K, codes + tl.program_id(0).to(tl.int64) * K
    most = tl.zeros((BLOCK,), tl.float32)
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.abs(tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)))
    exponent = exponent_of(tl.max(most))
    tl.store(exponents + tl.program_id(0), exponent.to(tl.uint8))
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        store_part(tl.load(x + k, mask=k < K, other=0.0), inverse_power(exponent), codes, k, K, HALVES)


@triton.jit
def fp8_quantise(x, columns, codes, scale, K, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, HALVES: tl.constexpr):
    """A row a program: held as CHUNKS parts of BLOCK, or, with 0, read twice, the second time from a cache."""
    K = K // 16 * 16
    x, codes = x + tl.program_id(0).to(tl.int64) * K, codes + tl.program_id(0).to(tl.int64) * K
    most = tl.zeros((BLOCK,), tl.float32)
    if CHUNKS:
        parts = ()
        for chunk in tl.static_range(CHUNKS):  # all are under way before the first is needed
            parts = parts + (row_part(x, chunk * BLOCK + tl.arange(0, BLOCK), K),)
        held = ()
        for chunk in tl.static_range(CHUNKS):
            v = parts[chunk].to(tl.float32)
            if COLUMNS:
                v = at_columns(v, columns, chunk * BLOCK + tl.arange(0, BLOCK), K)
            most = tl.maximum(most, tl.abs(v))
            held = held + (v.to(x.dtype.element_ty),)
        inverse = scale_of(most, scale)
        for chunk in tl.static_range(CHUNKS):
            store_part(held[chunk], inverse, codes, chunk * BLOCK + tl.arange(0, BLOCK), K, HALVES)
    else:
        for k0 in range(0, K, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            if COLUMNS:
                v = at_columns(v, columns, k, K)
            most = tl.maximum(most, tl.abs(v))
        inverse = scale_of(most, scale)
        for k0 in range(0, K, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            if COLUMNS:
                v = at_columns(v, columns, k, K)
            store_part(v, inverse, codes, k, K, HALVES)


@triton.jit
def turn(codes, turned, N, K, BLOCK: tl.constexpr):
    """A tile of bytes a program."""
    N, K = N // 16 * 16, K // 16 * 16
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (n < N)[:, None] & (k < K)[None, :]
    tile = tl.load(codes + n.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0)
    tl.store(turned + k.to(tl.int64)[:, None] * N + n[None, :], tile.T, mask=inside.T)


@triton.jit
def fp8_dequantise(codes, exponents, out, K, BLOCK: tl.constexpr):
    """A part of a row a program."""
    K = K // 16 * 16
    n, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + n * K + k, mask=k < K, other=0.0).to(tl.float32)
    tl.store(out + n * K + k, (code * power(tl.load(exponents + n))).to(out.dtype.element_ty), mask=k < K)


@triton.jit
def scaled(acc, x_scale, w_scale, m0, n0, N, BM: tl.constexpr, H: tl.constexpr):
    """Half a tile at a time: the columns' scales take registers."""
    n = n0 + tl.arange(0, H)
    return acc * (tl.load(x_scale + m0 + tl.arange(0, BM))[:, None] * power(tl.load(w_scale + n, mask=n < N, other=127))[None, :])


@triton.jit
def fp8_forward(x, x_scale, w, w_scale, y, bias, residual, s, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride, M, N, K, first1, first2, G,
                BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                BIAS: tl.constexpr, RESIDUAL: tl.constexpr, LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """y = x w^T with their scales + bias + residual + scale s b. See the top of the file."""
    N = N // 16 * 16  # as they are: tells the compiler that rows are aligned
    K, first1, first2 = K // 16 * 16, first1 // 8 * 8, first2 // 8 * 8
    H: tl.constexpr = BN // 2
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    blocks = tl.cdiv(K, BK)
    tl.assume(blocks > 0)  # as in linear.py
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_n = tile_place(tile, tiles_m, tiles_n, GROUP)
        m0, n0 = tile_m * BM, tile_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(blocks):
            acc = tl.dot(load_tile(x, m0, k * BK, M, K, BM, BK, DESC), load_tile(w, n0, k * BK, N, K, BN, BK, DESC).T, acc)
        adapter, three, ends, s_row = low_of_tile(s, low_at, ranks, tile_adapter, ranks_stride, m0, G, BM, LORA)
        left, right = halves(acc, BM, BN)
        left = scaled(left, x_scale, w_scale, m0, n0, N, BM, H)
        forward_half(left, y, bias, residual, s_row, factors, scale, adapter, three, ends, factors_stride, scale_stride, m0, n0, first1, first2, M, N, G,
                     BM, H, BIAS, RESIDUAL, LORA, RB, WIDE, WHOLE, DESC)
        right = scaled(right, x_scale, w_scale, m0, n0 + H, N, BM, H)
        forward_half(right, y, bias, residual, s_row, factors, scale, adapter, three, ends, factors_stride, scale_stride, m0, n0 + H, first1, first2, M, N, G,
                     BM, H, BIAS, RESIDUAL, LORA, RB, WIDE, WHOLE, DESC)


@triton.jit
def fp8_backward(dy, dy_scale, w, dx, ds, low_at, factors, ranks, tile_adapter, row_number, dropout, module, factors_stride, ranks_stride, M, N, K, G,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                 LORA: tl.constexpr, RB: tl.constexpr, WIDE: tl.constexpr, DESC: tl.constexpr, FLAT: tl.constexpr):
    """dx = dy w with dy's scales + drop'(ds a); w is turned. See the top of the file."""
    K, N = K // 16 * 16, N // 16 * 16
    H: tl.constexpr = BN // 2
    tiles_m, tiles_k = tl.cdiv(M, BM), tl.cdiv(K, BN)
    blocks = tl.cdiv(N, BK)
    tl.assume(blocks > 0)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_k, tl.num_programs(0), flatten=FLAT):
        tile_m, tile_k = tile_place(tile, tiles_m, tiles_k, GROUP)
        m0, k0 = tile_m * BM, tile_k * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for n in range(blocks):
            acc = tl.dot(load_tile(dy, m0, n * BK, M, N, BM, BK, DESC), load_tile(w, k0, n * BK, K, N, BN, BK, DESC).T, acc)
        acc = acc * tl.load(dy_scale + m0 + tl.arange(0, BM))[:, None]
        adapter, three, ends, ds_row = low_of_tile(ds, low_at, ranks, tile_adapter, ranks_stride, m0, G, BM, LORA)
        drop = dropout_of_tile(dropout, row_number, adapter, module, m0, BM, LORA)
        left, right = halves(acc, BM, BN)
        backward_half(left, dx, ds_row, factors, adapter, three, ends, drop, factors_stride, m0, k0, M, K, BM, H, LORA, RB, WIDE, DESC)
        backward_half(right, dx, ds_row, factors, adapter, three, ends, drop, factors_stride, m0, k0 + H, M, K, BM, H, LORA, RB, WIDE, DESC)

# What is compiled.

from linear_variants import RANKS_BACKWARD, forward_rows
from variants import HALVES

PRODUCT = {
    "tma": dict(BM=128, BN=256, BK=128, GROUP=16, DESC=1),
    "ptr": dict(BM=128, BN=128, BK=64, GROUP=8, DESC=0),
}
ARCH = {"tma": "sm_90a", "ptr": "sm_89"}
WARPS, STAGES = 8, 3
CHUNKS = (1, 3, 6, 0)  # a launch takes the first that holds a row, or the last
TABLES = "low_at:*i32 factors:*i64"
PARAMETERS = {
    "fp8_pack": "x:*bf16 exponents:*u8 codes:*fp8e4nv K:i32",
    "fp8_quantise": "x:*bf16 columns:*u8 codes:*fp8e4nv scale:*fp32 K:i32",
    "turn": "codes:*u8 turned:*u8 N:i32 K:i32",
    "fp8_dequantise": "codes:*fp8e4nv exponents:*u8 out:*bf16 K:i32",
    "fp8_forward": f"x:d x_scale:*fp32 w:d w_scale:*u8 y:d bias:*bf16 residual:d s:*bf16 {TABLES} scale:*fp32 ranks:*i32 tile_adapter:*i32 "
    "factors_stride:i32 scale_stride:i32 ranks_stride:i32 M:i32 N:i32 K:i32 first1:i32 first2:i32 G:i32",
    "fp8_backward": f"dy:d dy_scale:*fp32 w:d dx:d ds:*bf16 {TABLES} ranks:*i32 tile_adapter:*i32 row_number:*i32 dropout:*i32 module:i32 "
    "factors_stride:i32 ranks_stride:i32 M:i32 N:i32 K:i32 G:i32",
}


def blocks_of(kernel, BM, BN, BK):
    """Types and blocks of the tensor descriptors."""
    half = BN // 2
    shared = dict(w=("fp8e4nv", (BN, BK)))
    if kernel == "fp8_forward":
        return shared | dict(x=("fp8e4nv", (BM, BK)), y=("bf16", (BM, half)), residual=("bf16", (BM, half)))
    return shared | dict(dy=("fp8e4nv", (BM, BK)), dx=("bf16", (BM, half)))


def variant(kernel, kind, warps, stages=1, **constants):
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    if "d" in signature.values():
        blocks = blocks_of(kernel, *(constants[name] for name in ("BM", "BN", "BK")))
        for name, (dtype, block) in blocks.items():
            signature[name] = f"tensordesc<{dtype}[{','.join(map(str, block))}]>" if constants["DESC"] else f"*{dtype}"
    return dict(module="fp8", kernel=kernel, kinds=[kind], arch=ARCH[kind], dtype="bf16", constants=constants, warps=warps, stages=stages, signature=signature)


def variants():
    """Every row of this family."""
    for kind, product in PRODUCT.items():
        flat = product["DESC"]
        for columns in (0, 1):
            for chunks in CHUNKS:
                warps = 8 if columns and chunks == 3 else 16 if columns or chunks > 1 else 8
                yield variant("fp8_quantise", kind, warps, COLUMNS=columns, BLOCK=4096, CHUNKS=chunks, HALVES=HALVES[kind])
        yield variant("fp8_pack", kind, 8, BLOCK=4096, HALVES=HALVES[kind])
        yield variant("turn", kind, 4, BLOCK=64)
        yield variant("fp8_dequantise", kind, 4, BLOCK=2048)
        for constants in forward_rows(kind, flat):
            yield variant("fp8_forward", kind, WARPS, STAGES, **product, **constants)
        for RB, wide in RANKS_BACKWARD[kind]:
            yield variant("fp8_backward", kind, WARPS, STAGES, **product, LORA=1, RB=RB, WIDE=wide, FLAT=flat & ~wide)
        yield variant("fp8_backward", kind, WARPS, STAGES, **product, LORA=0, RB=16, WIDE=0, FLAT=flat)
