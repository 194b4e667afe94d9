"""The next token of each row of logits: the likeliest, or one by chance among those that temperature, top-k and top-p leave.

    choose        chosen[t] = token (its bits as i32), log-probability by the logits, that among what it was drawn from, 0
    next_ids      ids[m] = the token of chosen[source[m]] where source[m] is 0 or more, else as it is

settings[t] = temperature, k, p, u. Tokens in the order of falling logits, of equals the first, have weights exp((z - max z) /
temperature). With k > 0 only the first k of them come, with p < 1 of these only the first that together have p of the weight;
the token is the first at which the weight so far exceeds u times that of all that are left. Temperature 0 takes the likeliest.
Token -1 where a logit is NaN or the largest is infinite. Rows whose target is below 0 are left out.

Shapes: logits z c[T, V], of which the first `classes` columns count and are shaped as in xent.py; targets i32[T]; settings,
chosen f32[T, 4]. Needs: V a multiple of 8, 0 < classes <= V, 0 <= u < 1, 0 < p <= 1.

Nothing is sorted. A place in that order is a logit and a number of its equals, so a search for the bits of the logit, from the
highest on, finds where a count or a weight is passed: BITS reads of a row, which stays in the caches. Sums of non-negative
terms in one order only grow with the terms that they have, so the search is exact in f32. A row's numbers depend on no other.

Launch: choose grid (T), next_ids grid (ceil(M / BLOCK)); no scratch.
"""
import triton
import triton.language as tl

from xent import shaped


@triton.jit
def order_of(z, BITS: tl.constexpr):
    """Unsigned numbers that are ordered as the outputs of the head are, in their upper BITS bits; both zeros are one."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.uint32, bitcast=True)
    order = tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return order if BITS == 32 else order & 0xFFFF0000


@triton.jit
def weights_of(z, top, temperature, inside, scale, cap):
    return tl.where(inside, tl.exp((shaped(z, scale, cap, True) - top) / temperature), 0.0)


@triton.jit
def mass_from(row, least, top, temperature, V, classes, scale, cap, COUNT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The weight, or the number, of the tokens whose order is `least` or more."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, classes, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z = tl.load(row + i, mask=i < classes, other=0.0).to(tl.float32)
        there = (i < classes) & (order_of(z, BITS) >= least)
        total += tl.where(there, 1.0, 0.0) if COUNT else weights_of(z, top, temperature, there, scale, cap)
    return tl.sum(total)


@triton.jit
def above_of(row, order, top, temperature, V, classes, scale, cap, COUNT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The weight, or the number, of the tokens above an order."""
    step: tl.constexpr = 1 << (32 - BITS)
    mass = mass_from(row, order + step, top, temperature, V, classes, scale, cap, COUNT, BITS, BLOCK)
    return tl.where(order >= 4294967296 - step, 0.0, mass)  # nothing is above the highest, whose next is 0


