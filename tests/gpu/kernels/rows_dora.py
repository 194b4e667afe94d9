"""DoRA's kernels against float64, alone and with others: an adapter's numbers do not depend on where its tiles or its memory
lie."""
import torch

import rows_launch as run
from linear_pool import Pool, is_untouched_after, table, vector, vectors
from rows_check import Case, ints, rnd
from rows_launch import DEVICE, DTYPE

TILE = 128


def own(N):
    """m, dm, gain and inverse of an adapter."""
    return [vector(torch.randn(N)), vector(torch.randn(N)), vector(torch.rand(N) + 0.5), vector(torch.rand(N))]


def table_of(adapters, columns):
    """Entry g of each begins at the first column of linear g."""
    ends = [sum(columns[:g]) for g in range(len(columns))]
    return vectors([[[None if t is None else t[first:] for t in of] for first in ends] for of in adapters])


def norms(case, kind, K, columns, ranks):
    """Adapter 1 of 3 in a group of linears, one of which may be no target; others are wider and narrower."""
    G, N = len(columns), sum(columns)
    bounds = [sum(columns[:g]) for g in range(G + 1)]
    w = rnd(kind, N, K, scale=K**-0.5)
    pool = Pool(DTYPE[kind], columns, K, [[1] * G, ranks, [256] * G])
    for of in (pool.a, pool.b):
        for t in of.values():
            t.mul_(K**-0.5)
    w[3] = 0  # a row of zeros has no length
    if ranks[0] > 0:
        pool.b[1, 0][:, 3] = 0
    for begins in (0, 1):
        adapters = [own(N) for _ in range(3)]
        before = [[t.clone() for t in of] for of in adapters]
        at = table_of(adapters, columns)
        run.dora_norm(kind, w, pool, at, bounds, ints([0, 1 + begins, 0]))
        for l in (0, 2):
            for t, then in zip(adapters[l], before[l]):
                case.same("another adapter's", t, then)
        m, dm, gain, inverse = adapters[1]
        case.same("dm", dm, before[1][1])
        if not all(is_untouched_after(t) for t in adapters[1]):
            case.wrong.append("written after the end of a vector")
        for g, rank in enumerate(ranks):
            n = slice(bounds[g], bounds[g + 1])
            if rank == 0:
                for t, then in zip(adapters[1], before[1]):
                    case.same("a linear that is no target", t[n], then[n])
                continue
            low = pool.b[1, g].double().T @ pool.a[1, g].double()
            norm = (w[n].double() + pool.scale[1, g].double() * low).norm(dim=1)
            length = norm if begins else before[1][0][n].double()
            case.near("m", m[n], length, 2e-6)
            some = norm > 0
            case.near("gain", gain[n], torch.where(some, length / norm, 0.0), 2e-6)
            case.near("inverse", inverse[n], torch.where(some, 1 / norm, 0.0), 2e-6)
        # Alone, in other memory, at the variant that it needs.
        alone = Pool(DTYPE[kind], columns, K, [ranks])
        alone.scale.copy_(pool.scale[1:2])
        for g in range(G):
            if ranks[g] > 0:
                alone.a[0, g].copy_(pool.a[1, g])
                alone.b[0, g].copy_(pool.b[1, g])
        single = [vector(t) for t in before[1]]
        run.dora_norm(kind, w, alone, table_of([single], columns), bounds, ints([1 + begins]))
        if not run.INTERPRET:
            for name, a, b in zip(("m", "dm", "gain", "inverse"), single, adapters[1]):
                case.same(f"{name} alone", a, b)


def scaled(case, kind, tiles, N, decomposed):
    """Forward and backward over tiles of adapters, -1 for none; the same again for an adapter alone."""
    M, L = TILE * len(tiles), len(decomposed)
    of_tile, which = ints(tiles), table([[is_own] for is_own in decomposed], torch.int32, 2)[:, 0]
    rows = torch.tensor(tiles, device=DEVICE).repeat_interleave(TILE)
    mine = (rows >= 0) & (which[rows.clamp_min(0)] == 1)
    z, dy, residual, bias = rnd(kind, M, N), rnd(kind, M, N), rnd(kind, M, N), rnd(kind, N)
    adapters = [own(N) if is_own else [None] * 4 for is_own in decomposed]
    at = vectors([[of] for of in adapters])
    zero = torch.zeros(N, device=DEVICE)
    factor = torch.stack([zero if of[2] is None else of[2] for of in adapters])[rows.clamp_min(0)]
    for some_bias in (None, bias):
        for some_residual in (None, residual):
            y = rnd(kind, M, N)
            before = y.clone()
            run.dora_forward(kind, z, some_bias, some_residual, at, which, y, of_tile)
            exact = factor.double() * z.double() + sum(t.double() for t in (some_bias, some_residual) if t is not None)
            case.near("y", y[mine], exact[mine])
            case.same("y of others", y[~mine], before[~mine])
    before, dz = [[None if t is None else t.clone() for t in of] for of in adapters], z.clone()
    run.dora_backward(kind, dy, dz, at, which, of_tile)
    case.near("dz", dz[mine], (factor.double() * dy.double())[mine])
    case.same("dz of others", dz[~mine], dy[~mine])
    for l, (of, then) in enumerate(zip(adapters, before)):
        if not decomposed[l]:
            continue
        m, dm, gain, inverse = of
        for name, a, b in (("m", m, then[0]), ("gain", gain, then[2]), ("inverse", inverse, then[3])):
            case.same(name, a, b)
        if not is_untouched_after(dm):
            case.wrong.append("written after the end of dm")
        if l not in tiles:
            case.same("dm of others", dm, then[1])
            continue
        own_rows = rows == l
        case.near("dm", dm, then[1].double() + inverse.double() * (dy.double() * z.double())[own_rows].sum(0), 5e-6)
        single, z_alone = [vector(t) for t in then], z[own_rows].contiguous()
        run.dora_backward(kind, dy[own_rows].contiguous(), z_alone, vectors([[single]]), ints([1]), ints([0] * tiles.count(l)))
        case.same("dm alone", single[1], dm)
        case.same("dz alone", z_alone, dz[own_rows])


def dora(kind, small):
    case = Case(kind)
    shapes = [(40, (24, 8, 16), (3, 0, 16)), (72, (40,), (64,)), (40, (24,), (200,))] if small else [
        (4096, (4096, 4096, 4096), (16, 0, 13)), (576, (576, 192, 192), (64, 33, 5)), (11008, (4096,), (8,)), (1032, (776, 200), (256, 100)), (1024, (512,), (512,))]
    if small and kind == "ptr":
        shapes = []  # the interpreter multiplies no bf16
    for shape in shapes:
        norms(case, kind, *shape)
    for tiles, N in [([1, 1, 2, -1], 72)] if small else [([1, 1, 2, -1, 0, 3, 3, 3, 3], 4096), ([2, 0, 0], 12288), ([3] * 32, 200)]:
        scaled(case, kind, tiles, N, [0, 1, 0, 1] if 3 in tiles else [1, 1, 0])
    return case
