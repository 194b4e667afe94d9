"""The activation between an expert's two products, over sorted rows, and the gradient of the routing weights.

    expert_act_forward     act = gate sigmoid(gate) up; with limit > 0, of g = min(gate, limit) and u = up within -limit and
                           limit, g sigmoid(alpha g) (u + 1)
    expert_act_backward    dgate_up = the gradient through act of weights[pair] dact;  dweights[pair] = sum dact act;
                           dact becomes weights[pair] act
    expert_square_forward, expert_square_backward    the same of act = max(x, 0)^2, without a gate

Shapes: gate_up, dgate_up c[P, 2 I], gate in columns 0 .. I and up after it, or, INTERLEAVED, in turn; act, dact, x, dx c[P, I];
weights, dweights f32[M, k]; source i32[P], -1 beyond the last sorted row: zeros in dgate_up, not written in act.
place i32[M, k]: pairs without a row have dweights 0. Needs: I a multiple of 8. dgate_up may be gate_up itself, and dx be
x.

Launch: forward grid (P, ceil(I / BLOCK)); backward grid (P), which all pairs are fewer than. No scratch.
"""
import triton
import triton.language as tl

from clamp import clamped


@triton.jit
def load_both(row, i, I, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Gate and up, f32[BLOCK] each."""
    if INTERLEAVED:
        at = 2 * tl.min(i) + tl.arange(0, 2 * BLOCK)
        return tl.split(tl.load(row + at, mask=at < 2 * I, other=0.0).to(tl.float32).reshape(BLOCK, 2))
    else:
        return tl.load(row + i, mask=i < I, other=0.0).to(tl.float32), tl.load(row + I + i, mask=i < I, other=0.0).to(tl.float32)


@triton.jit
def store_both(row, gate, up, i, I, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        at = 2 * tl.min(i) + tl.arange(0, 2 * BLOCK)
        tl.store(row + at, tl.join(gate, up).reshape(2 * BLOCK).to(row.dtype.element_ty), mask=at < 2 * I)
    else:
        tl.store(row + i, gate.to(row.dtype.element_ty), mask=i < I)
        tl.store(row + I + i, up.to(row.dtype.element_ty), mask=i < I)


@triton.jit
def pair_of(p, source, weights, place, dweights, pairs):
    """The pair of a sorted row and its weight. Of the p-th pair, if that has no row, the weight's gradient becomes 0."""
    if p < pairs:
        if tl.load(place + p) < 0:
            tl.store(dweights + p, 0.0)
    pair = tl.load(source + p)
    return pair, tl.load(weights + pair, mask=pair >= 0, other=0.0)


@triton.jit
def expert_act_forward(gate_up, act, source, I, limit, alpha, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    p, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(source + p) < 0:
        return
    gate, up = load_both(gate_up + p * 2 * I, i, I, BLOCK, INTERLEAVED)
    g, u = clamped(gate, up, limit)
    tl.store(act + p * I + i, (g * tl.sigmoid(alpha * g) * u).to(act.dtype.element_ty), mask=i < I)


@triton.jit
def expert_act_backward(dact, gate_up, source, weights, place, dgate_up, dweights, pairs, I, limit, alpha, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 8 * 8
    p = tl.program_id(0).to(tl.int64)
    pair, weight = pair_of(p, source, weights, place, dweights, pairs)
    total = tl.zeros((BLOCK,), tl.float32)
    for i0 in range(0, I, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        here = dgate_up + p * 2 * I
        if pair < 0:
            store_both(here, tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), i, I, BLOCK, INTERLEAVED)
        else:
            gate, up = load_both(gate_up + p * 2 * I, i, I, BLOCK, INTERLEAVED)
            d = tl.load(dact + p * I + i, mask=i < I, other=0.0).to(tl.float32)
            g, u = clamped(gate, up, limit)
            s = tl.sigmoid(alpha * g)
            act = g * s * u
            total += d * act
            d *= weight
            tl.store(dact + p * I + i, (weight * act).to(dact.dtype.element_ty), mask=i < I)
            dgate = tl.where((limit > 0.0) & (gate > limit), 0.0, d * u * s * (1.0 + alpha * g * (1.0 - s)))
            dup = tl.where((limit > 0.0) & ((up > limit) | (up < -limit)), 0.0, d * g * s)
            store_both(here, dgate, dup, i, I, BLOCK, INTERLEAVED)
    if pair >= 0:
        tl.store(dweights + pair, tl.sum(total))


@triton.jit
def expert_square_forward(x, act, source, I, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    I = I // 8 * 8
    p, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(source + p) < 0:
        return
    x_I = tl.maximum(tl.load(x + p * I + i, mask=i < I, other=0.0).to(tl.float32), 0.0)
    tl.store(act + p * I + i, (x_I * x_I).to(act.dtype.element_ty), mask=i < I)


@triton.jit
def expert_square_backward(dact, x, source, weights, place, dx, dweights, pairs, I, BLOCK: tl.constexpr):
    """One row. See the top of the file."""
    I = I // 8 * 8
    p = tl.program_id(0).to(tl.int64)
    pair, weight = pair_of(p, source, weights, place, dweights, pairs)
    total = tl.zeros((BLOCK,), tl.float32)
    for i0 in range(0, I, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        if pair < 0:
            tl.store(dx + p * I + i, tl.zeros((BLOCK,), dx.dtype.element_ty), mask=i < I)
        else:
            x_I = tl.maximum(tl.load(x + p * I + i, mask=i < I, other=0.0).to(tl.float32), 0.0)
            d = tl.load(dact + p * I + i, mask=i < I, other=0.0).to(tl.float32)
            total += d * x_I * x_I
            tl.store(dact + p * I + i, (weight * x_I * x_I).to(dact.dtype.element_ty), mask=i < I)
            tl.store(dx + p * I + i, (2.0 * x_I * d * weight).to(dx.dtype.element_ty), mask=i < I)
    if pair >= 0:
        tl.store(dweights + pair, tl.sum(total))


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        for INTERLEAVED in (0, 1):
            yield row("expert-act", "expert_act_forward", kind, "gate_up:c act:c source:*i32 I:i32 limit:fp32 alpha:fp32", BLOCK=1024, INTERLEAVED=INTERLEAVED)
            yield row("expert-act", "expert_act_backward", kind, "dact:c gate_up:c source:*i32 weights:*fp32 place:*i32 dgate_up:c dweights:*fp32 pairs:i32 I:i32 limit:fp32 alpha:fp32",
                      BLOCK=1024, INTERLEAVED=INTERLEAVED)
        yield row("expert-act", "expert_square_forward", kind, "x:c act:c source:*i32 I:i32", BLOCK=1024)
        yield row("expert-act", "expert_square_backward", kind, "dact:c x:c source:*i32 weights:*fp32 place:*i32 dx:c dweights:*fp32 pairs:i32 I:i32", BLOCK=1024)
