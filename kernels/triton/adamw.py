"""AdamW or SGD of one adapter, with its own rate, step and clipping, and the squares of its gradient's norm.

    grad_norm     squares[s] = sum of squares of tensor s: (first element / 128, rows, columns) = tensors[s], a run of rows
                  columns elements
    adamw_step    optimizer 1 (AdamW):  g = grad coefficient,  m += (g - m) (1 - beta1),  v = beta2 v + (1 - beta2) g^2,
                  p = p (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps),
                  grad = 0,  copy = bf16(p)
                  optimizer 2 (SGD):  d = grad coefficient + decay p,  m = momentum m + d,
                  p -= lr (d + momentum m with nesterov, else m);  grad = 0,  copy = bf16(p);  v is not touched

Shapes: params, grads, m, v f32[P]; copy bf16[P], not touched where COPY = 0; table f32[11] = optimizer, lr, 1 - beta1, beta2,
1 - beta2, eps, decay, 1 - beta1^t, 1 - beta2^t, coefficient, lr of B, of SGD momentum and nesterov (0 or 1) as the third and
the fourth; factors i32[P / 128] = 1 where 128 elements are of a B, which takes that rate (LoRA+), else 0; tensors i32[S, 3];
squares f32[S]. Needs: P a multiple of 128, as where tensors begin. Sums are the adapter's own: nothing else is read.

Launch:
    grad_norm        grid (SLICES, S); part f32[S, SLICES] is scratch, written everywhere
    grad_norm_sum    then, grid (ceil(S / BLOCK)), size = S
    adamw_step       grid (ceil(P / BLOCK)), no scratch
"""
import triton
import triton.language as tl


@triton.jit
def grad_norm(grads, tensors, part, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """The part of one slice of one tensor: every SLICES-th block. See the top of the file."""
    slice, s = tl.program_id(0), tl.program_id(1)
    first, rows, columns = tl.load(tensors + s * 3), tl.load(tensors + s * 3 + 1), tl.load(tensors + s * 3 + 2)
    grad, size = grads + first.to(tl.int64) * 128, rows.to(tl.int64) * columns
    whole = size // 8 * 8  # what is loaded by vectors
    total = tl.zeros((BLOCK,), tl.float32)
    for at in tl.range(slice * BLOCK, whole, SLICES * BLOCK, loop_unroll_factor=4):
        i = at + tl.arange(0, BLOCK)
        g = tl.load(grad + i, mask=i < whole, other=0.0)
        total += g * g
    rest = whole + tl.arange(0, 8)  # a vector of ranks has any number of elements
    g = tl.load(grad + rest, mask=(rest < size) & (slice == 0), other=0.0)
    tl.store(part + s * SLICES + slice, tl.sum(total) + tl.sum(g * g))


@triton.jit
def grad_norm_sum(part, squares, size, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """squares[i] = the sum of part[i, :], i < size = L S."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parts = tl.load(part + i[:, None] * SLICES + tl.arange(0, SLICES)[None, :], mask=(i < size)[:, None], other=0.0)
    tl.store(squares + i, tl.sum(parts, axis=1), mask=i < size)


@triton.jit
def adamw_update(p, g, m_I, v_I, lr, rest1, beta2, rest2, eps, decay, correction1, correction2):
    """Parameters and both moments after a step, of a gradient."""
    m_I += (g - m_I) * rest1
    v_I = beta2 * v_I + rest2 * g * g
    below = tl.div_rn(tl.sqrt_rn(v_I), tl.sqrt_rn(correction2)) + eps
    return p * (1.0 - lr * decay) - tl.div_rn(tl.div_rn(lr, correction1) * m_I, below), m_I, v_I


@triton.jit
def adamw_step(params, grads, m, v, copy, factors, table, P, BLOCK: tl.constexpr, COPY: tl.constexpr):
    """BLOCK parameters. See the top of the file."""
    adam = tl.load(table) == 1.0
    P = P // 128 * 128
    lr, rest1, beta2, rest2, eps = tl.load(table + 1), tl.load(table + 2), tl.load(table + 3), tl.load(table + 4), tl.load(table + 5)
    decay, correction1, correction2, coefficient = tl.load(table + 6), tl.load(table + 7), tl.load(table + 8), tl.load(table + 9)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < P
    lr = tl.where(tl.load(factors + i // 128, mask=inside, other=0) == 1, tl.load(table + 10), lr)
    g = tl.load(grads + i, mask=inside, other=0.0)
    m_I = tl.load(m + i, mask=inside, other=0.0)
    second = i < tl.where(adam, P, 0)  # v is AdamW's
    v_I = tl.load(v + i, mask=second, other=0.0)
    p = tl.load(params + i, mask=inside, other=0.0)
    g *= coefficient
    if adam:
        p, m_I, v_I = adamw_update(p, g, m_I, v_I, lr, rest1, beta2, rest2, eps, decay, correction1, correction2)
    else:
        momentum, nesterov = rest1, beta2
        d = g + decay * p
        m_I = momentum * m_I + d
        p -= lr * tl.where(nesterov != 0.0, d + momentum * m_I, m_I)
    # With a bf16 copy a thread reads 8 neighbours and writes 4, so what one has to read another writes: all must have read.
    # Without the barrier a few gradients in a million were read as the zeros that replace them.
    tl.debug_barrier()
    tl.store(grads + i, tl.zeros((BLOCK,), tl.float32), mask=inside)
    tl.store(m + i, m_I, mask=inside)
    tl.store(v + i, v_I, mask=second)
    tl.store(params + i, p, mask=inside)
    if COPY:
        tl.store(copy + i, p.to(tl.bfloat16), mask=inside)

# What is compiled.

from variants import row


def variants():
    yield row("adamw", "grad_norm", None, "grads:*fp32 tensors:*i32 part:*fp32", SLICES=32, BLOCK=1024)
    yield row("adamw", "grad_norm_sum", None, "part:*fp32 squares:*fp32 size:i32", SLICES=32, BLOCK=32)
    for copy in (0, 1):
        tensors = "params:*fp32 grads:*fp32 m:*fp32 v:*fp32 copy:*bf16 factors:*i32 table:*fp32"
        yield row("adamw", "adamw_step", None, f"{tensors} P:i64", BLOCK=1024, COPY=copy)
