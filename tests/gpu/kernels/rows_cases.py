"""Cases of the kernels that treat each row by itself: gather, scatter, pool, RMSNorm, rope, SwiGLU, cross-entropy.

Each function takes the kind and whether to stay small (the interpreter), and returns a Case. What a row gets may not depend on
where it lies: `elsewhere` runs every other row by itself, last first, and needs the same bits.
"""
import torch

import rows_launch as run
from rows_check import Case, floats, ints, limit_of, poison, rnd
from rows_launch import DEVICE

WIDTHS = (64, 576, 896, 2048, 4096, 5120, 8192)


def elsewhere(*tensors):
    """Every other row, last first."""
    return [None if t is None else t[1::2].flip(0).contiguous() for t in tensors]


def rows(kind, small):
    case = Case(kind)
    for H in (64, 896) if small else (*WIDTHS, 16384):
        for M, T in ((5, 7),) if small else ((131, 389), (1024, 640)):
            x, dy = rnd(kind, M, H), rnd(kind, min(M, T), H)
            index = torch.randint(-1, M, (T,), device=DEVICE, dtype=torch.int32)
            index[0] = -(2**31)
            y = poison(kind, T, H)
            run.rows_gather(kind, x, index, y)
            case.same("gather", y, torch.where(index[:, None] < 0, 0, x[index.clamp_min(0).long()]))
            far, known = x.cpu() if DEVICE == "cpu" else x.cpu().pin_memory(), index.clamp_min(0)  # in the host's memory
            for programs in (1, 64):
                y = poison(kind, T, H)
                run.rows_fetch(kind, far, known, y, programs)
                case.same("fetch", y, x[known.long()])
            order = torch.randperm(M, device=DEVICE)[: dy.shape[0]].int()
            order[::3] = -1
            dx = poison(kind, M, H)
            run.rows_scatter(kind, dy, order, dx)
            expected = poison(kind, M, H)
            expected[order[order >= 0].long()] = dy[order >= 0]
            case.same("scatter", dx, expected)
    if not small and kind == "ptr":  # rows beyond 2^31 words
        many = 2**18 + 8
        table = torch.empty(many, 16384, device=DEVICE, dtype=torch.bfloat16)
        table[-1] = rnd(kind, 16384)
        y = poison(kind, 1, 16384)
        run.rows_gather(kind, table, ints([many - 1]), y)
        case.same("gather beyond 2^31", y[0], table[-1])
        run.rows_scatter(kind, y, ints([many - 2]), table)
        case.same("scatter beyond 2^31", table[-2], table[-1])
    return case


def pool(kind, small):
    """Pools of unequal sizes, one row among them, that lie in another order and leave rows of no adapter between them."""
    case = Case(kind)
    for H in (64, 896) if small else (*WIDTHS, 1000, 16384):
        sizes = (1, 5, 1, 9) if small else (1, 300, 1, 2, 77, 513)
        T = sum(sizes) + len(sizes)
        first = torch.tensor([0, *(n + 1 for n in sizes[:-1])]).cumsum(0).tolist()
        edges = [[f, f + n] for f, n in zip(first, sizes)][::-1]
        bounds, x, dy = ints(edges), rnd(kind, T, H) + 0.5, rnd(kind, len(sizes), H)
        y, dx = poison(kind, len(sizes), H), poison(kind, T, H)
        run.pool_forward(kind, x, bounds, y)
        case.near("y", y, torch.stack([x[a:b].double().mean(0) for a, b in edges]))
        case.same("one row is itself", y[-1], x[0])
        run.pool_backward(kind, dy, bounds, dx)
        for p, (a, b) in enumerate(edges):
            case.near("dx", dx[a:b], (dy[p].double() / (b - a)).expand(b - a, H), limit_of(kind, H))  # its rows are the same
            if not bool(dx[b].isnan().all()):
                case.wrong.append("a row of nobody is written")
        alone = poison(kind, 1, H)
        run.pool_forward(kind, x, bounds[1:2].contiguous(), alone)
        case.same("y alone", alone[0], y[1])
    return case


