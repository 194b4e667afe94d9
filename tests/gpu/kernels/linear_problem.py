"""Random inputs of one group of linears, what the kernels make of them, and what float64 makes of them."""
import math
import struct

import torch

import rows_launch as rows
from linear_launch import Case
from linear_pool import DEVICE, NAN, Pool, is_untouched_after


def mix(x):
    """base/rng.ts in int64."""
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def keep_mask(settings, module, rows, K):
    """bool[M, K] for rows of one adapter."""
    seed, step, threshold, _ = (int(v) & 0xFFFFFFFF for v in settings)
    rows = rows.to(torch.int64)
    k0 = mix(mix(mix(mix(seed) ^ step) ^ module) ^ rows)[:, None]
    k1 = mix(k0 ^ 0x9E3779B9)
    x = (torch.arange(K, device=rows.device)[None, :] + k0) & 0xFFFFFFFF
    x = (((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF) ^ k1
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >= threshold


def dropout_row(p, seed, step):
    bits = struct.unpack("<i", struct.pack("<f", 1 / (1 - p)))[0]
    signed = lambda v: v - (1 << 32) if v >= 1 << 31 else v
    return [signed(seed), step, signed(int(p * 2**32)), bits]


def micro_batch(kind, pool, tiles, p, seed=0, **more):
    """A Case of these tiles: an adapter's rows count from zero, wherever they lie; every third adapter has no dropout."""
    low_at, low_size = pool.place(tiles, [seed % 3 if l % 2 == 0 else 0 for l in range(pool.L)])
    number, row_number = {}, []
    for l in tiles:
        row_number += range(number.get(l, 0), number.get(l, 0) + 128)
        number[l] = number.get(l, 0) + 128
    dropout = [dropout_row(0 if l % 3 == 2 else p, 0x9E370000 + l, 5 + l) for l in range(pool.L)]
    ints = lambda values: torch.tensor(values, device=DEVICE, dtype=torch.int32)
    return Case(kind, pool, ints(tiles), low_at, low_size, ints(row_number), ints(dropout), **more)


class Problem:
    """Inputs of one group of linears and what the kernels make of them."""

    def __init__(self, kind, columns, K, tiles, ranks, p=0.1, bias=False, residual=False, seed=1, **more):
        dtype = torch.float32 if kind == "f32" else torch.bfloat16
        M, N = len(tiles) * 128, sum(columns)
        rnd = lambda *shape: torch.randn(*shape, device=DEVICE).to(dtype)
        self.tiles, self.p, self.more = tiles, p, more
        self.pool = Pool(dtype, columns, K, ranks)
        self.case = micro_batch(kind, self.pool, tiles, p, seed, **more)
        self.da0, self.db0 = ({at: t.clone() for at, t in of.items()} for of in (self.pool.da, self.pool.db))
        self.x, self.w, self.dy = rnd(M, K), rnd(N, K), rnd(M, N)
        self.bias = rnd(N) if bias else None
        self.residual = rnd(M, N) if residual else None

    def run(self):
        c = self.case
        poison = lambda *shape: torch.full(shape, NAN, device=DEVICE, dtype=c.dtype)
        # What lies after s and ds is NaN as well.
        self.s, self.ds = poison(c.low_size + 128 * 512), poison(c.low_size + 128 * 512)
        self.y, self.dx = poison(c.M, c.N), poison(c.M, c.K)
        for at in self.da0:
            self.pool.da[at].copy_(self.da0[at])
            self.pool.db[at].copy_(self.db0[at])
        c.lora_down(self.x, self.s)
        residual = self.residual
        if residual is not None:  # as in a layer: the residual is y itself
            self.y.copy_(residual)
            residual = self.y
        c.linear_forward(self.x, self.w, self.y, self.s, self.bias, residual)
        c.lora_up_grad(self.dy, self.s, self.ds)
        c.linear_backward(self.dy, self.w, self.dx, self.ds)
        c.lora_down_grad(self.x, self.ds)
        return self

    def made_otherwise(self):
        """Gradients of A that differ where x is made as it is read, not by the kernel that writes it."""
        c, wrong = self.case, []
        M, K = self.x.shape
        before = {at: t.clone() for at, t in self.pool.da.items()}
        of = torch.randn(M, 2 * K, device=DEVICE).to(self.x.dtype)
        gate, up = of[:, :K], of[:, K:]
        x, rstd, weight = torch.empty_like(self.x), torch.empty(M, device=DEVICE), torch.randn(K, device=DEVICE)
        ways = {
            "a norm": lambda: (rows.rmsnorm_forward(c.kind, self.x, weight, None, x, rstd, 1e-6), dict(x=self.x, made=1, rstd=rstd, weight=weight)),
            "swiglu": lambda: (rows.swiglu_forward(c.kind, of, x), dict(x=of, made=2)),
            "geglu": lambda: (rows.geglu_forward(c.kind, gate, up, x), dict(x=of, made=3)),
        }
        for name, way in ways.items():
            _, again = way()
            found = []
            for args in (dict(x=x), again):
                for at, t in self.da0.items():
                    self.pool.da[at].copy_(t)
                c.lora_down_grad(ds=self.ds, **args)
                found.append({at: t.clone() for at, t in self.pool.da.items()})
            there = [at for at in self.da0 if at[0] in self.tiles and self.pool.rank_list[at[0]][at[1]] > 0]
            wrong += [f"da {at} by {name} made again" for at in there if not torch.equal(found[0][at], found[1][at])]
            wrong += [f"da by {name} is what it was" for _ in there[:1] if all(torch.equal(found[1][at], self.da0[at]) for at in there)]
        for at, t in before.items():
            self.pool.da[at].copy_(t)
        return wrong

    def low(self, flat, tile):
        """The part [128, W] of a tile."""
        begin, W = int(self.case.low_at[tile]) * 16, self.pool.width(self.tiles[tile])
        return flat[begin : begin + 128 * W].view(128, W)

    def rows(self, flat, l):
        """The parts of an adapter's tiles, one after the other."""
        return torch.cat([self.low(flat, tile) for tile, of in enumerate(self.tiles) if of == l])

    def strays(self):
        """What was written or left out where it should not be."""
        wrong = []
        for name in ("s", "ds"):
            flat = getattr(self, name)
            written = torch.zeros(flat.numel(), dtype=torch.bool, device=DEVICE)
            for tile, l in enumerate(self.tiles):
                if l >= 0:
                    self.low(written, tile)[:] = True
                    for g, rank in enumerate(self.pool.rank_list[l]):
                        column = self.pool.column(l, g)
                        if bool((self.low(flat, tile)[:, column + rank : column + -(-rank // 16) * 16] != 0).any()):
                            wrong.append(f"{name} is not zero beyond a rank")
            if not torch.equal(flat.isnan(), ~written):
                wrong.append(f"{name} is written elsewhere or not everywhere")
        for name, before in (("da", self.da0), ("db", self.db0)):
            for (l, g), t in getattr(self.pool, name).items():
                if l not in self.tiles and not torch.equal(t, before[l, g]):
                    wrong.append(f"{name} of an adapter that is not in the batch")
                if not is_untouched_after(t):
                    wrong.append(f"{name} is written after its end")
        return wrong

    def errors(self):
        """Relative errors against float64; the low-rank results from the kernels' own rounded s and ds."""
        c, pool = self.case, self.pool
        f = lambda t: t.double()
        y, dx = f(self.x) @ f(self.w).T, f(self.dy) @ f(self.w)
        if self.bias is not None:
            y += f(self.bias)
        if self.residual is not None:
            y += f(self.residual)
        pairs = {name: [] for name in ("s", "ds", "da", "db")}
        rows_of = c.tile_adapter.repeat_interleave(128)
        for l in range(c.L):
            rows = (rows_of == l).nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            inverse = struct.unpack("<f", struct.pack("<i", int(c.dropout[l, 3])))[0]
            mask = keep_mask(c.dropout[l].tolist(), c.module, c.row_number[rows], c.K).double() * inverse
            dropped = f(self.x[rows]) * mask
            low = torch.zeros_like(dropped)
            for g in range(c.G):
                rank = pool.rank_list[l][g]
                if rank == 0:
                    continue
                n = slice(sum(pool.columns[:g]), sum(pool.columns[: g + 1]))
                j = slice(pool.column(l, g), pool.column(l, g) + rank)
                a, b, scale = f(pool.a[l, g]), f(pool.b[l, g]), float(pool.scale[l, g])
                s, ds, dy = f(self.rows(self.s, l)[:, j]), f(self.rows(self.ds, l)[:, j]), f(self.dy[rows, n])
                y[rows, n] += scale * (s @ b)
                low += ds @ a
                pairs["s"].append((s, dropped @ a.T))
                pairs["ds"].append((ds, scale * (dy @ b.T)))
                pairs["da"].append((f(pool.da[l, g]), f(self.da0[l, g]) + ds.T @ dropped))
                pairs["db"].append((f(pool.db[l, g]), f(self.db0[l, g]) + scale * (s.T @ dy)))
            dx[rows] += low * mask
        relative = lambda out, ref: float((f(out) - ref).norm() / ref.norm().clamp_min(1e-30))
        found = {name: max((relative(*pair) for pair in of), key=lambda e: (e != e, e), default=0.0) for name, of in pairs.items()}
        return found | {"y": relative(self.y, y), "dx": relative(self.dx, dx)}

    def results(self):
        """All that was made, copied."""
        made = {name: getattr(self, name) for name in ("s", "ds", "y", "dx")}
        made |= {f"{name} {at}": t for name in ("da", "db") for at, t in getattr(self.pool, name).items()}
        return {name: t.clone() for name, t in made.items()}

    def alone(self, l):
        """What differs when the same adapter is alone, in other memory, at the variants that it needs."""
        c, pool = self.case, self.pool
        mine = [tile for tile, of in enumerate(self.tiles) if of == l]
        other = Problem(c.kind, pool.columns, c.K, [0] * len(mine), [pool.rank_list[l]], self.p, self.bias is not None, self.residual is not None, 2, **self.more)
        rows = (c.tile_adapter.repeat_interleave(128) == l).nonzero()[:, 0]
        o = other.case
        o.dropout, o.row_number = c.dropout[l : l + 1].clone(), c.row_number[rows].contiguous()
        other.pool.scale.copy_(pool.scale[l : l + 1])
        other.x, other.dy, other.w, other.bias = self.x[rows].contiguous(), self.dy[rows].contiguous(), self.w, self.bias
        other.residual = None if self.residual is None else self.residual[rows].contiguous()
        for g in range(c.G):
            if pool.rank_list[l][g] > 0:
                other.pool.a[0, g].copy_(pool.a[l, g])
                other.pool.b[0, g].copy_(pool.b[l, g])
                other.da0[0, g], other.db0[0, g] = self.da0[l, g], self.db0[l, g]
        other.run()
        same = {name: torch.equal(getattr(self, name)[rows], getattr(other, name)) for name in ("y", "dx")}
        if mine:
            same |= {name: torch.equal(self.rows(getattr(self, name), l), other.rows(getattr(other, name), 0)) for name in ("s", "ds")}
        for name in ("da", "db"):
            of, alone = getattr(pool, name), getattr(other.pool, name)
            same |= {f"{name} {g}": torch.equal(of[l, g], alone[0, g]) for g in range(c.G) if (l, g) in of}
        return [name for name, ok in same.items() if not ok]
