"""VeRA's factors out of frozen random projections and trained vectors (Kopiczko et al. 2024), and their gradients.
Memory-bound.

    vera_expand    factor[l, i, j] = vector[l, i] draw(i stride + j)
    vera_reduce    vector[l, i] += sum_j grad[l, i, j] draw(i stride + j), and grad[l, i, j] = 0

for adapters l with which[l] != 0, of one linear g. draw(e) = ((mix(key ^ e) >> 8) 2^-23 - 1) bound: methods/projection.ts. SIDE
0 is A: rows i below rank = ranks[l, g], columns j below K, stride = projection[l, 2]; SIDE 1 is B: rows of the linear, columns
j below rank, stride = rank. All else is left as it is.

Shapes: factor c[L, rows, ld], grad f32 likewise, vector f32[L, rows], L strided, from the linear's first value on; ranks i32[L,
G]; which i32[L]; projection i32[L, 5]: keys of A and B, width, bits of the bounds of A and B. No scratch.

Order of sums: over j in blocks of BJ lanes, so it does not depend on the padded rank or on other adapters.

Launch: vera_expand grid (L, ceil(rows / BI), ceil(ld / BJ)); vera_reduce grid (L, ceil(rows / BI)); rows is the padded rank
where SIDE is 0.
"""
import triton
import triton.language as tl

from dropout import mix


@triton.jit
def draw(key, index, bound):
    """Elements of a projection; index i32, key as it lies in the table."""
    bits = mix(key.to(tl.uint32, bitcast=True) ^ index.to(tl.uint32, bitcast=True))
    return ((bits >> 8).to(tl.float32) * (1.0 / (1 << 23)) - 1.0) * bound


@triton.jit
def extent(ranks, projection, slot, g, G, rows, K, SIDE: tl.constexpr):
    """Rows, columns and stride of what there is of a linear, key and bound."""
    rank = tl.load(ranks + slot * G + g)
    key = tl.load(projection + slot * 5 + SIDE)
    bound = tl.load(projection + slot * 5 + 3 + SIDE).to(tl.float32, bitcast=True)
    if SIDE == 0:
        valid, columns, stride = rank, K, tl.load(projection + slot * 5 + 2)
    else:
        valid, columns, stride = tl.where(rank > 0, rows, 0), rank, rank
    return valid, columns, stride, key, bound


@triton.jit
def vera_expand(factor, vector, ranks, which, projection, factor_stride, vector_stride, g, G, rows, ld,
                SIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """BI rows and BJ columns of one adapter's factor. See the top of the file."""
    slot = tl.program_id(0)
    if tl.load(which + slot) == 0:
        return
    valid, columns, stride, key, bound = extent(ranks, projection, slot, g, G, rows, ld, SIDE)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    j = tl.program_id(2) * BJ + tl.arange(0, BJ)
    scale = tl.load(vector + tl.cast(slot, tl.int64) * vector_stride + i, mask=i < valid, other=0.0)
    value = draw(key, i[:, None] * stride + j[None, :], bound) * scale[:, None]
    at = factor + tl.cast(slot, tl.int64) * factor_stride + i.to(tl.int64)[:, None] * ld + j[None, :]
    tl.store(at, value.to(factor.dtype.element_ty), mask=(i < valid)[:, None] & (j < columns)[None, :])


@triton.jit
def vera_reduce(grad, vector, ranks, which, projection, grad_stride, vector_stride, g, G, rows, ld,
                SIDE: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """BI rows of one adapter's gradient. See the top of the file."""
    slot = tl.program_id(0)
    if tl.load(which + slot) == 0:
        return
    valid, columns, stride, key, bound = extent(ranks, projection, slot, g, G, rows, ld, SIDE)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    row = grad + tl.cast(slot, tl.int64) * grad_stride + i.to(tl.int64)[:, None] * ld
    sums = tl.zeros((BI, BJ), tl.float32)
    for j0 in range(0, columns, BJ):
        j = j0 + tl.arange(0, BJ)
        there = (i < valid)[:, None] & (j < columns)[None, :]
        sums += tl.load(row + j[None, :], mask=there, other=0.0) * draw(key, i[:, None] * stride + j[None, :], bound)
        tl.debug_barrier()  # all have read what is written now, whatever layout the compiler gives the store
        tl.store(row + j[None, :], tl.zeros((BI, BJ), tl.float32), mask=there)
    at = vector + tl.cast(slot, tl.int64) * vector_stride + i
    tl.store(at, tl.load(at, mask=i < valid, other=0.0) + tl.sum(sums, axis=1), mask=i < valid)


# What is compiled.

from variants import row

TABLES = "vector:*fp32 ranks:*i32 which:*i32 projection:*i32"
NUMBERS = "vector_stride:i64 g:i32 G:i32 rows:i32 ld:i32"


def variants():
    for side, blocks in enumerate((dict(BI=8, BJ=256), dict(BI=64, BJ=16))):
        for kind in ("ptr", "f32"):
            yield row("vera", "vera_expand", kind, f"factor:c {TABLES} factor_stride:i64 {NUMBERS}", SIDE=side, **blocks)
    for side, blocks in enumerate((dict(BI=4, BJ=256), dict(BI=64, BJ=16))):
        yield row("vera", "vera_reduce", None, f"grad:*fp32 {TABLES} grad_stride:i64 {NUMBERS}", SIDE=side, **blocks)
