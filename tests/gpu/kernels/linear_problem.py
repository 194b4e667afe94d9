"""Random inputs of one group of linears, what the kernels make of them, and what float64 makes of them."""
import math
import struct

import torch

from linear_launch import DEVICE, Case
from linear_variants import RANKS

NAN = float("nan")


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


def stacked(L, rows, cols, dtype, fill):
    """[L, rows, cols] whose matrices lie further apart than they are long, as in the region of all adapters; NaN between."""
    stride = math.ceil(rows * cols / 64) * 64 + 128
    region = torch.full((L, stride), NAN, device=DEVICE, dtype=dtype)
    view = region.as_strided((L, rows, cols), (stride, cols, 1))
    view.copy_(fill)
    return view


class Problem:
    """Inputs of one group of linears and what the kernels make of them."""

    def __init__(self, kind, columns, K, R, tiles, ranks, p=0.1, bias=False, residual=False, config=None):
        R = next(r for r in RANKS[kind] if r >= R)  # what is compiled of this kind
        G, L, M = len(columns), len(ranks), len(tiles) * 128
        dtype = torch.float32 if kind == "f32" else torch.bfloat16
        rnd = lambda *shape: torch.randn(*shape, device=DEVICE).to(dtype)
        tile_adapter = torch.tensor(tiles, device=DEVICE, dtype=torch.int32)
        number = {}
        row_number = []
        for l in tiles:  # an adapter's rows count from zero, wherever they lie
            row_number += range(number.get(l, 0), number.get(l, 0) + 128)
            number[l] = number.get(l, 0) + 128
        self.ranks_list = ranks
        self.case = Case(kind, columns, K, R, tile_adapter, torch.tensor(ranks, device=DEVICE, dtype=torch.int32),
                         torch.rand(L, G, device=DEVICE) + 0.5, torch.tensor(row_number, device=DEVICE, dtype=torch.int32),
                         torch.tensor([dropout_row(0 if l % 3 == 2 else p, 0x9E370000 + l, 5 + l) for l in range(L)], device=DEVICE, dtype=torch.int32),
                         config=config or {})
        N = sum(columns)
        self.rank_of_column = torch.zeros(L, G * R, device=DEVICE, dtype=torch.bool)
        in_b = torch.zeros(L, N, R, device=DEVICE, dtype=torch.bool)
        for l in range(L):
            for g in range(G):
                self.rank_of_column[l, g * R : g * R + ranks[l][g]] = True
                in_b[l, sum(columns[:g]) : sum(columns[: g + 1]), : ranks[l][g]] = True
        self.x, self.w, self.dy = rnd(M, K), rnd(N, K), rnd(M, N)
        self.bias = rnd(N) if bias else None
        self.residual = rnd(M, N) if residual else None
        self.a = stacked(L, G * R, K, dtype, rnd(L, G * R, K) * self.rank_of_column[:, :, None])
        self.b = stacked(L, N, R, dtype, rnd(L, N, R) * in_b)
        self.da0 = torch.randn(L, G * R, K, device=DEVICE) * self.rank_of_column[:, :, None]
        self.db0 = torch.randn(L, N, R, device=DEVICE) * in_b

    def run(self):
        c = self.case
        poison = lambda *shape: torch.full(shape, NAN, device=DEVICE, dtype=c.dtype)
        self.s, self.ds = poison(c.M, c.G * c.R), poison(c.M, c.G * c.R)
        self.y, self.dx = poison(c.M, c.N), poison(c.M, c.K)
        self.da = stacked(c.L, c.G * c.R, c.K, torch.float32, self.da0)
        self.db = stacked(c.L, c.N, c.R, torch.float32, self.db0)
        c.lora_down(self.x, self.a, self.s)
        residual = self.residual
        if residual is not None:  # as in a layer: the residual is y itself
            self.y.copy_(residual)
            residual = self.y
        c.linear_forward(self.x, self.w, self.y, self.s, self.b, self.bias, residual)
        c.lora_up_grad(self.dy, self.s, self.b, self.ds, self.db)
        c.linear_backward(self.dy, self.w, self.dx, self.ds, self.a)
        c.lora_down_grad(self.x, self.ds, self.da)
        return self

    def errors(self):
        """Relative errors against float64; the low-rank results from the kernels' own rounded s and ds."""
        c = self.case
        f = lambda t: t.double()
        s, ds = torch.zeros(c.M, c.G * c.R, device=DEVICE, dtype=torch.float64), torch.zeros(c.M, c.G * c.R, device=DEVICE, dtype=torch.float64)
        y = f(self.x) @ f(self.w).T
        dx = f(self.dy) @ f(self.w)
        if self.bias is not None:
            y += f(self.bias)
        if self.residual is not None:
            y += f(self.residual)
        da, db = f(self.da0).clone(), f(self.db0).clone()
        rows_of = c.tile_adapter.repeat_interleave(128)
        for l in range(c.L):
            rows = (rows_of == l).nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            inverse = struct.unpack("<f", struct.pack("<i", int(c.dropout[l, 3])))[0]
            mask = keep_mask(c.dropout[l].tolist(), c.module, c.row_number[rows], c.K).double() * inverse
            dropped = f(self.x[rows]) * mask
            s[rows] = dropped @ f(self.a[l]).T
            da[l] += f(self.ds[rows]).T @ dropped
            dx[rows] += (f(self.ds[rows]) @ f(self.a[l])) * mask
            for g in range(c.G):
                n = slice(sum(c.columns[:g]), sum(c.columns[: g + 1]))
                r = slice(g * c.R, (g + 1) * c.R)
                scale = float(c.scale[l, g])
                y[rows, n] += scale * (f(self.s[rows, r]) @ f(self.b[l, n]).T)
                ds[rows, r] = scale * (f(self.dy[rows, n]) @ f(self.b[l, n]))
                db[l, n] += scale * (f(self.dy[rows, n]).T @ f(self.s[rows, r]))
        relative = lambda out, ref: float((f(out) - ref).norm() / ref.norm().clamp_min(1e-30))
        return {name: relative(getattr(self, name), ref) for name, ref in dict(s=s, y=y, ds=ds, dx=dx, da=da, db=db).items()}

    def alone(self, l):
        """The same adapter alone, at the padded rank that it needs."""
        c = self.case
        rank = max(self.ranks_list[l])
        R = next(r for r in RANKS[c.kind] if r >= rank)
        tiles = [0] * int((c.tile_adapter == l).sum())
        other = Problem(c.kind, c.columns, c.K, R, tiles, [self.ranks_list[l]], bias=self.bias is not None, residual=self.residual is not None, config=c.config)
        rows = (c.tile_adapter.repeat_interleave(128) == l).nonzero()[:, 0]
        columns = torch.cat([torch.arange(g * c.R, g * c.R + R, device=DEVICE) for g in range(c.G)])
        o = other.case
        o.scale, o.dropout, o.row_number = c.scale[l : l + 1].clone(), c.dropout[l : l + 1].clone(), c.row_number[rows].contiguous()
        other.x, other.dy, other.w, other.bias = self.x[rows].contiguous(), self.dy[rows].contiguous(), self.w, self.bias
        other.residual = None if self.residual is None else self.residual[rows].contiguous()
        other.a.copy_(self.a[l, columns])
        other.b.copy_(self.b[l, :, :R])
        other.da0, other.db0 = self.da0[l, columns][None], self.db0[l, :, :R][None]
        other.run()
        same = {name: torch.equal(getattr(self, name)[rows], getattr(other, name)) for name in ("y", "dx")}
        same.update({name: torch.equal(getattr(self, name)[rows][:, columns], getattr(other, name)) for name in ("s", "ds")})
        same["da"] = torch.equal(self.da[l, columns], other.da[0])
        same["db"] = torch.equal(self.db[l, :, :R], other.db[0])
        return [name for name, ok in same.items() if not ok]
