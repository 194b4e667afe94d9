"""Which experts compute a row: the choice with its weights, the sorting of pairs, and the gradient through the weights.

    route_choose      experts[m, j], weights[m, j]: the k best of a row, in descending order; of two alike the lower first
    route_count       begin[t, e] = pairs of expert e in tile t of 128 rows
    route_scan        begin[t, e] = where these pairs begin among the sorted rows, begin[T, e] where the expert's end;
                      first_row[e], first_row[E] the end of all; blocks[e] = tiles of `height` sorted rows before expert e's
    route_place       place, source, and of each sorted row its expert and adapter; -1 beyond the last
    route_tables      counts, starts[l, e]: sorted rows of an adapter in an expert, and the first; l = L: of no adapter.
                      blocks[E + 1 + 2 i ..]: expert and first sorted row of tile i, and E and the end after the last
    route_backward    dlogits[m, e] from dweights[m, j]

Sorted rows are in the order of experts, then of rows of the batch: an adapter's rows are side by side there, so those of each
(expert, adapter) are too. Sums of counts are of whole numbers, so no order of programs shows.

Shapes: logits, dlogits c[M, E]; correction f32[E]; bounds i32[M, 2]; experts, place i32[M, k]; weights, dweights f32[M, k];
begin i32[T + 1, E]; source, row_expert, row_adapter i32[P]; first_row i32[E + 1]; blocks i32[E + 1 + 2 (ceil(P / height) + E)];
counts, starts i32[L + 1, E]. Needs: M a multiple of 128, k at most SLOTS, E at most BLOCK.

Launch, in this order, no scratch:
    route_choose      grid (M)
    route_count       grid (T, ceil(E / EXPERTS))
    route_scan        grid (1)
    route_place       grid (T + 1, ceil(E / EXPERTS))
    route_tables      grid (L + 2)
    route_backward    grid (M)
"""
import triton
import triton.language as tl

ROW_TILE = tl.constexpr(128)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # what NaN is chosen as: after all numbers, before what there is not


@triton.jit
def best_of(key, i, BLOCK: tl.constexpr):
    """The lowest place of the largest key."""
    return tl.min(tl.where(key == tl.max(key), i, BLOCK))


@triton.jit
def keep_groups(key, e, E, groups, kept, sums, BLOCK: tl.constexpr):
    """Of equal groups of experts all but the best, by their best key, or with `sums` by the sum of their two best, become what
    there is not."""
    size = E // groups
    group = e // size
    score = tl.full((BLOCK,), float("-inf"), tl.float32)
    for g in range(groups):
        own = tl.where((group == g) & (e < E), key, float("-inf"))
        first = best_of(own, e, BLOCK)
        second = tl.max(tl.where(e == first, float("-inf"), own))
        score = tl.where(e == g, tl.max(own) + tl.where((sums != 0) & (size > 1), second, 0.0), score)
    keeps = e < 0
    for i in range(kept):
        best = best_of(score, e, BLOCK)
        keeps = keeps | (group == best)
        score = tl.where(e == best, float("-inf"), score)
    return tl.where(keeps, key, float("-inf"))


@triton.jit
def route_choose(logits, correction, bounds, experts, weights, place, E, k, sigmoid, normalise, has_correction, groups, kept, scaling,
                 BLOCK: tl.constexpr, SLOTS: tl.constexpr):
    """One row. See the top of the file."""
    m = tl.program_id(0).to(tl.int64)
    e, slot = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    logit = tl.load(logits + m * E + e, mask=e < E, other=float("-inf")).to(tl.float32)
    powers = tl.exp(logit - tl.max(logit))
    score = tl.where(sigmoid != 0, tl.sigmoid(logit), powers)
    key = tl.where(sigmoid != 0, score + tl.load(correction + e, mask=e < E * has_correction, other=0.0), logit)
    key = tl.where(e < E, tl.where(key > LOWEST, key, LOWEST), float("-inf"))  # NaN, too
    if groups > 1:
        key = keep_groups(key, e, E, groups, kept, sigmoid, BLOCK)
    found = tl.full((SLOTS,), -1, tl.int32)
    weight = tl.zeros((SLOTS,), tl.float32)
    for j in range(k):
        best = best_of(key, e, BLOCK)
        found = tl.where(slot == j, best, found)
        weight = tl.where(slot == j, tl.sum(tl.where(e == best, score, 0.0)), weight)
        key = tl.where(e == best, float("-inf"), key)
    total = tl.where(sigmoid != 0, 1.0, tl.sum(powers))
    if normalise != 0:
        total = tl.sum(weight) + tl.where(sigmoid != 0, 1e-20, 0.0)
    attends = tl.load(bounds + 2 * m) < tl.load(bounds + 2 * m + 1)
    tl.store(place + m * k + slot, tl.full((SLOTS,), -1, tl.int32), mask=slot < k)  # of rows without experts
    tl.store(experts + m * k + slot, tl.where(attends, found, -1), mask=slot < k)
    tl.store(weights + m * k + slot, tl.where(attends, tl.div_rn(weight, total + tl.zeros_like(weight)) * scaling, 0.0), mask=slot < k)


