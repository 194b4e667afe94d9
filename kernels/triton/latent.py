"""Heads of attention over latents: q, k and v as attention reads them, of what linears make of the latents (src/ops/latent.ts).

A head of q and k is its R rotated features, paired by halves, then its N plain ones, a head of v its U features; heads are D
wide, and the rest is 0.

    latent_heads            qkv[m] = heads of q, k, v of queries[m], keys[m] and the last R columns of shared[m]
    latent_heads_backward   dqueries, dkeys; the last R columns of dshared, which sum over heads in their order
    heads_narrow            the first T of the F features of each head; with T above F the others are 0

Shapes: qkv, dqkv c[M, 3 Q D]; queries, dqueries c[M, Q (N + R)], of each head N, then R features, rotated ones in pairs next to
each other with `interleaved` = 1; keys, dkeys c[M, Q (N + U)], of each head N of k, then U of v; shared, dshared c[M, S];
from_rows c[M, Q F], to_rows c[M, Q T]. Needs: N, R, U, D, S, F and T multiples of 8, R + N and U at most D.

Launch, no scratch: latent_heads grid (M, 3 ceil(Q D / BLOCK)); latent_heads_backward grid (M, ceil(Q (N + R) / BLOCK) + ceil(Q
(N + U) / BLOCK) + 1); heads_narrow grid (M, ceil(Q T / BLOCK)).
"""
import triton
import triton.language as tl


@triton.jit
def aligned(x):
    """x as it is: tells the compiler that it is a multiple of 8."""
    return x // 8 * 8


@triton.jit
def turned_place(j, R, interleaved):
    """Where the rotated feature j of a head as it is given lies by halves."""
    return tl.where(interleaved != 0, j % 2 * (R // 2) + j // 2, j)


@triton.jit
def latent_heads(queries, keys, shared, qkv, S, heads, D, N, R, U, interleaved, BLOCK: tl.constexpr):
    """BLOCK columns of q, k or v of one row. See the top of the file."""
    S, D, N, R, U = aligned(S), aligned(D), aligned(N), aligned(R), aligned(U)
    W = heads * D
    each = tl.cdiv(W, BLOCK)
    m, part = tl.program_id(0).to(tl.int64), tl.program_id(1) // each
    i = tl.program_id(1) % each * BLOCK + tl.arange(0, BLOCK)
    head, f, inside = i // D, i % D, i < W
    to = qkv + m * 3 * W + part * W + i
    k_head = keys + m * heads * (N + U) + head * (N + U)
    if part == 2:
        tl.store(to, tl.load(k_head + N + f, mask=inside & (f < U), other=0.0), mask=inside)
    else:
        # Of the rotated features as they are given.
        among = tl.where(interleaved != 0, 2 * f - tl.where(f < R // 2, 0, R - 1), f)
        turned, plain = inside & (f < R), inside & (f >= R) & (f < R + N)
        if part == 0:
            q_head = queries + m * heads * (N + R) + head * (N + R)
            first, others = tl.load(q_head + N + among, mask=turned, other=0.0), tl.load(q_head + f - R, mask=plain, other=0.0)
            tl.store(to, tl.where(turned, first, others), mask=inside)
        else:
            shared_key, own = tl.load(shared + (m + 1) * S - R + among, mask=turned, other=0.0), tl.load(k_head + f - R, mask=plain, other=0.0)
            tl.store(to, tl.where(turned, shared_key, own), mask=inside)


@triton.jit
def latent_heads_backward(dqkv, dqueries, dkeys, dshared, S, heads, D, N, R, U, interleaved, BLOCK: tl.constexpr, ROTATED: tl.constexpr):
    """BLOCK columns of one row of dqueries, or of dkeys; the last program: those of dshared. See the top of the file."""
    S, D, N, R, U = aligned(S), aligned(D), aligned(N), aligned(R), aligned(U)
    m, p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_head = dqkv + m * 3 * heads * D
    of_queries, of_keys = tl.cdiv(heads * (N + R), BLOCK), tl.cdiv(heads * (N + U), BLOCK)
    if p < of_queries:
        i = p * BLOCK + tl.arange(0, BLOCK)
        head, f = i // (N + R), i % (N + R)
        of_q = tl.where(f < N, R + f, turned_place(f - N, R, interleaved))
        mine = i < heads * (N + R)
        tl.store(dqueries + m * heads * (N + R) + i, tl.load(q_head + head * D + of_q, mask=mine), mask=mine)
    elif p < of_queries + of_keys:
        i = (p - of_queries) * BLOCK + tl.arange(0, BLOCK)
        head, f = i // (N + U), i % (N + U)
        of_k = tl.where(f < N, heads * D + R + f, 2 * heads * D + f - N)
        mine = i < heads * (N + U)
        tl.store(dkeys + m * heads * (N + U) + i, tl.load(q_head + head * D + of_k, mask=mine), mask=mine)
    else:
        j = tl.arange(0, ROTATED)
        k_head = q_head + heads * D + turned_place(j, R, interleaved)
        total = tl.zeros((ROTATED,), tl.float32)
        for h in range(heads):
            total += tl.load(k_head + h * D, mask=j < R, other=0.0).to(tl.float32)
        tl.store(dshared + (m + 1) * S - R + j, total.to(dshared.dtype.element_ty), mask=j < R)


@triton.jit
def heads_narrow(from_rows, to_rows, heads, F, T, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    F, T = aligned(F), aligned(T)
    m, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, f = i // T, i % T
    value = tl.load(from_rows + (m * heads + head) * F + f, mask=(i < heads * T) & (f < F), other=0.0)
    tl.store(to_rows + m * heads * T + i, value, mask=i < heads * T)


# What is compiled.

from variants import row

SIZES = "S:i32 heads:i32 D:i32 N:i32 R:i32 U:i32 interleaved:i32"


def variants():
    for kind in ("ptr", "f32"):
        yield row("latent", "latent_heads", kind, f"queries:c keys:c shared:c qkv:c {SIZES}", BLOCK=1024)
        yield row("latent", "latent_heads_backward", kind, f"dqkv:c dqueries:c dkeys:c dshared:c {SIZES}", BLOCK=1024, ROTATED=256)
        yield row("latent", "heads_narrow", kind, "from_rows:c to_rows:c heads:i32 F:i32 T:i32", BLOCK=1024)
