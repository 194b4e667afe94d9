"""Random weights, made where they are needed: the same bits on every device.

    random_fill    out[i] = ((bits(i) >> 8) 2^-23 - 1) scale,  bits(i) = mix(mix(mix(seed) ^ high) ^ low),  i = high 2^32 + low

mix is that of base/rng.ts. The factor of scale is exact in f32, their product is rounded once, and once more to bf16 where out
is. Shapes: out c[size]; size i64.

Launch: grid (ceil(size / BLOCK)), no scratch.
"""
import triton
import triton.language as tl

from dropout import mix


@triton.jit
def random_fill(out, size, seed, scale, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file; BLOCK divides 2^32, so that a program has one high word."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    key = mix(mix(seed.to(tl.uint32, bitcast=True)) ^ (first >> 32).to(tl.uint32))
    bits = mix(key ^ (first.to(tl.uint32) + i.to(tl.uint32)))
    value = ((bits >> 8).to(tl.float32) * (1.0 / (1 << 23)) - 1.0) * scale
    value = value.to(out.dtype.element_ty)
    if first + BLOCK <= size:
        tl.store(out + first + i, value)  # without a mask, since one that ends anywhere would make narrow stores
    else:
        tl.store(out + first + i, value, mask=first + i < size)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("fill", "random_fill", kind, "out:c size:i64 seed:i32 scale:fp32", BLOCK=4096)
