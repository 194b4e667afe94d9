"""AdamW or SGD, each adapter its own, of all adapters in one launch, and the squares of their gradients' norms.

    grad_norm     squares[l, s] = sum of squares of tensor s of adapter l: (first element, rows, columns) = tensors[s]
    adamw_step    for adapters whose optimizer is 1 (AdamW):  g = grad coefficient,  m += (g - m) (1 - beta1),
                  v = beta2 v + (1 - beta2) g^2,
                  p = p (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps),
                  grad = 0,  copy = bf16(p)
                  of those whose optimizer is 2 (SGD):  d = grad coefficient + decay p,  m = momentum m + d,
                  p -= lr (d + momentum m with nesterov, else m);  grad = 0,  copy = bf16(p);  v is not touched

Shapes: params, grads, m, v f32[L, P]; copy bf16[L, P], not touched where COPY = 0; table f32[L, 11] = optimizer, lr, 1 - beta1,
beta2, 1 - beta2, eps, decay, 1 - beta1^t, 1 - beta2^t, coefficient, lr of B, of SGD momentum and nesterov (0 or 1) as the third
and the fourth; factors i32[P / 128] = 1 where 128 elements are of a B, which takes that rate (LoRA+), else 0; tensors i32[S,
3]; squares f32[L, S]. Needs: P a multiple of 128, at most 2^31 elements; tensors begin at multiples of 8 and have multiples of
8 columns.

Blind to padding. The padded rank depends on the other adapters, so rows of zeros anywhere (A: [G R, K]) and columns of zeros at
the end (B: [N, R]) must not change a bit of a sum. A tensor of at most LOW rows, as A is at any rank (3 x 256), is cut by
columns: each lane adds its columns from row to row, and a zero adds nothing. A taller one is a B: it is cut by rows, and each
lane adds every 16th element of its rows. Places and order of what is not zero are the same at every padded rank.

Launch:
    grad_norm        grid (SLICES, S, L); part f32[L, S, SLICES] is scratch, written everywhere
    grad_norm_sum    then, grid (ceil(L S / BLOCK)), size = L S
    adamw_step       grid (ceil(P / BLOCK), L), no scratch; programs of adapters without an optimizer (0) end at once
"""
import triton
import triton.language as tl

LOW = tl.constexpr(768)  # three linears of rank 256: the most rows that A has
UNROLL = tl.constexpr(16)  # rows that a lane has on their way


