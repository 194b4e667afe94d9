"""VeRA's kernels against the same hash and float64 sums: of several adapters, those that are meant, and no more than their
ranks."""
import torch

import rows_launch as run
from rows_check import Case, ints, rnd, stored
from rows_launch import DEVICE, DTYPE

MOST_RANK = 256


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


def one(case, kind, K, columns, R, ranks, which):
    """All adapters have their own keys, bounds and width; what is left alone keeps its bits."""
    L, G, N = len(ranks), len(columns), sum(columns)
    first = [sum(columns[:g]) for g in range(G + 1)]
    keys = torch.randint(0, 1 << 32, (L, 2)).tolist()
    bounds = [[float(torch.rand(()) + 0.1) for _ in range(2)] for _ in range(L)]
    bounds = torch.tensor(bounds, dtype=torch.float32).tolist()
    widths = [K + 24 * l for l in range(L)]
    projection = ints([[signed(keys[l][0]), signed(keys[l][1]), widths[l], bits(bounds[l][0]), bits(bounds[l][1])] for l in range(L)])
    table, chosen = ints(ranks), ints(which)
    for side, (rows, ld) in enumerate(((G * R, K), (N, R))):
        vector = torch.randn(L, G * MOST_RANK if side == 0 else N, device=DEVICE)
        factor, grad = rnd(kind, L, rows, ld), torch.randn(L, rows, ld, device=DEVICE)
        before, grad_before, vector_before = factor.clone(), grad.clone(), vector.clone()
        run.vera(kind, "vera_expand", side, factor, vector, table, chosen, projection, first)
        run.vera(kind, "vera_reduce", side, grad, vector, table, chosen, projection, first)
        for l in range(L):
            for g in range(G):
                rank = ranks[l][g]
                if side == 0:
                    at, v, height, width, stride = slice(g * R, g * R + R), slice(g * MOST_RANK, g * MOST_RANK + R), rank, K, widths[l]
                else:
                    at = v = slice(first[g], first[g + 1])
                    height, width, stride = columns[g] if rank > 0 else 0, rank, rank
                if which[l] == 0:
                    height = 0
                u = drawn(keys[l][side], bounds[l][side], height, width, stride)
                want = before[l, at].clone()
                want[:height, :width] = stored(u * vector_before[l, v][:height, None], DTYPE[kind])
                case.same(f"factor {side}", factor[l, at], want)
                left = grad_before[l, at].clone()
                left[:height, :width] = 0
                case.same(f"grad {side}", grad[l, at], left)
                sums = vector_before[l, v].double()
                sums[:height] += (grad_before[l, at][:height, :width].double() * u.double()).sum(1)
                case.near(f"vector {side}", vector[l, v], sums, 2e-6)


def vera(kind, small):
    case = Case(kind)
    shapes = [(40, (24, 8, 16), 16, [[3, 0, 16], [9, 9, 9]], [1, 0])]
    if not small:
        shapes += [
            (4096, (4096, 1024, 1024), 256, [[256, 256, 256], [33, 33, 0], [100, 0, 100]], [1, 1, 0]),
            (11008, (4096,), 64, [[64], [40]], [0, 1]),
            (576, (1536, 1536), 16, [[5, 5], [16, 16]], [1, 1]),
        ]
    for shape in shapes:
        one(case, kind, *shape)
    return case
