"""A layer of experts on random numbers: what kernels are given, and float64 of what each was given."""
from collections import Counter
from copy import copy
from dataclasses import replace

import torch

import experts_launch as run
from experts_launch import DEVICE, Adapters, dtype_of
from linear_pool import padded, placed, table

A, B = 0, 1  # places in tables of factors


def per_expert(shape, dtype, E):
    """Factors of all experts, [E, r, width], NaN after them."""
    return [flat.view(E, r, n) for (r, n), flat in zip(shape, placed([(E * r, n) for r, n in shape], dtype))]


class Group:
    """The adapters of gate and up, or of down. `outer`: the factor, A or B, that all experts share of adapters in `shares`."""

    def __init__(self, dtype, E, columns, K, ranks, outer, shares):
        self.dtype, self.E, self.columns, self.ranks, self.outer, self.shares = dtype, E, columns, ranks, outer, shares
        shares = [(share and outer == A, share and outer == B) for share in shares]
        self.a, self.b, self.da, self.db = {}, {}, {}, {}
        addresses, strides = [], []
        for l, row in enumerate(ranks):
            addresses.append([])
            strides.append([])
            for g, r in enumerate(row):
                stride = [0 if share else r * n for share, n in zip(shares[l], (K, columns[g]))]
                if r > 0:
                    for of, n, share, dt in ((self.a, K, shares[l][0], dtype), (self.b, columns[g], shares[l][1], dtype), (self.da, K, shares[l][0], torch.float32), (self.db, columns[g], shares[l][1], torch.float32)):
                        of[l, g] = per_expert([(r, n)], dt, 1 if share else E)[0]
                    for of in (self.a, self.b):
                        of[l, g] *= 0.3
                addresses[-1].append([of[l, g].data_ptr() if r > 0 else 0 for of in (self.a, self.b, self.da, self.db)])
                strides[-1].append(stride)
        scale = table((torch.rand(len(ranks), len(columns)) + 0.5).tolist(), torch.float32, 3)
        self.scale = scale
        most = max(r for row in ranks for r in row)
        self.tables = Adapters(table(addresses, torch.int64, 5), table(strides, torch.int32, 3), scale, table(ranks, torch.int32, 3), columns, most)
        self.W = max(sum(map(padded, row)) for row in ranks)

    @property
    def own(self):
        """The tables for the outer factor, of adapters of which each expert has its own."""
        return replace(self.tables, ranks=table([[0] * len(row) if share else row for row, share in zip(self.ranks, self.shares)], torch.int32, 3))

    def rows(self, tiles):
        """The tables for the outer factor, of adapters of which all experts share it, in a batch of these tiles."""
        ranks = [row if share else [0] * len(row) for row, share in zip(self.ranks, self.shares)]
        units = [0 if l < 0 else sum(map(padded, self.ranks[l])) * 8 for l in tiles]
        low_at = torch.tensor([sum(units[:i]) for i in range(len(tiles))], dtype=torch.int32, device=DEVICE)
        tile_adapter = torch.tensor(tiles, dtype=torch.int32, device=DEVICE)
        return run.Shared(tile_adapter, low_at, sum(units) * 16, self.W, replace(self.tables, ranks=table(ranks, torch.int32, 3)))

    def packed(self, tiles, rows):
        """Rows [M, W] as those kernels have them; NaN in what is no shared adapter's."""
        shared = self.rows(tiles)
        low = poison(self.dtype, shared.elements + 16)
        for t, begin in zip(range(len(tiles)), shared.low_at.tolist()):
            self.part(low, tiles, t, begin)[:] = rows[128 * t : 128 * t + 128, : self.width(tiles[t])]
        return low

    def part(self, low, tiles, t, begin):
        W = self.width(tiles[t])
        return low[16 * begin : 16 * begin + 128 * W].view(128, W)

    def unpacked(self, tiles, low):
        """The way back, zeros in what is no shared adapter's."""
        out = torch.zeros(128 * len(tiles), self.W, dtype=low.dtype, device=DEVICE)
        for t, begin in enumerate(self.rows(tiles).low_at.tolist()):
            out[128 * t : 128 * t + 128, : self.width(tiles[t])] = self.part(low, tiles, t, begin)
        return out

    def width(self, l):
        """Columns that an adapter has in rows of the batch."""
        return sum(map(padded, self.ranks[l])) if l >= 0 and self.shares[l] else 0

    def beyond(self, l):
        """Which of its columns are of no rank."""
        return torch.cat([torch.arange(padded(r), device=DEVICE) >= r for r in self.ranks[l]])

    def only(self, l):
        """The same, where adapters other than l have no gradients, as those that are not in a step."""
        alone, factors = copy(self), self.tables.factors.clone()
        factors[[other for other in range(len(self.ranks)) if other != l], :, 2:] = 0
        alone.tables = replace(self.tables, factors=factors)
        return alone

    def factor(self, of, l, g, e):
        m = of[l, g]
        return m[0 if len(m) == 1 else e].double()

    def column(self, l, g):
        return sum(map(padded, self.ranks[l][:g]))


