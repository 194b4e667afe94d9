"""DoRA's kernels against float64, alone and with others: an adapter's numbers do not depend on where its tiles lie."""
import torch

import rows_launch as run
from rows_check import Case, floats, ints, poison, rnd
from rows_launch import DEVICE

TILE = 128


def norms(case, kind, K, columns, R, ranks):
    """Adapter 1 of 2 in a group of linears, one of which may be no target; m is strided, as in an adapter's block."""
    G, N = len(columns), sum(columns)
    bounds = [sum(columns[:g]) for g in range(G + 1)]
    w, a, b = rnd(kind, N, K, scale=K**-0.5), rnd(kind, 2, G * R, K, scale=K**-0.5), rnd(kind, 2, N, R, scale=0.5)
    for g, rank in enumerate(ranks):
        a[:, g * R + rank : (g + 1) * R] = 0
        b[:, bounds[g] : bounds[g + 1], rank:] = 0
    w[3], b[1, 3] = 0, 0  # a row of zeros has no length
    scale, table = torch.rand(2, G, device=DEVICE) + 0.5, ints([[1] * G, ranks])
    for begins in (0, 1):
        block = torch.randn(2, N + 256, device=DEVICE)
        before, gain, inverse = block.clone(), floats(2, N), floats(2, N)
        m = block[:, 128 : 128 + N]
        run.dora_norm(kind, w, a, b, scale, table, bounds, m, gain, inverse, ints([0, 1 + begins]))
        case.same("another adapter's", block[0], before[0])
        case.same("its other parameters", block[1, :128], before[1, :128])
        for g, rank in enumerate(ranks):
            at = slice(bounds[g], bounds[g + 1])
            if rank == 0:
                if not bool(gain[1, at].isnan().all()):
                    case.wrong.append("a linear that is no target was written")
                continue
            low = b[1, at].double() @ a[1, g * R : (g + 1) * R].double()
            norm = (w[at].double() + scale[1, g].double() * low).norm(dim=1)
            length = norm if begins else before[1, 128:][at].double()
            case.near("m", m[1, at], length, 2e-6)
            some = norm > 0
            case.near("gain", gain[1, at], torch.where(some, length / norm, 0.0), 2e-6)
            case.near("inverse", inverse[1, at], torch.where(some, 1 / norm, 0.0), 2e-6)
        beside = floats(2, N), floats(2, N)
        run.dora_norm(kind, w, a, b, scale, table, bounds, m, *beside, ints([1, 1]))
        case.same("gain beside another's", beside[0][1], gain[1])
        case.same("inverse beside another's", beside[1][1], inverse[1])


def scaled(case, kind, tiles, N, decomposed):
    """Forward and backward over tiles of adapters, -1 for none; the same again for an adapter alone."""
    M, L = TILE * len(tiles), len(decomposed)
    table, which = ints(tiles), ints(decomposed)
    rows = torch.tensor(tiles, device=DEVICE).repeat_interleave(TILE)
    mine = (rows >= 0) & (which[rows.clamp_min(0)] == 1)
    z, dy, residual, bias = rnd(kind, M, N), rnd(kind, M, N), rnd(kind, M, N), rnd(kind, N)
    gain, inverse = torch.rand(L, N, device=DEVICE) + 0.5, torch.rand(L, N, device=DEVICE)
    factor = gain[rows.clamp_min(0)]
    for some_bias in (None, bias):
        for some_residual in (None, residual):
            y = rnd(kind, M, N)
            before = y.clone()
            run.dora_forward(kind, z, some_bias, some_residual, gain, which, y, table)
            exact = factor.double() * z.double() + sum(t.double() for t in (some_bias, some_residual) if t is not None)
            case.near("y", y[mine], exact[mine])
            case.same("y of others", y[~mine], before[~mine])
    block = torch.randn(L, N + 128, device=DEVICE)
    dm, before, dz = block[:, :N], block.clone(), z.clone()
    run.dora_backward(kind, dy, dz, gain, inverse, which, dm, table)
    case.near("dz", dz[mine], (factor.double() * dy.double())[mine])
    case.same("dz of others", dz[~mine], dy[~mine])
    for l in range(L):
        if decomposed[l] == 0 or l not in tiles:
            case.same("dm of others", dm[l], before[l, :N])
            continue
        own = rows == l
        case.near("dm", dm[l], before[l, :N].double() + inverse[l].double() * (dy.double() * z.double())[own].sum(0), 5e-6)
        alone, z_alone = before.clone(), z[own].contiguous()
        run.dora_backward(kind, dy[own].contiguous(), z_alone, gain, inverse, which, alone[:, :N], ints([l] * tiles.count(l)))
        case.same("dm alone", alone[l], block[l])
        case.same("dz alone", z_alone, dz[own])


def dora(kind, small):
    case = Case(kind)
    shapes = [(40, (24, 8, 16), 16, (3, 0, 16)), (72, (40,), 64, (64,)), (40, (24,), 256, (200,))] if small else [
        (4096, (4096, 4096, 4096), 16, (16, 0, 13)), (576, (576, 192, 192), 64, (64, 33, 5)), (11008, (4096,), 16, (8,)), (1032, (776, 200), 256, (256, 100))]
    if small and kind == "ptr":
        shapes = []  # the interpreter multiplies no bf16
    for shape in shapes:
        norms(case, kind, *shape)
    for tiles, N in [([1, 1, 2, -1], 72)] if small else [([1, 1, 2, -1, 0, 3, 3, 3, 3], 4096), ([2, 0, 0], 12288), ([3] * 32, 200)]:
        scaled(case, kind, tiles, N, [0, 1, 0, 1] if 3 in tiles else [1, 1, 0])
    return case