@triton.jit
def low_sum(grad, rows, columns, slice, SLICES: tl.constexpr, COLUMNS: tl.constexpr):
    """Squares of columns slice * COLUMNS .., and of every SLICES-th block after it, from row to row."""
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(slice * COLUMNS, columns, SLICES * COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        for row in range(0, rows, UNROLL):
            for k in tl.static_range(UNROLL):
                g = tl.load(grad + tl.cast(row + k, tl.int64) * columns + c, mask=(c < columns) & (row + k < rows), other=0.0)
                total += g * g
    return tl.sum(total)


@triton.jit
def tall_sum(grad, rows, columns, slice, SLICES: tl.constexpr, ROWS: tl.constexpr):
    """Squares of rows slice * ROWS .., and of every SLICES-th block after it; 16 columns at a time."""
    total = tl.zeros((ROWS, 16), tl.float32)
    for first in range(slice * ROWS, rows, SLICES * ROWS):
        row = first + tl.arange(0, ROWS)
        for column in range(0, columns, 16):
            c = column + tl.arange(0, 16)
            g = tl.load(grad + row.to(tl.int64)[:, None] * columns + c[None, :], mask=(row < rows)[:, None] & (c < columns)[None, :], other=0.0)
            total += g * g
    return tl.sum(total)


@triton.jit
def grad_norm(grads, tensors, part, P, SLICES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The part of one slice of one tensor of one adapter. See the top of the file."""
    P = P // 128 * 128  # as it is: tells the compiler that adapters are aligned
    slice, s, l = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, rows, columns = tl.load(tensors + s * 3), tl.load(tensors + s * 3 + 1), tl.load(tensors + s * 3 + 2)
    first, columns = first // 8 * 8, columns // 8 * 8
    grad = grads + l.to(tl.int64) * P + first
    if rows > LOW:
        total = tall_sum(grad, rows, columns, slice, SLICES, ROWS)
    else:
        total = low_sum(grad, rows, columns, slice, SLICES, COLUMNS)
    tl.store(part + (l * tl.num_programs(1) + s) * SLICES + slice, total)


@triton.jit
def grad_norm_sum(part, squares, size, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """squares[i] = the sum of part[i, :], i < size = L S."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parts = tl.load(part + i[:, None] * SLICES + tl.arange(0, SLICES)[None, :], mask=(i < size)[:, None], other=0.0)
    tl.store(squares + i, tl.sum(parts, axis=1), mask=i < size)


@triton.jit
def adamw_step(params, grads, m, v, copy, factors, table, P, BLOCK: tl.constexpr, COPY: tl.constexpr):
    """BLOCK parameters of one adapter. See the top of the file."""
    row = table + tl.program_id(1) * 11
    optimizer = tl.load(row)
    if optimizer == 0.0:
        return
    adam = optimizer == 1.0
    P = P // 128 * 128
    lr, rest1, beta2, rest2, eps = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    decay, correction1, correction2, coefficient = tl.load(row + 6), tl.load(row + 7), tl.load(row + 8), tl.load(row + 9)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < P
    lr = tl.where(tl.load(factors + i // 128, mask=inside, other=0) == 1, tl.load(row + 10), lr)
    at = tl.program_id(1).to(tl.int64) * P + i
    g = tl.load(grads + at, mask=inside, other=0.0)
    m_I = tl.load(m + at, mask=inside, other=0.0)
    second = i < tl.where(adam, P, 0)  # v is AdamW's
    v_I = tl.load(v + at, mask=second, other=0.0)
    p = tl.load(params + at, mask=inside, other=0.0)
    g *= coefficient
    if adam:
        m_I += (g - m_I) * rest1
        v_I = beta2 * v_I + rest2 * g * g
        below = tl.div_rn(tl.sqrt_rn(v_I), tl.sqrt_rn(correction2)) + eps
        p = p * (1.0 - lr * decay) - tl.div_rn(tl.div_rn(lr, correction1) * m_I, below)
    else:
        momentum, nesterov = rest1, beta2
        d = g + decay * p
        m_I = momentum * m_I + d
        p -= lr * tl.where(nesterov != 0.0, d + momentum * m_I, m_I)
    # With a bf16 copy a thread reads 8 neighbours and writes 4, so what one has to read another writes: all must have read.
    # Without the barrier a few gradients in a million were read as the zeros that replace them.
    tl.debug_barrier()
    tl.store(grads + at, tl.zeros((BLOCK,), tl.float32), mask=inside)
    tl.store(m + at, m_I, mask=inside)
    tl.store(v + at, v_I, mask=second)
    tl.store(params + at, p, mask=inside)
    if COPY:
        tl.store(copy + at, p.to(tl.bfloat16), mask=inside)


# What is compiled.

from variants import row


def variants():
    yield row("adamw", "grad_norm", None, "grads:*fp32 tensors:*i32 part:*fp32 P:i64", warps=2, SLICES=32, COLUMNS=256, ROWS=256)
    yield row("adamw", "grad_norm_sum", None, "part:*fp32 squares:*fp32 size:i32", SLICES=32, BLOCK=32)
    for copy in (0, 1):
        tensors = "params:*fp32 grads:*fp32 m:*fp32 v:*fp32 copy:*bf16 factors:*i32 table:*fp32"
        yield row("adamw", "adamw_step", None, f"{tensors} P:i64", BLOCK=1024, COPY=copy)