@triton.jit
def route_backward(logits, experts, weights, dweights, dlogits, E, k, sigmoid, normalise, scaling, BLOCK: tl.constexpr, SLOTS: tl.constexpr):
    """One row. See the top of the file."""
    m = tl.program_id(0).to(tl.int64)
    e, slot = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    logit = tl.load(logits + m * E + e, mask=e < E, other=float("-inf")).to(tl.float32)
    found = tl.load(experts + m * k + slot, mask=slot < k, other=-1)
    w = tl.load(weights + m * k + slot, mask=slot < k, other=0.0)
    d = tl.load(dweights + m * k + slot, mask=(slot < k) & (found >= 0), other=0.0)
    mean = tl.sum(w * d)  # of p d, with w = scaling p
    powers = tl.exp(logit - tl.max(logit))
    out = tl.where((sigmoid == 0) & (normalise == 0), -powers / tl.sum(powers) * mean, 0.0)
    own = tl.zeros((BLOCK,), tl.float32)  # the score of what was chosen
    chosen = e < 0
    for j in range(k):
        here = e == tl.sum(tl.where(slot == j, found, 0))
        own = tl.where(here, tl.sum(tl.where(slot == j, d, 0.0)), own)
        out += tl.where(here & (sigmoid == 0), tl.sum(tl.where(slot == j, w * d - tl.where(normalise != 0, w / scaling * mean, 0.0), 0.0)), 0.0)
        chosen = chosen | here
    if sigmoid != 0:
        s = tl.sigmoid(logit)
        over = tl.where(normalise != 0, tl.sum(tl.where(chosen, s, 0.0)) + 1e-20, 1.0)
        out = tl.where(chosen, (scaling * own - tl.where(normalise != 0, mean, 0.0)) / over * s * (1.0 - s), 0.0)
    attends = tl.max(found) >= 0
    tl.store(dlogits + m * E + e, tl.where(attends, out, 0.0).to(dlogits.dtype.element_ty), mask=e < E)


@triton.jit
def chosen_by(experts, tile, e, k, EXPERTS: tl.constexpr):
    """i32[128, EXPERTS]: 1 where a row of a tile chose an expert."""
    m = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    chose = tl.zeros((ROW_TILE, EXPERTS), tl.int32)
    for j in range(k):
        chose += (tl.load(experts + m * k + j)[:, None] == e[None, :]).to(tl.int32)
    return chose


@triton.jit
def route_count(experts, begin, E, k, EXPERTS: tl.constexpr):
    """A tile's pairs of EXPERTS experts. See the top of the file."""
    tile = tl.program_id(0)
    e = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    tl.store(begin + tile * E + e, tl.sum(chosen_by(experts, tile, e, k, EXPERTS), 0), mask=e < E)