def rmsnorm(kind, small):
    case = Case(kind)
    for H in (64, 576) if small else (*WIDTHS, 1000, 14336, 16384):
        M = 3 if small else 517
        x, dy, weight, eps = rnd(kind, M, H, scale=3) + 0.5, rnd(kind, M, H), rnd("f32", H), 1e-5
        y, rstd = poison(kind, M, H), floats(M)
        run.rmsnorm_forward(kind, x, weight, None, y, rstd, eps)
        x64, w64, g = x.double(), weight.double(), dy.double() * weight.double()
        r64 = (x64.square().mean(1) + eps).rsqrt()
        case.near("rstd", rstd, r64, 2e-6)
        case.near("y", y, x64 * r64[:, None] * w64)
        y2, rstd2 = poison(kind, M // 2, H), floats(M // 2)
        run.rmsnorm_forward(kind, *elsewhere(x), weight, None, y2, rstd2, eps)
        case.same("y elsewhere", y2, *elsewhere(y))
        case.same("rstd elsewhere", rstd2, *elsewhere(rstd))
        added, y3 = rnd(kind, M, H), poison(kind, M, H)
        run.rmsnorm_forward(kind, x, weight, added, y3, rstd, eps)
        case.near("y + residual", y3, added.double() + x64 * (x64.square().mean(1) + eps).rsqrt()[:, None] * w64)

        r64 = rstd.double()[:, None]
        dx64 = r64 * (g - x64 * r64**2 * (g * x64).mean(1, keepdim=True))
        residual = rnd(kind, M, H)
        for name, given, dx in (("dx", None, poison(kind, M, H)), ("dx + residual", residual, poison(kind, M, H)), ("dx in place", residual.clone(), None)):
            first = None if given is None else given.clone()
            dx = given if dx is None else dx
            run.rmsnorm_backward(kind, dy, x, weight, rstd, given, dx)
            case.near(name, dx, dx64 if given is None else dx64 + first.double())
            dy2, x2, rstd2, given2 = elsewhere(dy, x, rstd, first)
            dx2 = poison(kind, M // 2, H)
            run.rmsnorm_backward(kind, dy2, x2, weight, rstd2, given2, dx2)
            case.same(f"{name} elsewhere", dx2, *elsewhere(dx))
    return case


def rope_reference(x, c, s, scale, Q, C, D, weights, eps):
    """out in float64, differentiable; x [M, W], c and s [M, 1, R], scale [M, 1, 1] or None."""
    R = c.shape[2]
    heads = x.view(x.shape[0], Q + 2 * C, D)
    qk, v = heads[:, : Q + C], heads[:, Q + C :]
    if weights is not None:
        weight = torch.cat([weights[0].expand(Q, D), weights[1].expand(C, D)])
        qk = weight * qk * (qk.square().mean(2, keepdim=True) + eps).rsqrt()
    lo, hi = qk[..., :R], qk[..., R : 2 * R]
    qk = torch.cat([lo * c - hi * s, hi * c + lo * s, qk[..., 2 * R :]], 2)
    q = qk[:, :Q] if scale is None else qk[:, :Q] * scale
    return torch.cat([q, qk[:, Q:], v], 1).reshape(x.shape)


def rope(kind, small):
    case = Case(kind)
    # Heads of q and k, features of a head, and how many of them are rotated.
    every = ((4, 2, 64, 64), (3, 3, 36, 36), (2, 1, 128, 128), (3, 1, 64, 24), (2, 2, 16, 2)) if small else (
        (32, 32, 128, 128), (32, 8, 128, 128), (9, 3, 64, 64), (64, 8, 64, 64), (14, 2, 64, 64), (40, 8, 128, 128), (8, 4, 256, 256), (5, 5, 32, 32), (32, 32, 80, 80),
        (7, 1, 96, 96), (3, 2, 34, 34), (20, 4, 250, 250), (24, 8, 128, 96), (8, 2, 256, 64), (8, 4, 512, 512), (2, 1, 400, 400), (3, 2, 34, 10), (4, 2, 64, 2))
    for Q, C, D, rotated in every:
        if kind == "ptr" and 256 < D != 512:
            continue  # not compiled
        M, W, eps = 3 if small else 333, (Q + 2 * C) * D, 1e-6
        positions = torch.randint(0, 4096, (M,), device=DEVICE, dtype=torch.int32)
        R = rotated // 2
        angle = torch.arange(4096, device=DEVICE)[:, None] * 10000.0 ** (-torch.arange(R, device=DEVICE) / R)
        cos, sin = angle.cos(), angle.sin()
        c, s = (t[positions.long()].double()[:, None] for t in (cos, sin))
        scale = 1 + 0.1 * (1 + torch.arange(4096, device=DEVICE) // 7).log() if (Q + C) % 2 else None
        factor = None if scale is None else scale[positions.long()].double()[:, None, None]
        for norm in (False, True):
            qkv, dout = rnd(kind, M, W, scale=2), rnd(kind, M, W)
            weights = (rnd("f32", D), rnd("f32", D)) if norm else None
            x64 = qkv.double().requires_grad_()
            out64 = rope_reference(x64, c, s, factor, Q, C, D, weights and [w.double() for w in weights], eps)
            out64.backward(dout.double())
            q, k = weights or (None, None)
            for out in [poison(kind, M, W)] if norm else [poison(kind, M, W), qkv.clone()]:
                source = qkv if norm or out.isnan().any() else out
                run.rope_forward(kind, source, positions, cos, sin, scale, q, k, out, Q, C, D, eps)
                case.near("out with norms" if norm else "out", out, out64.detach())
                case.same("v", out[:, (Q + C) * D :], qkv[:, (Q + C) * D :])
            dqkv = dout.clone()
            run.rope_backward(kind, dqkv, positions, cos, sin, scale, qkv if norm else None, q, k, Q, C, D, eps)
            case.near("dqkv with norms" if norm else "dqkv", dqkv, x64.grad)
            case.same("dv", dqkv[:, (Q + C) * D :], dout[:, (Q + C) * D :])
            qkv2, positions2, dout2 = elsewhere(qkv, positions, dout)
            out2 = torch.empty_like(qkv2)
            run.rope_forward(kind, qkv2, positions2, cos, sin, scale, q, k, out2, Q, C, D, eps)
            run.rope_backward(kind, dout2, positions2, cos, sin, scale, qkv2 if norm else None, q, k, Q, C, D, eps)
            case.same("out elsewhere", out2, *elsewhere(out))
            case.same("dqkv elsewhere", dout2, *elsewhere(dqkv))
    return case


def geglu(kind, small):
    case = Case(kind)
    for I in (64, 200) if small else (256, 2048, 6912, 15360, 200):
        M = 3 if small else 333
        both, dh = rnd(kind, M, 2 * I, scale=2), rnd(kind, M, I)
        wide = rnd(kind, M, 3 * I)
        for name, gate, up in (("", both[:, :I], both[:, I:]), (" of columns", both[:, :I].contiguous(), wide[:, I : 2 * I])):
            gate64, up64 = (t.double().requires_grad_() for t in (gate, up))
            h64 = torch.nn.functional.gelu(gate64, approximate="tanh") * up64
            h64.backward(dh.double())
            h = poison(kind, M, I)
            run.geglu_forward(kind, gate, up, h)
            case.near("h" + name, h, h64.detach())
            dgate = poison(kind, M, I)
            run.geglu_backward(kind, dh, gate, up, dgate, None)
            case.near("dgate" + name, dgate, gate64.grad)
            gate2, up2, dh2 = elsewhere(gate.contiguous(), up.contiguous(), dh)
            h2 = poison(kind, M // 2, I)
            run.geglu_forward(kind, gate2, up2, h2)
            case.same("h elsewhere", h2, *elsewhere(h))
            if name == "":  # in place
                alone = dgate.clone()
                run.geglu_backward(kind, dh, gate, up, gate, up)
                case.same("dgate in place", both[:, :I], alone)
                case.near("dup in place", both[:, I:], up64.grad)
    return case


def shaped(kind, small):
    """Cross-entropy of logits with a scale and a cap, at temperatures."""
    case = Case(kind)
    for scale, cap in ((0.2, 0.0), (1.0, 12.0), (0.7, 9.0)):
        for T, V, classes in ((3, 200, 193),) if small else ((65, 262144, 262144), (129, 49160, 49155), (33, 200, 193)):
            logits, weights = rnd(kind, T, V, scale=5), torch.rand(T, device=DEVICE)
            sharpness = 0.5 + torch.rand(T, device=DEVICE)
            logits[:, classes:] = float("nan")
            targets = torch.randint(0, classes, (T,), device=DEVICE, dtype=torch.int32)
            right = torch.arange(0, T, 2, device=DEVICE)
            logits[right, targets[right].long()] = 24 + 2 * torch.rand(len(right), device=DEVICE).to(logits.dtype)
            z64 = logits[:, :classes].double().requires_grad_()
            s64 = cap * (scale * z64 / cap).tanh() if cap else scale * z64
            s64 = s64 * sharpness.double()[:, None]
            loss64 = torch.nn.functional.cross_entropy(s64, targets.long(), reduction="none")
            (loss64 * weights.double()).sum().backward()
            loss, hit, before = floats(T), torch.full((T,), -7, device=DEVICE, dtype=torch.int32), logits.clone()
            run.xent(kind, logits, classes, targets, weights, sharpness, loss, hit, 1, scale, cap)
            case.near("loss", loss, loss64.detach(), 2e-6)
            case.same("hit", hit, (s64.argmax(1) == targets).int())
            case.near("dlogits", logits[:, :classes], z64.grad, limit_of(kind, T))  # a row's target has most of it
            case.same("dlogits beyond the classes", logits[:, classes:], torch.zeros_like(logits[:, classes:]))
            before2, targets2, weights2, sharpness2 = elsewhere(before, targets, weights, sharpness)
            run.xent(kind, before2, classes, targets2, weights2, sharpness2, floats(T // 2), ints([-7] * (T // 2)), 1, scale, cap)
            case.same("dlogits elsewhere", before2, *elsewhere(logits))
    return case


def multiply(kind, small):
    case = Case(kind)
    for M, H in ((3, 64), (1, 200)) if small else ((3, 64), (517, 2560), (4096, 5376), (1, 200)):
        x, factor = rnd(kind, M, H), torch.full((1,), 50.5, device=DEVICE)
        y = poison(kind, M, H)
        run.rows_multiply(kind, x, factor, y)
        case.near("y", y, x.double() * 50.5)
        run.rows_multiply(kind, x, factor, x)
        case.same("in place", x, y)
    return case


def swiglu(kind, small):
    case = Case(kind)
    for M, I in ((3, 88),) if small else ((517, 11008), (131, 1536), (77, 8960), (5, 14336), (1, 8), (100_000, 11008)):
        if kind == "f32" and M == 100_000:
            continue  # as ptr has shown
        gate_up, dh = rnd(kind, M, 2 * I, scale=2), rnd(kind, M, I)
        h = poison(kind, M, I)
        run.swiglu_forward(kind, gate_up, h)
        last = slice(max(0, M - 517), M)  # at 100000 rows beyond 2^31 elements
        x64 = gate_up[last].double().requires_grad_()
        h64 = torch.nn.functional.silu(x64[:, :I]) * x64[:, I:]
        h64.backward(dh[last].double())
        case.near("h", h[last], h64.detach())
        h2 = poison(kind, *elsewhere(h[last])[0].shape)
        run.swiglu_forward(kind, *elsewhere(gate_up[last]), h2)
        case.same("h elsewhere", h2, *elsewhere(h[last]))
        apart = poison(kind, M, 2 * I)
        run.swiglu_backward(kind, dh, gate_up, apart)
        run.swiglu_backward(kind, dh, gate_up, gate_up)
        case.near("dgate_up", apart[last], x64.grad)
        case.same("dgate_up in place", gate_up, apart)
    return case


def xent(kind, small):
    case = Case(kind)
    every = ((3, 200, 200), (2, 8200, 8193)) if small else (
        (301, 49152, 49152), (257, 128256, 128256), (63, 151936, 151669), (129, 32000, 32000), (7, 262144, 262144), (33, 200, 193), (17011, 128256, 128250))
    shapes = ((1.0, 0.0),) * len(every) + ((0.25, 0.0), (1.0, 30.0), (0.6, 5.0))
    for (T, V, classes), (scale, cap) in zip((*every, *every[:1] * 3), shapes, strict=True):
        if kind == "f32" and T * V > 2**31:
            T //= 4  # the same bytes
        logits, weights = rnd(kind, T, V, scale=3), torch.rand(T, device=DEVICE)
        logits[:, classes:] = float("nan")
        # Some rows have a temperature.
        sharpness = torch.where(torch.rand(T, device=DEVICE) < 0.5, 1.0, 0.4 + torch.rand(T, device=DEVICE))
        last = slice(max(0, T - 301), T)
        targets = torch.randint(0, classes, (T,), device=DEVICE, dtype=torch.int32)
        right = torch.arange(0, T, 2, device=DEVICE)  # half of the rows are right, some by far
        logits[right, targets[right].long()] = 18 + 12 * torch.rand(len(right), device=DEVICE).to(logits.dtype)
        targets[0], weights[0] = 0, 0  # a row of padding
        for row, target in ((-1, classes - 3), (-2, 5)):  # two logits are the largest: the first of them is a hit
            logits[row, [5, classes - 3]], targets[row] = logits[row, :classes].max() + 1, target
        first = logits[last].clone()
        loss, hit, loss0 = floats(T), torch.full((T,), -7, device=DEVICE, dtype=torch.int32), floats(T)
        hit0 = hit.clone()
        run.xent(kind, logits, classes, targets, weights, sharpness, loss0, hit0, 0, scale, cap)
        case.same("logits without grad", logits[last], first)
        run.xent(kind, logits, classes, targets, weights, sharpness, loss, hit, 1, scale, cap)
        case.same("loss without grad", loss, loss0)
        case.same("hit without grad", hit, hit0)
        z64 = scale * first[:, :classes].double()
        z64, slope = (cap * (z64 / cap).tanh(), 1 - (z64 / cap).tanh() ** 2) if cap else (z64, 1)
        sharp64 = sharpness[last].double()[:, None]
        p64, target = (z64 * sharp64).log_softmax(1), targets[last].long()
        case.near("loss", loss[last], -p64.gather(1, target[:, None])[:, 0], 2e-6)
        largest = first[:, :classes] == first[:, :classes].max(1, keepdim=True).values
        case.same("hit", hit[last], (largest.int().argmax(1) == target).int())
        if not 0 < int(hit.sum()) < T:
            case.wrong.append("all rows or none are hits")
        g64 = p64.exp()
        g64[torch.arange(len(target), device=DEVICE), target] -= 1
        case.near("dlogits", logits[last, :classes], g64 * weights[last].double()[:, None] * sharp64 * scale * slope, limit_of(kind, len(target)))
        case.same("dlogits beyond the classes", logits[:, classes:], torch.zeros_like(logits[:, classes:]))
        first2, targets2, weights2, sharpness2 = elsewhere(first, targets[last], weights[last], sharpness[last])
        loss2, hit2 = floats(len(first2)), ints([-7] * len(first2))
        run.xent(kind, first2, classes, targets2, weights2, sharpness2, loss2, hit2, 1, scale, cap)
        for name, a, b in (("loss", loss2, loss), ("hit", hit2, hit), ("dlogits", first2, logits)):
            case.same(f"{name} elsewhere", a, *elsewhere(b[last]))
    return case


def add(kind, small):
    case = Case(kind)
    for M, H in ((3, 8), (5, 264)) if small else ((1, 8), (333, 4096), (131, 1000), (260_000, 8200)):
        if kind == "f32" and M == 260_000:
            continue  # as ptr has shown
        x, y = rnd(kind, M, H), rnd(kind, M, H)
        last = slice(max(0, M - 100), M)
        sums = y[last].double() + x[last].double()
        run.add_to(kind, x, y)
        case.near("y", y[last], sums)
    return case


def gate(kind, small):
    case = Case(kind)
    for M, W in ((3, 8), (5, 264)) if small else ((1, 8), (333, 4096), (131, 1000)):
        x, g, dy = rnd(kind, M, W), rnd(kind, M, W, scale=3), rnd(kind, M, W)
        x64, g64 = (t.double().requires_grad_() for t in (x, g))
        y64 = x64 * g64.sigmoid()
        y64.backward(dy.double())
        y = poison(kind, M, W)
        run.gate_forward(kind, x, g, y)
        case.near("y", y, y64.detach())
        dx, dg = poison(kind, M, W), poison(kind, M, W)
        run.gate_backward(kind, dy, x, g, dx, dg)
        case.near("dx", dx, x64.grad)
        case.near("dgate", dg, g64.grad)
        run.gate_backward(kind, dy, x, g, dy, g)
        case.same("dx in place", dy, dx)
        case.same("dgate in place", g, dg)
    return case


def spans(kind, small):
    case = Case(kind)
    for W, A, B in ((40, 16, 8), (24, 8, 8)) if small else ((12288, 4096, 4096), (7168, 5120, 1024), (3072, 2048, 512), (40, 16, 8), (24576, 8192, 8192), (15, 3, 5)):
        M, eps = 3 if small else 333, 1e-6
        x, dy, first, second = rnd(kind, M, W, scale=2), rnd(kind, M, W), rnd("f32", A), rnd("f32", B)
        x64 = x.double().requires_grad_()
        parts = ((first, x64[:, :A]), (second, x64[:, A : A + B]))
        y64 = torch.cat([*(w.double() * p * (p.square().mean(1, keepdim=True) + eps).rsqrt() for w, p in parts), x64[:, A + B :]], 1)
        y64.backward(dy.double())
        y, rstd = poison(kind, M, W), floats(2, M)
        run.spans_forward(kind, x, first, second, y, rstd, eps)
        case.near("y", y, y64.detach())
        case.same("rest", y[:, A + B :], x[:, A + B :])
        dx = dy.clone()
        run.spans_backward(kind, dx, x, first, second, rstd)
        case.near("dx", dx, x64.grad)
        x2, dy2 = elsewhere(x, dy)
        y2, rstd2 = poison(kind, *x2.shape), floats(2, len(x2))
        run.spans_forward(kind, x2, first, second, y2, rstd2, eps)
        run.spans_backward(kind, dy2, x2, first, second, rstd2)
        case.same("y elsewhere", y2, *elsewhere(y))
        case.same("dx elsewhere", dy2, *elsewhere(dx))
    return case