@triton.jit
def find(row, target, strict, top, temperature, V, classes, scale, cap, COUNT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest order from which on there is `target` or more (strict: more), and what there is above it."""
    order, bit = tl.full((), 0, tl.uint32), tl.full((), 0x80000000, tl.uint32)
    for _ in range(BITS):
        tried = order | bit
        mass = mass_from(row, tried, top, temperature, V, classes, scale, cap, COUNT, BITS, BLOCK)
        order = tl.where((mass > target) | ((mass == target) & (strict == 0)), tried, order)
        bit = bit >> 1
    return order, above_of(row, order, top, temperature, V, classes, scale, cap, COUNT, BITS, BLOCK)


@triton.jit
def value_of(order, BITS: tl.constexpr):
    """The output of the head that has this order."""
    bits = tl.where(order >> 31 != 0, order & 0x7FFFFFFF, order ^ 0xFFFFFFFF)
    if BITS == 16:
        bits = bits & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def choose(logits, targets, settings, chosen, V, classes, scale, cap, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """One row. See the top of the file."""
    V = V // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    t = tl.program_id(0).to(tl.int64)
    if tl.load(targets + t) < 0:
        return
    row = logits + t * V
    temperature, k = tl.load(settings + 4 * t), tl.load(settings + 4 * t + 1)
    p, u = tl.load(settings + 4 * t + 2), tl.load(settings + 4 * t + 3)

    largest = tl.full((BLOCK,), 0, tl.uint32)
    wrong = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, classes, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z = tl.load(row + i, mask=i < classes, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(i < classes, order_of(z, BITS), 0))
        wrong |= ((i < classes) & (z != z)).to(tl.int32)
    last = tl.max(largest, axis=0)
    top = shaped(value_of(last, BITS), scale, cap, True)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, classes, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z = tl.load(row + i, mask=i < classes, other=0.0).to(tl.float32)
        total += weights_of(z, top, 1.0, i < classes, scale, cap)
    log_all = tl.log(tl.sum(total))

    order, place = last, 0
    drawn_mass = tl.full((), 0.0, tl.float32)
    is_drawn = (temperature > 0.0) & (k != 1.0)
    if is_drawn:
        # Where the tokens end that are left: an order, and how many of its equals are left.
        end, equals = tl.full((), 0, tl.uint32), 2147483647.0
        mass = mass_from(row, end, top, temperature, V, classes, scale, cap, False, BITS, BLOCK)
        if (k > 0.0) & (k < classes):
            end, before = find(row, k, 0, top, temperature, V, classes, scale, cap, True, BITS, BLOCK)
            equals = k - before
            above = above_of(row, end, top, temperature, V, classes, scale, cap, False, BITS, BLOCK)
            mass = above + equals * tl.exp((shaped(value_of(end, BITS), scale, cap, True) - top) / temperature)
        if p < 1.0:
            found, above = find(row, p * mass, 0, top, temperature, V, classes, scale, cap, False, BITS, BLOCK)
            each = tl.exp((shaped(value_of(found, BITS), scale, cap, True) - top) / temperature)
            count = tl.maximum(tl.ceil((p * mass - above) / each), 1.0)
            equals = tl.where(found == end, tl.minimum(count, equals), tl.where(found > end, count, equals))
            end = tl.maximum(found, end)
            mass = above + equals * each
        order, above = find(row, u * mass, 1, top, temperature, V, classes, scale, cap, False, BITS, BLOCK)
        each = tl.exp((shaped(value_of(order, BITS), scale, cap, True) - top) / temperature)
        index = tl.maximum(tl.floor((u * mass - above) / each), 0.0)
        is_beyond = (order < end) | ((order == end) & (index >= equals))  # rounding
        index = tl.where(is_beyond, equals - 1.0, index)
        order = tl.where(is_beyond, end, order)
        place = tl.minimum(index, 2147483520.0).to(tl.int32)
        drawn_mass = tl.log(mass)

    token, last_equal, seen = -1, -1, 0
    for first in range(0, classes, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z = tl.load(row + i, mask=i < classes, other=0.0).to(tl.float32)
        equal = (i < classes) & (order_of(z, BITS) == order)
        count = tl.sum(equal.to(tl.int32), axis=0)
        if count > 0:
            at = tl.cumsum(equal.to(tl.int32), 0) - 1 + seen
            token = tl.maximum(token, tl.max(tl.where(equal & (at == place), i, -1), axis=0))
            last_equal = tl.max(tl.where(equal, i, -1), axis=0)
        seen += count
    token = tl.where(token < 0, last_equal, token)  # rounding
    z = shaped(value_of(order, BITS), scale, cap, True)
    own = z - top - log_all
    drawn = tl.where(is_drawn, (z - top) / tl.where(is_drawn, temperature, 1.0) - drawn_mass, tl.where(temperature > 0.0, 0.0, own))
    is_wrong = (tl.max(wrong, axis=0) != 0) | (tl.abs(top) == float("inf"))
    nothing = float("nan")
    tl.store((chosen + 4 * t).to(tl.pointer_type(tl.int32)), tl.where(is_wrong, -1, token))
    tl.store(chosen + 4 * t + 1, tl.where(is_wrong, nothing, own))
    tl.store(chosen + 4 * t + 2, tl.where(is_wrong, nothing, drawn))
    tl.store(chosen + 4 * t + 3, 0.0)


@triton.jit
def next_ids(chosen, source, ids, M, BLOCK: tl.constexpr):
    """BLOCK rows. See the top of the file."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t = tl.load(source + m, mask=m < M, other=-1)
    tl.store(ids + m, tl.load(chosen.to(tl.pointer_type(tl.int32)) + 4 * t, mask=t >= 0, other=0), mask=t >= 0)


# What is compiled.

from variants import row


def variants():
    yield row("choose", "next_ids", None, "chosen:*fp32 source:*i32 ids:*i32 M:i32", BLOCK=512)
    for kind, bits in (("ptr", 16), ("f32", 32)):
        parameters = "logits:c targets:*i32 settings:*fp32 chosen:*fp32 V:i32 classes:i32 scale:fp32 cap:fp32"
        yield row("choose", "choose", kind, parameters, warps=16, BITS=bits, BLOCK=8192)
