"""Kernels of embedding and head against float64: adapters with a product, with rows of tokens, and with neither, in one batch
and alone."""
import math

import torch

import rows_launch as run
from rows_check import Case, floats, ints, limit_of, poison, rnd
from rows_launch import DEVICE, DTYPE, cdiv

TILE, UNIT = 128, 16


def address(t):
    return 0 if t is None else t.data_ptr()


class Tables:
    """Adapters, by slot: a rank or a list of tokens, or None for neither. Of the embedding b [V, r], a [r, H] or rows [n, H],
    and their gradients; of the head's tokens the ids."""

    def __init__(self, kind, V, H, adapters):
        self.adapters, self.H = adapters, H
        f32 = lambda of: None if of is None else torch.randn(of.shape, device=DEVICE)
        self.first = [None if of is None else rnd(kind, V if isinstance(of, int) else len(of), of if isinstance(of, int) else H) for of in adapters]
        self.a = [rnd(kind, of, H) if isinstance(of, int) else None for of in adapters]
        self.grads = [(f32(first), f32(a)) for first, a in zip(self.first, self.a)]
        self.ids = [ints(of) if isinstance(of, list) else None for of in adapters]
        at = [[address(first), address(a), address(grads[0]), address(grads[1])] for first, a, grads in zip(self.first, self.a, self.grads)]
        self.factors = torch.tensor(at, device=DEVICE, dtype=torch.int64).view(-1, 1, 4)
        self.tokens = torch.tensor([[address(ids), 0, 0, 0] for ids in self.ids], device=DEVICE, dtype=torch.int64).view(-1, 1, 4)
        self.ranks = ints([[of if isinstance(of, int) else 0] for of in adapters])
        self.counts = ints([[of if isinstance(of, int) else 0 if of is None else len(of)] for of in adapters])
        self.scale = torch.rand(len(adapters), 1, device=DEVICE) + 0.5


def low_rows(tiles, widths):
    """Where each tile begins in units of 16 elements, and elements of all."""
    starts, units = [], 0
    for tile in tiles:
        starts.append(units)
        units += (cdiv(widths[tile], UNIT) if tile >= 0 else 0) * TILE
    return starts, units * UNIT


def part(s, starts, tile, width):
    padded = cdiv(width, UNIT) * UNIT
    return s[starts[tile] * UNIT :][: TILE * padded].view(TILE, padded)