@triton.jit
def route_scan(begin, first_row, blocks, T, E, height, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """All counts of tiles, in one program. See the top of the file."""
    e = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for t0 in range(0, T, TILES):
        t = t0 + tl.arange(0, TILES)
        total += tl.sum(tl.load(begin + t[:, None] * E + e[None, :], mask=(t < T)[:, None] & (e < E)[None, :], other=0), 0)
    ends = tl.cumsum(total, 0)
    tl.store(first_row + 1 + e, ends, mask=e < E)
    tl.store(begin + T * E + e, ends, mask=e < E)
    tiles = tl.cumsum(tl.cdiv(total, height), 0)
    tl.store(blocks + 1 + e, tiles, mask=e < E)
    tl.store(first_row + tl.arange(0, 2), tl.zeros((2,), tl.int32), mask=tl.arange(0, 2) < 1)
    tl.store(blocks + tl.arange(0, 2), tl.zeros((2,), tl.int32), mask=tl.arange(0, 2) < 1)
    before = ends - total
    for t0 in range(0, T, TILES):
        t = t0 + tl.arange(0, TILES)
        inside = (t < T)[:, None] & (e < E)[None, :]
        count = tl.load(begin + t[:, None] * E + e[None, :], mask=inside, other=0)
        sums = tl.cumsum(count, 0)
        tl.debug_barrier()  # all of it is read before any is written
        tl.store(begin + t[:, None] * E + e[None, :], before[None, :] + sums - count, mask=inside)
        before += tl.sum(count, 0)


@triton.jit
def route_place(experts, tile_adapter, begin, place, source, row_expert, row_adapter, T, E, k, P, EXPERTS: tl.constexpr):
    """A tile's pairs of EXPERTS experts; the last row of programs: what has no pair. See the top of the file."""
    tile = tl.program_id(0)
    e = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    if tile == T:
        end = tl.load(begin + T * E + E - 1)
        for p0 in range(end + tl.program_id(1) * ROW_TILE, P, tl.num_programs(1) * ROW_TILE):
            p = p0 + tl.arange(0, ROW_TILE)
            none = tl.full((ROW_TILE,), -1, tl.int32)
            tl.store(source + p, none, mask=p < P)
            tl.store(row_expert + p, none, mask=p < P)
            tl.store(row_adapter + p, none, mask=p < P)
        return
    m = tile * ROW_TILE + tl.arange(0, ROW_TILE)
    adapter = tl.load(tile_adapter + tile) + tl.zeros((ROW_TILE,), tl.int32)
    chose = chosen_by(experts, tile, e, k, EXPERTS)
    at = tl.load(begin + tile * E + e, mask=e < E, other=0)[None, :] + tl.cumsum(chose, 0) - chose
    for j in range(k):
        expert = tl.load(experts + m * k + j)
        here = expert[:, None] == e[None, :]
        p = tl.sum(tl.where(here, at, 0), 1)
        mine = tl.sum(here.to(tl.int32), 1) > 0
        tl.store(place + m * k + j, p, mask=mine)
        tl.store(source + p, m * k + j, mask=mine)
        tl.store(row_expert + p, expert, mask=mine)
        tl.store(row_adapter + p, adapter, mask=mine)


@triton.jit
def route_tables(tile_adapter, begin, first_row, counts, starts, blocks, T, E, L, height, BLOCK: tl.constexpr):
    """Counts of an adapter; the last program: the products' tiles. See the top of the file."""
    l = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    if l <= L:
        count = tl.zeros((BLOCK,), tl.int32)
        start = tl.full((BLOCK,), 2147483647, tl.int32)
        for t in range(T):
            adapter = tl.load(tile_adapter + t)
            if tl.where(adapter < 0, L, adapter) == l:
                here = tl.load(begin + t * E + e, mask=e < E, other=0)
                start = tl.minimum(start, here)
                count += tl.load(begin + (t + 1) * E + e, mask=e < E, other=0) - here
        tl.store(counts + l * E + e, count, mask=e < E)
        tl.store(starts + l * E + e, tl.where(count > 0, start, 0), mask=e < E)
    else:
        end = tl.load(first_row + e + 1, mask=e < E, other=0)
        first = tl.load(first_row + e, mask=e < E, other=0)
        tile = tl.load(blocks + e, mask=e < E, other=0)
        table = blocks + E + 1
        for i in range(tl.max(tl.cdiv(end - first, height))):
            inside = (e < E) & (first + i * height < end)
            tl.store(table + 2 * (tile + i), e, mask=inside)
            tl.store(table + 2 * (tile + i) + 1, first + i * height, mask=inside)
        last = tl.load(blocks + E)
        two = tl.arange(0, 2)
        tl.store(table + 2 * last + two, tl.where(two == 0, E, tl.max(end)))


# What is compiled.

from variants import row


def variants():
    """A launcher takes the first BLOCK that holds all experts."""
    yield row("route", "route_count", None, "experts:*i32 begin:*i32 E:i32 k:i32", EXPERTS=64)
    yield row("route", "route_place", None, "experts:*i32 tile_adapter:*i32 begin:*i32 place:*i32 source:*i32 row_expert:*i32 row_adapter:*i32 T:i32 E:i32 k:i32 P:i32", EXPERTS=64)
    choice = "E:i32 k:i32 sigmoid:i32 normalise:i32"
    for BLOCK in (128, 512):
        for kind in ("ptr", "f32"):
            yield row("route", "route_choose", kind, f"logits:c correction:*fp32 bounds:*i32 experts:*i32 weights:*fp32 place:*i32 {choice} has_correction:i32 groups:i32 kept:i32 scaling:fp32", 1, BLOCK=BLOCK, SLOTS=16)
            yield row("route", "route_backward", kind, f"logits:c experts:*i32 weights:*fp32 dweights:*fp32 dlogits:c {choice} scaling:fp32", 1, BLOCK=BLOCK, SLOTS=16)
        yield row("route", "route_scan", None, "begin:*i32 first_row:*i32 blocks:*i32 T:i32 E:i32 height:i32", 8, TILES=32, BLOCK=BLOCK)
        yield row("route", "route_tables", None, "tile_adapter:*i32 begin:*i32 first_row:*i32 counts:*i32 starts:*i32 blocks:*i32 T:i32 E:i32 L:i32 height:i32", BLOCK=BLOCK)