def poison(dtype, *shape):
    return torch.full(shape, float("nan"), device=DEVICE, dtype=dtype)


class Problem:
    """One layer of experts, forward and backward, on random numbers."""

    def __init__(self, kind, E, k, H, I, tiles, up, down, shares, bias=False, act=None, router=None, skew=False):
        self.kind, self.E, self.k, self.H, self.I, self.tiles, self.L = kind, E, k, H, I, tiles, len(up)
        self.act, self.router, self.dtype = act or {}, router or {}, dtype_of(kind)
        rnd = lambda *shape, by=1.0: (torch.randn(*shape, device=DEVICE) * by).to(self.dtype)  # noqa: E731
        M = 128 * len(tiles)
        self.x, self.dy, self.residual = rnd(M, H), rnd(M, H), rnd(M, H)
        self.logits = rnd(M, E)  # in bf16 some of a row are alike
        if skew:
            self.logits[:, 3] = 10
        self.correction = torch.randn(E, device=DEVICE) * 0.1 if self.router.get("sigmoid") else None
        self.w_up, self.w_down = rnd(E, 2 * I, H, by=1.5 * H**-0.5), rnd(E, H, I, by=I**-0.5)
        self.b_up, self.b_down = (rnd(E, 2 * I), rnd(E, H)) if bias else (None, None)
        columns = [I, I] if len(up[0]) == 2 else [2 * I]
        self.up = Group(self.dtype, E, columns, H, up, A, shares)
        self.down = Group(self.dtype, E, [H], I, down, B, shares)
        # What products with rows of the batch make of shared factors: s of gate and up, ds of down.
        self.s_up, self.ds_down = rnd(M, self.up.W), rnd(M, self.down.W)
        for rows, group in ((self.s_up, self.up), (self.ds_down, self.down)):
            for t, l in enumerate(tiles):
                if group.width(l) > 0:
                    rows[128 * t : 128 * t + 128, : group.width(l)].masked_fill_(group.beyond(l), 0.0)
        first = torch.arange(M, dtype=torch.int32, device=DEVICE) // 128 * 128
        length = torch.tensor([128 if i % 3 else 100 for i in range(len(tiles))], dtype=torch.int32, device=DEVICE).repeat_interleave(128)
        inside = torch.arange(M, device=DEVICE) - first < length
        self.bounds = torch.stack([first, torch.where(inside, first + length, first)], 1).to(torch.int32).contiguous()
        self.dy *= inside[:, None]

    def part(self, l):
        """The tiles of one adapter as a batch by themselves."""
        alone = object.__new__(Problem)
        alone.__dict__.update(self.__dict__)
        alone.tiles = [t for t in self.tiles if t == l]
        alone.up, alone.down = self.up.only(l), self.down.only(l)
        for name in ("x", "dy", "residual", "bounds", "logits", "s_up", "ds_down"):
            rows = getattr(self, name).view(len(self.tiles), 128, -1)
            setattr(alone, name, torch.cat([rows[i] for i, t in enumerate(self.tiles) if t == l]).contiguous())
        shift = torch.tensor([128 * (i - n) for n, i in enumerate(i for i, t in enumerate(self.tiles) if t == l)], device=DEVICE, dtype=torch.int32)
        alone.bounds = (alone.bounds - shift.repeat_interleave(128)[:, None]).contiguous()
        return alone

    def run(self):
        """All kernels, as the engine calls them. The results, by name."""
        kind, M, H, I, E, k = self.kind, self.x.shape[0], self.H, self.I, self.E, self.k
        new = lambda *shape: poison(self.dtype, *shape)  # noqa: E731
        for of in (self.up.da, self.up.db, self.down.da, self.down.db):
            for t in of.values():
                t.fill_(1.0)
        tile_adapter = torch.tensor(self.tiles, dtype=torch.int32, device=DEVICE)
        o = self.o = {}
        o["logits"] = self.logits
        r = self.r = run.route(kind, o["logits"], self.correction, self.bounds, tile_adapter, self.L, k, **self.router)
        P = r.P
        for name, shape in dict(s=(P, self.up.W), gu=(P, 2 * I), h=(P, I), z=(P, self.down.W), y=(P, H), out=(M, H), dz=(P, self.down.W), dh=(P, I), dgu=(P, 2 * I),
                                ds=(P, self.up.W), dxs=(P, H), dx=(M, H)).items():
            o[name] = new(*shape)
        o["dweights"], o["dlogits"] = poison(torch.float32, M, k), new(M, E)
        up, down = self.up.rows(self.tiles), self.down.rows(self.tiles)
        for name, group, rows in (("low z", self.down, None), ("low ds", self.up, None)):
            o[name] = poison(self.dtype, group.rows(self.tiles).elements + 16)
        run.expert_low(kind, r, self.x, True, o["s"], self.up.own, 0)
        run.low_spread(kind, r, up, self.up.packed(self.tiles, self.s_up), o["s"])
        run.experts_forward(kind, r, self.x, True, self.w_up, self.b_up, o["gu"], self.up.tables, o["s"])
        run.expert_act_forward(kind, r, o["gu"], o["h"], **self.act)
        run.expert_low(kind, r, o["h"], False, o["z"], self.down.tables, 0)
        run.experts_forward(kind, r, o["h"], False, self.w_down, self.b_down, o["y"], self.down.own, o["z"])
        run.low_gather(kind, r, down, o["z"], o["low z"], True)
        run.combine(kind, r, o["y"], True, self.residual, o["out"], down, o["low z"], B)
        run.expert_low(kind, r, self.dy, True, o["dz"], self.down.own, 1)
        run.expert_gram(kind, r, self.dy, True, o["z"], self.down.own, 1, r.weights)
        run.low_spread(kind, r, down, self.down.packed(self.tiles, self.ds_down), o["dz"])
        run.experts_backward(kind, r, self.dy, True, self.w_down, o["dh"], self.down.tables, o["dz"])
        o["wh"] = o["dh"].clone()
        run.expert_act_backward(kind, r, o["wh"], o["gu"], o["dgu"], o["dweights"], **self.act)
        run.expert_gram(kind, r, o["wh"], False, o["dz"], self.down.tables, 0)
        if self.b_down is not None:
            run.bias_weight_grad(kind, r, self.dy, self.b_down, o["dweights"])
        run.expert_low(kind, r, o["dgu"], False, o["ds"], self.up.tables, 1)
        run.expert_gram(kind, r, o["dgu"], False, o["s"], self.up.tables, 1)
        run.expert_gram(kind, r, self.x, True, o["ds"], self.up.own, 0)
        run.experts_backward(kind, r, o["dgu"], False, self.w_up, o["dxs"], self.up.own, o["ds"])
        run.low_gather(kind, r, up, o["ds"], o["low ds"], False)
        run.combine(kind, r, o["dxs"], False, None, o["dx"], up, o["low ds"], A)
        run.route_backward(kind, r, o["logits"], o["dweights"], o["dlogits"], **{n: v for n, v in self.router.items() if n in ("sigmoid", "normalise", "scaling")})
        # And without adapters.
        o["y plain"], o["dxs plain"] = new(P, H), new(P, H)
        run.experts_forward(kind, r, o["h"], False, self.w_down, self.b_down, o["y plain"])
        run.experts_backward(kind, r, o["dgu"], False, self.w_up, o["dxs plain"])
        o["out plain"] = new(M, H)
        run.combine(kind, r, o["y"], True, self.residual, o["out plain"])
        return self

    # Against float64, each kernel from what it was given.

    def low(self, group, rows, l, g, low):
        """The columns of linear g in s or ds of some sorted rows."""
        at = group.column(l, g)
        return low[rows, at : at + group.ranks[l][g]].double()

    def errors(self):
        o, r, E, k, d = self.o, self.r, self.E, self.k, lambda t: t.double()
        errors, bad = {}, []

        def near(name, got, want):
            error = float((d(got) - want).norm() / want.norm().clamp_min(1e-20))
            errors[name] = max(errors.get(name, 0.0), error, key=lambda e: (e != e, e))  # NaN is the largest

        # Choice.
        logits = d(o["logits"]).requires_grad_()
        sigmoid, normalise, scaling, groups, kept = (self.router.get(n, v) for n, v in dict(sigmoid=0, normalise=1, scaling=1.0, groups=1, kept=1).items())
        score = logits.sigmoid() if sigmoid else logits.softmax(1)
        key = (o["logits"].float().sigmoid() + self.correction if sigmoid else o["logits"]).detach().clone()
        if groups > 1:
            top = key.view(-1, groups, E // groups).topk(2, 2).values.sum(2)
            order = torch.sort(top, dim=1, descending=True, stable=True).indices[:, :kept]
            drop = torch.ones_like(top, dtype=torch.bool).scatter_(1, order, False)
            key.view(-1, groups, E // groups).masked_fill_(drop[:, :, None], float("-inf"))
        experts = torch.sort(key, dim=1, descending=True, stable=True).indices[:, :k]
        attends = self.bounds[:, 0] < self.bounds[:, 1]
        experts = torch.where(attends[:, None], experts, -1)
        if not torch.equal(experts.int(), r.experts):
            bad.append(f"{int((experts != r.experts).any(1).sum())} rows chose others")
        weights = score.gather(1, r.experts.long().clamp_min(0))
        weights = (weights / weights.sum(1, keepdim=True) if normalise else weights) * scaling * attends[:, None]
        near("weights", r.weights, weights.detach())
        # Tables.
        pairs = [(int(e), p) for p, e in enumerate(r.experts.flatten().tolist()) if e >= 0]
        order = [p for _, p in sorted(pairs)]
        n = len(order)
        if r.source.tolist() != order + [-1] * (r.P - n):
            bad.append("source")
        place = torch.full((r.experts.numel(),), -1, dtype=torch.int32)
        place[torch.tensor(order, dtype=torch.long)] = torch.arange(n, dtype=torch.int32)
        if r.place.flatten().tolist() != place.tolist():
            bad.append("place")
        row_adapter = [self.tiles[p // k // 128] for p in order]
        if r.row_adapter.tolist() != row_adapter + [-1] * (r.P - n) or r.row_expert.tolist() != [e for e, _ in sorted(pairs)] + [-1] * (r.P - n):
            bad.append("experts or adapters of rows")
        of = Counter((l if l >= 0 else self.L, e) for l, (e, _) in zip(row_adapter, sorted(pairs)))
        if r.counts.tolist() != [[of[l, e] for e in range(E)] for l in range(self.L + 1)]:
            bad.append("counts")
        # Products.
        first, source = r.first_row.tolist(), r.source
        dweights = torch.zeros_like(weights)
        want = {name: torch.zeros(n, o[name].shape[1], dtype=torch.float64, device=DEVICE) for name in ("gu", "y", "dh", "dxs", "y plain", "dxs plain")}
        low = {name: [] for name in ("s", "z", "dz", "ds")}
        grads = {name: {at: torch.ones_like(t, dtype=torch.float64) for at, t in of.items()} for name, of in (("da up", self.up.da), ("db up", self.up.db), ("da down", self.down.da), ("db down", self.down.db))}
        for e in range(E):
            for l in range(-1, self.L):
                rows = torch.arange(first[e], first[e + 1], device=DEVICE)
                rows = rows[r.row_adapter[rows] == l]
                if len(rows) == 0:
                    continue
                pair = source[rows].long()
                m, weight = pair // k, d(r.weights).flatten()[pair][:, None]
                x, dy, h, dgu = d(self.x)[m], d(self.dy)[m], d(o["h"])[rows], d(o["dgu"])[rows]
                gu = x @ d(self.w_up[e]).T + (d(self.b_up[e]) if self.b_up is not None else 0)
                y = h @ d(self.w_down[e]).T + (d(self.b_down[e]) if self.b_down is not None else 0)
                dh, dxs = dy @ d(self.w_down[e]), dgu @ d(self.w_up[e])
                want["y plain"][rows], want["dxs plain"][rows] = y, dxs.clone()
                for group, x_in, low_in, y_out, dy_in, dlow_in, dx_out, name, w in ((self.up, x, "s", gu, dgu, "ds", dxs, "up", 1.0), (self.down, h, "z", y, dy, "dz", dh, "down", weight)):
                    column = 0
                    for g, width in enumerate(group.columns):
                        if l >= 0 and group.ranks[l][g] > 0:
                            a, b, times = group.factor(group.a, l, g, e), group.factor(group.b, l, g, e), float(group.scale[l, g])
                            shares_a, shares_b = (group.shares[l] and group.outer == of for of in (A, B))
                            low[low_in].append((self.low(group, rows, l, g, o[low_in]), self.low(group, m, l, g, self.s_up) if shares_a else x_in @ a.T))
                            low[dlow_in].append((self.low(group, rows, l, g, o[dlow_in]), self.low(group, m, l, g, self.ds_down) if shares_b else times * dy_in[:, column : column + width] @ b.T))
                            s, ds = low[low_in][-1][0], low[dlow_in][-1][0]
                            if not shares_b:
                                y_out[:, column : column + width] += times * s @ b
                                grads[f"db {name}"][l, g][e] += times * (s * w).T @ dy_in[:, column : column + width]
                            if not shares_a:
                                dx_out += ds @ a
                                grads[f"da {name}"][l, g][e] += ds.T @ (d(o["wh"])[rows] if name == "down" else x_in)
                        column += width
                want["gu"][rows], want["y"][rows], want["dh"][rows], want["dxs"][rows] = gu, y, dh, dxs
        for name, reference in want.items():
            near(name, o[name][:n], reference)
        for name, found in low.items():
            if found:
                near(name, torch.cat([got.flatten() for got, _ in found]), torch.cat([reference.flatten() for _, reference in found]))
        for name, reference in grads.items():
            for at, t in reference.items():
                near(name, {"da up": self.up.da, "db up": self.up.db, "da down": self.down.da, "db down": self.down.db}[name][at] - 1, t - 1)
        # What stands between.
        gu = d(o["gu"])[:n].requires_grad_()
        gate, up = (gu[:, ::2], gu[:, 1::2]) if self.act.get("interleaved") else (gu[:, : self.I], gu[:, self.I :])
        if self.act:
            gate = gate.clamp(max=self.act["limit"])
            h = (up.clamp(-self.act["limit"], self.act["limit"]) + 1) * gate * (self.act["alpha"] * gate).sigmoid()
        else:
            h = gate * gate.sigmoid() * up
        near("h", o["h"][:n], h.detach())
        pair = source[:n].long()
        dh = d(o["dh"])[:n]
        (gu_grad,) = torch.autograd.grad(h, gu, dh * d(r.weights).flatten()[pair][:, None])
        near("dgu", o["dgu"][:n], gu_grad)
        near("wh", o["wh"][:n], h.detach() * d(r.weights).flatten()[pair][:, None])
        base = (r.row_adapter[:n] < 0).nonzero().flatten()
        bad += [f"{name} of no adapter is not that of the base alone" for name in ("y", "dxs") if not torch.equal(o[name][base], o[f"{name} plain"][base])]
        if not bool((o["dgu"][n:] == 0).all()):
            bad.append("dgu of no row")
        dweights = torch.zeros(r.place.numel(), dtype=torch.float64, device=DEVICE)
        dweights[pair] = (dh * h.detach()).sum(1)
        if self.b_down is not None:
            dweights[pair] += (d(self.dy)[pair // k] * d(self.b_down)[r.row_expert[:n].long()]).sum(1)
        near("dweights", o["dweights"], dweights.view_as(o["dweights"]))
        (dlogits,) = torch.autograd.grad(weights, logits, d(o["dweights"]))
        size = (d(r.weights) * d(o["dweights"])).norm()  # what cancels where one expert has nearly all weight
        errors["dlogits"] = float((d(o["dlogits"]) - dlogits).norm() / torch.maximum(size, dlogits.norm()))

        def summed(name, w):
            return torch.zeros(self.x.shape, dtype=torch.float64, device=DEVICE).index_add_(0, pair // k, d(o[name])[:n] * w)

        weighs = d(r.weights).flatten()[pair][:, None]
        out = d(self.residual) + summed("y", weighs)
        near("out plain", o["out plain"], out)
        near("out", o["out"], out + self.added(self.down, o["low z"]))
        near("dx", o["dx"], summed("dxs", 1.0) + self.added(self.up, o["low ds"]))
        for name, group, sorted_rows, w in (("low z", self.down, o["z"], weighs), ("low ds", self.up, o["ds"], 1.0)):
            want = torch.zeros(len(self.tiles) * 128, group.W, dtype=torch.float64, device=DEVICE)
            for l in set(self.tiles) - {-1}:
                mine = (r.row_adapter[:n] == l).nonzero().flatten()
                columns = group.width(l)
                want[:, :columns].index_add_(0, pair[mine] // k, (d(sorted_rows)[:n] * w)[mine, :columns])
            near(name, group.unpacked(self.tiles, o[name]), want)
        plain = torch.tensor([l < 0 or self.down.width(l) == 0 for l in self.tiles], device=DEVICE).repeat_interleave(128)
        if not torch.equal(o["out"][plain], o["out plain"][plain]):
            bad.append("out without a shared factor is not that of the base alone")
        return errors, bad

    def added(self, group, low):
        """What shared factors add to rows of the batch."""
        total = torch.zeros(self.x.shape, dtype=torch.float64, device=DEVICE)
        low = group.unpacked(self.tiles, low).double()
        for t, l in enumerate(self.tiles):
            if l >= 0 and group.shares[l]:
                for g, rank in enumerate(group.ranks[l]):
                    if rank > 0:
                        rows = slice(128 * t, 128 * t + 128)
                        times = float(group.scale[l, g]) if group.outer == B else 1.0
                        total[rows] += times * self.low(group, rows, l, g, low) @ (group.a, group.b)[group.outer][l, g][0].double()
        return total

    def results(self, l=None):
        """By name, in the order of rows and slots; of one adapter alone, or of all."""
        r = self.r
        m = torch.tensor([i for t, a in enumerate(self.tiles) if l is None or a == l for i in range(128 * t, 128 * t + 128)], device=DEVICE)
        place = r.place[m].flatten().long()
        place = place[place >= 0]
        found = {name: self.o[name][m] for name in ("logits", "out", "out plain", "dx", "dweights", "dlogits")}
        found |= {name: group.unpacked(self.tiles, self.o[name])[m] for name, group in (("low z", self.down), ("low ds", self.up))}
        found |= {name: self.o[name][place] for name in ("gu", "h", "y", "dh", "dgu", "dxs", "y plain", "dxs plain")}
        for group, names in ((self.up, ("s", "ds")), (self.down, ("z", "dz"))):
            if l is not None:
                found |= {name: self.o[name][place][:, : sum(map(padded, group.ranks[l]))] for name in names}
        for name, of in (("da up", self.up.da), ("db up", self.up.db), ("da down", self.down.da), ("db down", self.down.db)):
            found |= {f"{name} {at}": t.clone() for at, t in of.items() if l is None or at[0] == l}
        return found