def embedding(case, kind, V, H, adapters, tiles):
    of, M = Tables(kind, V, H, adapters), len(tiles) * TILE
    ids = torch.randint(0, V, (M,), device=DEVICE, dtype=torch.int32)
    rows = [{token: i for i, token in enumerate(a)} if isinstance(a, list) else {} for a in adapters]
    token_row = ints([rows[tiles[m // TILE]].get(int(ids[m]), -1) if tiles[m // TILE] >= 0 else -1 for m in range(M)])
    widths = [a if isinstance(a, int) else 0 for a in adapters]
    starts, size = low_rows(tiles, widths)
    x = rnd(kind, M, H)
    before, s = x.clone(), poison(kind, max(size, 1))
    run.table_forward(kind, x, ids, token_row, s, ints(starts), of.factors, of.scale, of.ranks, ints(tiles))
    gradient = rnd(kind, M, H)
    for tile, l in enumerate(tiles):
        at = slice(tile * TILE, (tile + 1) * TILE)
        if l < 0 or adapters[l] is None:
            case.same("no adapter", x[at], before[at])
        elif isinstance(adapters[l], int):
            b = of.first[l][ids[at].long()]
            want = before[at].double() + of.scale[l].double() * (b.double() @ of.a[l].double())
            case.near("product", x[at], want, limit_of(kind, H))
            own = part(s, starts, tile, adapters[l])
            case.same("s", own[:, : adapters[l]].contiguous(), b)
            case.same("s beyond", own[:, adapters[l] :].contiguous(), torch.zeros_like(own[:, adapters[l] :]).contiguous())
        else:
            row = token_row[at]
            want = torch.where((row >= 0)[:, None], of.first[l][row.clamp_min(0).long()], before[at])
            case.same("rows", x[at], want)
    for is_rows in (False, True):  # gradients: those of B from s, those of tokens from the stream
        found = {}
        for m in range(M):
            l = tiles[m // TILE]
            if l < 0 or adapters[l] is None or isinstance(adapters[l], list) != is_rows or (is_rows and token_row[m] < 0):
                continue
            tile = m // TILE
            at = m * H if is_rows else starts[tile] * UNIT + (m % TILE) * cdiv(adapters[l], UNIT) * UNIT
            found.setdefault((l, int(token_row[m] if is_rows else ids[m])), []).append((m, at))
        runs, at, source = [], [], gradient.view(-1) if is_rows else rnd(kind, max(size, 1))
        want = {l: of.grads[l][0].double() for l, _ in found}
        for (l, row), members in found.items():
            runs.append([len(at), len(at) + len(members), l, row])
            at += [a for _, a in members]
            width = H if is_rows else adapters[l]
            for _, a in members:
                want[l][row] += source[a : a + width].double()
        if runs:
            run.rows_sum(kind, source, ints(at), ints(runs), of.factors, of.ranks, H if is_rows else 0)
        for l, exact in want.items():
            case.near("gradient of rows" if is_rows else "gradient of B", of.grads[l][0], exact, 2e-6)


def head(case, kind, V, H, adapters, tiles):
    of, M = Tables(kind, V, H, adapters), len(tiles) * TILE
    counts = [0 if a is None else a if isinstance(a, int) else len(a) for a in adapters]
    starts, size = low_rows(tiles, counts)
    logits, s = rnd(kind, M, V), rnd(kind, max(size, 1))
    before, kept = logits.clone(), s.clone()
    most = max([len(a) for a in adapters if isinstance(a, list)], default=0)
    most = cdiv(most, UNIT) * UNIT
    run.columns(kind, "columns_put", logits, s, ints(starts), of.tokens, of.counts, ints(tiles), most)
    want = before.clone()
    for tile, l in enumerate(tiles):
        if l >= 0 and of.ids[l] is not None:
            want[tile * TILE : (tile + 1) * TILE, of.ids[l].long()] = part(s, starts, tile, counts[l])[:, : counts[l]]
    case.same("put", logits, want)
    s = rnd(kind, max(size, 1))
    untouched = s.clone()
    run.columns(kind, "columns_take", logits, s, ints(starts), of.tokens, of.counts, ints(tiles), most)
    for tile, l in enumerate(tiles):
        if l < 0 or counts[l] == 0:
            continue
        own, rows = part(s, starts, tile, counts[l]), slice(tile * TILE, (tile + 1) * TILE)
        if of.ids[l] is None:
            case.same("s of a product", own, part(untouched, starts, tile, counts[l]))
            continue
        case.same("taken", own[:, : counts[l]].contiguous(), want[rows, of.ids[l].long()].contiguous())
        case.same("beyond", own[:, counts[l] :].contiguous(), torch.zeros_like(own[:, counts[l] :]).contiguous())
        want[rows, of.ids[l].long()] = 0
    case.same("left", logits, want)
    assert kept.numel() == s.numel()


def tables(kind, small):
    case = Case(kind)
    some = [3, [5, 0, 17], None, 20, list(range(1, 40, 2))]
    shapes = [(40, 24, some, [1, 0, -1, 4, 3])]
    if not small:
        tiles = [0, 0, 1, 2, 3, 3, -1, 4, 4]
        shapes += [(49152, 576, [16, [7, 49151, 3], None, 64, list(range(0, 4096, 9))], tiles), (32000, 4096, [256, list(range(300)), None, 1, [2]], tiles)]
    for V, H, adapters, order in shapes:
        embedding(case, kind, V, H, adapters, order)
        head(case, kind, math.ceil(V / 8) * 8, H, adapters, order)
        for l in (0, 1):
            embedding(case, kind, V, H, adapters, [l])
            head(case, kind, math.ceil(V / 8) * 8, H, adapters, [l])
    x, y = torch.randn(4000, device=DEVICE), floats(4000).normal_()
    want = x + y
    run.gradients_add(kind, x, y)
    case.same("sum", y, want)
    return case
