"""VeRA's kernels against the same hash and float64 sums: of several adapters, those that are meant, and no more than their
ranks."""
import torch

import rows_launch as run
from linear_pool import Pool, is_untouched_after, vector, vectors
from rows_check import Case, ints, stored
from rows_launch import DEVICE, DTYPE


def mix(x):
    """lowbias32, of i64 that hold 32 bits."""
    low = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)


def drawn(key, bound, rows, columns, stride):
    index = torch.arange(rows, device=DEVICE)[:, None] * stride + torch.arange(columns, device=DEVICE)[None, :]
    return ((mix(key ^ index) >> 8).double() * 2**-23 - 1).float() * bound


def bits(value):
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def signed(key):
    return key - (1 << 32) if key >= 1 << 31 else key


def one(case, kind, K, columns, ranks, which):
    """All adapters have their own keys, bounds and width; what is left alone keeps its bits."""
    L, G = len(ranks), len(columns)
    keys = torch.randint(0, 1 << 32, (L, 2)).tolist()
    bounds = [[float(torch.rand(()) + 0.1) for _ in range(2)] for _ in range(L)]
    bounds = torch.tensor(bounds, dtype=torch.float32).tolist()
    widths = [K + 24 * l for l in range(L)]
    projection = ints([[signed(keys[l][0]), signed(keys[l][1]), widths[l], bits(bounds[l][0]), bits(bounds[l][1])] for l in range(L)])
    pool, chosen = Pool(DTYPE[kind], columns, K, ranks), ints(which)
    lengths = lambda l, g: (ranks[l][g], ranks[l][g], columns[g], columns[g])
    own = [[[vector(torch.randn(n)) if ranks[l][g] > 0 else None for n in lengths(l, g)] for g in range(G)] for l in range(L)]
    at = vectors(own)
    copied = lambda of: {key: t.clone() for key, t in of.items()}
    before = [copied(of) for of in (pool.a, pool.b, pool.da, pool.db)]
    vectors_before = [[[None if t is None else t.clone() for t in linear] for linear in of] for of in own]
    for side in (0, 1):
        run.vera(kind, "vera_expand", side, pool, at, chosen, projection)
        run.vera(kind, "vera_reduce", side, pool, at, chosen, projection)
    for l, g in pool.a:
        rank = ranks[l][g]
        for side, (factor, grad) in enumerate(((pool.a, pool.da), (pool.b, pool.db))):
            factor, grad, factor_before, grad_before = factor[l, g], grad[l, g], before[side][l, g], before[2 + side][l, g]
            trained, gradient = own[l][g][2 * side : 2 * side + 2]
            trained_before, gradient_before = vectors_before[l][g][2 * side : 2 * side + 2]
            case.same("vector", trained, trained_before)
            if not all(is_untouched_after(t) for t in (factor, grad, trained, gradient)):
                case.wrong.append("written after an end")
            if which[l] == 0:
                case.same("factor of another", factor, factor_before)
                case.same("gradient of another", grad, grad_before)
                case.same("vector's gradient of another", gradient, gradient_before)
                continue
            if side == 0:
                u = drawn(keys[l][0], bounds[l][0], rank, K, widths[l])
                made, by_draw, along = u * trained[:, None], grad_before.double() * u.double(), 1
            else:
                u = drawn(keys[l][1], bounds[l][1], columns[g], rank, rank).T
                made, by_draw, along = u * trained[None, :], grad_before.double() * u.double(), 0
            case.same(f"factor {side}", factor.contiguous(), stored(made.contiguous(), DTYPE[kind]))
            case.same(f"gradient {side}", grad, torch.zeros_like(grad))
            case.near(f"vector's gradient {side}", gradient, gradient_before.double() + by_draw.sum(along), 2e-6)


def vera(kind, small):
    case = Case(kind)
    shapes = [(40, (24, 8, 16), [[3, 0, 16], [9, 9, 9]], [1, 0])]
    if not small:
        shapes += [
            (4096, (4096, 1024, 1024), [[256, 256, 256], [33, 33, 0], [100, 0, 100]], [1, 1, 0]),
            (11008, (4096,), [[64], [40]], [0, 1]),
            (576, (1536, 1536), [[5, 5], [16, 16]], [1, 1]),
        ]
    for shape in shapes:
        one(case, kind, *shape)
    return case
