"""VeRA's factors out of frozen random projections and trained vectors (Kopiczko et al. 2024), and their gradients.
Memory-bound.

    vera_expand    A_g[r, k] = lambda_d[r] draw(r width + k)    (SIDE 0)    B_g[r, n] = lambda_b[n] draw(n rank + r)    (SIDE 1)
    vera_reduce    the vector's gradient += the sum over k or r of the factor's gradient times the draw, and that gradient = 0

for adapters l with which[l] != 0, of one linear g, n counted within it. draw(e) = ((mix(key ^ e) >> 8) 2^-23 - 1) bound:
methods/projection.ts.

Shapes: the factors [rank, columns] and their gradients as adapters.py has them, columns = K or those of the linear; vectors
i64[L, G, 4], L strided: addresses of lambda_d f32[rank], its gradient, lambda_b f32[columns] and its gradient; which i32[L];
projection i32[L, 5]: keys of A and B, width, bits of the bounds of A and B. No scratch.

Order of sums: over k in blocks of BJ lanes; over r one after the other, BI lanes apart. So it is the adapter's own.

Launch: grid (L, as many as there are to be).
"""
import triton
import triton.language as tl

from adapters import factor
from dropout import mix


@triton.jit
def draw(key, index, bound):
    """Elements of a projection; index i32, key as it lies in the table."""
    bits = mix(key.to(tl.uint32, bitcast=True) ^ index.to(tl.uint32, bitcast=True))
    return ((bits >> 8).to(tl.float32) * (1.0 / (1 << 23)) - 1.0) * bound


@triton.jit
def projection_of(projection, slot, rank, SIDE: tl.constexpr):
    """Key, bound, and the distance of two elements of a row and of a column."""
    at = projection + slot * 5
    key, bound = tl.load(at + SIDE), tl.load(at + 3 + SIDE).to(tl.float32, bitcast=True)
    if SIDE == 0:
        return key, bound, 1, tl.load(at + 2)
    else:
        return key, bound, rank, 1


@triton.jit
def vector(vectors, vectors_stride, slot, g, which: tl.constexpr):
    """A pointer to an f32 vector of an adapter."""
    address = tl.load(vectors + tl.cast(slot, tl.int64) * vectors_stride + g * 4 + which)
    return address.to(tl.pointer_type(tl.float32))


@triton.jit
def vera_expand(factors, vectors, ranks, which, projection, factors_stride, vectors_stride, ranks_stride, g, columns,
                SIDE: tl.constexpr, BF16: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """Blocks of BI rows and BJ columns of one adapter's factor. See the top of the file."""
    columns = columns // 8 * 8  # as it is: tells the compiler that rows are aligned
    slot = tl.program_id(0)
    rank = tl.load(ranks + tl.cast(slot, tl.int64) * ranks_stride + g)
    if (tl.load(which + slot) == 0) | (rank == 0):
        return
    key, bound, step_j, step_i = projection_of(projection, slot, rank, SIDE)
    dtype: tl.constexpr = tl.bfloat16 if BF16 else tl.float32
    to = factor(factors, factors_stride, slot, g, rank, SIDE, dtype)
    of = vector(vectors, vectors_stride, slot, g, 2 * SIDE)
    across = tl.cdiv(columns, BJ)
    for block in range(tl.program_id(1), tl.cdiv(rank, BI) * across, tl.num_programs(1)):
        i = block // across * BI + tl.arange(0, BI)
        j = block % across * BJ + tl.arange(0, BJ)
        value = draw(key, i[:, None] * step_i + j[None, :] * step_j, bound)
        if SIDE == 0:
            value *= tl.load(of + i, mask=i < rank, other=0.0)[:, None]
        else:
            value *= tl.load(of + j, mask=j < columns, other=0.0)[None, :]
        inside = (i < rank)[:, None] & (j < columns)[None, :]
        tl.store(to + i.to(tl.int64)[:, None] * columns + j[None, :], value.to(dtype), mask=inside)


@triton.jit
def reduce_block(grad, key, bound, step_i, step_j, i, j, rank, columns):
    """The gradient times the draw, and zeros in its place."""
    inside = (i < rank)[:, None] & (j < columns)[None, :]
    at = grad + i.to(tl.int64)[:, None] * columns + j[None, :]
    value = tl.load(at, mask=inside, other=0.0)
    tl.debug_barrier()  # all have read what is written now, whatever layout the compiler gives the store
    tl.store(at, tl.zeros_like(value), mask=inside)
    return value * draw(key, i[:, None] * step_i + j[None, :] * step_j, bound)


@triton.jit
def vera_reduce(factors, vectors, ranks, which, projection, factors_stride, vectors_stride, ranks_stride, g, columns,
                SIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """Blocks of one adapter's vector: BI of lambda_d or BJ of lambda_b. See the top of the file."""
    columns = columns // 8 * 8
    slot = tl.program_id(0)
    rank = tl.load(ranks + tl.cast(slot, tl.int64) * ranks_stride + g)
    if (tl.load(which + slot) == 0) | (rank == 0):
        return
    key, bound, step_j, step_i = projection_of(projection, slot, rank, SIDE)
    to = vector(vectors, vectors_stride, slot, g, 2 * SIDE + 1)
    grad = factor(factors, factors_stride, slot, g, rank, 2 + SIDE, tl.float32)
    lanes_i, lanes_j = tl.arange(0, BI), tl.arange(0, BJ)
    size: tl.constexpr = BI if SIDE == 0 else BJ
    length = rank if SIDE == 0 else columns
    for first in range(tl.program_id(1) * size, length, tl.num_programs(1) * size):
        sums = tl.zeros((BI, BJ), tl.float32)
        if SIDE == 0:
            for j0 in range(0, columns, BJ):
                sums += reduce_block(grad, key, bound, step_i, step_j, first + lanes_i, j0 + lanes_j, rank, columns)
        else:
            for i0 in range(0, rank, BI):
                sums += reduce_block(grad, key, bound, step_i, step_j, i0 + lanes_i, first + lanes_j, rank, columns)
        at = first + (lanes_i if SIDE == 0 else lanes_j)
        total = tl.load(to + at, mask=at < length, other=0.0) + tl.sum(sums, axis=1 - SIDE)
        tl.store(to + at, total, mask=at < length)

# What is compiled.

from variants import row

TABLES = "factors:*i64 vectors:*i64 ranks:*i32 which:*i32 projection:*i32"
NUMBERS = "factors_stride:i32 vectors_stride:i32 ranks_stride:i32 g:i32 columns:i32"


def variants():
    for side in (0, 1):
        for kind in ("ptr", "f32"):
            yield row("vera", "vera_expand", kind, f"{TABLES} {NUMBERS}", SIDE=side, BF16=int(kind == "ptr"), BI=8, BJ=256)
        yield row("vera", "vera_reduce", None, f"{TABLES} {NUMBERS}", SIDE=side, BI=4, BJ=(256, 128)[side])
