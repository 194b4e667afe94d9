"""Cases of the kernels that treat one whole adapter: norms of gradients, AdamW; and of random weights."""
import math

import torch

import rows_launch as run
from linear_problem import mix
from rows_check import Case, floats, ints, poison, same_bits, stored
from rows_launch import DEVICE

ALIGN = 128


def grad_norm(kind, small):
    """Adapters of several ranks, each alone; NaN between its tensors and after them."""
    case = Case(kind)
    shapes = [[(3, 192), (16, 64), (1, 8), (1, 5), (1, 13), (1, 1)]] if small else [
        [(8, 576), (8, 192), (13, 1536)] * 40, [(16, 4096), (16, 12288), (256, 11008), (512, 4096)], [(1, 8), (2, 1032), (1, 200), (255, 768), (1, 5), (1, 13), (1, 33)]]
    for tensors in shapes:
        places, at = [], 0
        for rows, columns in tensors:
            places.append((at // ALIGN, rows, columns))
            at = math.ceil((at + rows * columns) / ALIGN) * ALIGN + ALIGN
        grads = torch.full((at,), float("nan"), device=DEVICE)
        exact = []
        for first, rows, columns in places:
            values = torch.randn(rows * columns, device=DEVICE) * 0.01
            grads[first * ALIGN : first * ALIGN + rows * columns] = values
            exact.append(values.double().square().sum())
        found = [floats(len(places)) for _ in range(2)]
        for squares in found:
            run.grad_norm(kind, grads, ints(places), squares)
        exact = torch.stack(exact)
        case.near("squares", found[0], exact)
        if not bool(((found[0].double() - exact).abs() <= 2e-6 * exact).all()):
            case.wrong.append("one square alone is off")
        case.same("squares again", found[1], found[0])
    if not small and kind == "ptr":  # a tensor beyond 2^31 elements
        grads = torch.full((2**31 + ALIGN + 4096,), float("nan"), device=DEVICE)
        grads[-4096:] = torch.randn(4096, device=DEVICE)
        far, near = floats(1), floats(1)
        run.grad_norm(kind, grads, ints([(2**31 // ALIGN + 1, 4, 1024)]), far)
        run.grad_norm(kind, grads[-4096:].clone(), ints([(0, 4, 1024)]), near)
        case.same("squares beyond 2^31", far, near)
    return case


def step_all(kind, params, grads, m, v, copy, factors, table):
    """One step of each adapter whose row says so, as the pool does it."""
    for l in range(len(params)):
        if float(table[l, 0]) != 0:
            run.adamw_step(kind, params[l], grads[l], m[l], v[l], None if copy is None else copy[l], factors, table[l])


def adamw(kind, small):
    """Four adapters, two of them active, compared with torch.optim.AdamW in f32 and the formula in float64, over three
    steps."""
    case = Case(kind)
    for P in (128, 1152) if small else (128, 128 * 37, 128 * 8193):
        params, m, v = torch.randn(4, P, device=DEVICE), torch.zeros(4, P, device=DEVICE), torch.zeros(4, P, device=DEVICE)
        params[1, : P // 2] = 0  # as B starts
        copy = None if kind == "f32" else torch.full((4, P), 7.0, device=DEVICE, dtype=torch.bfloat16)
        # lr, betas, eps, decay, coefficient, and how much larger the rate of B is
        settings = {1: (3e-4, 0.9, 0.999, 1e-8, 0.01, 0.37, 1.0), 2: (1e-2, 0.8, 0.95, 1e-6, 0.0, 1.0, 4.0)}
        factors = torch.randint(0, 2, (P // 128,), device=DEVICE, dtype=torch.int32)
        of_b = factors.bool().repeat_interleave(128)
        torch_params = {l: [params[l][part].clone().requires_grad_() for part in (~of_b, of_b)] for l in settings}
        torch_adamw = {}
        for l, s in settings.items():
            groups = [dict(params=[part], lr=lr) for part, lr in zip(torch_params[l], (s[0], s[0] * s[6]))]
            torch_adamw[l] = torch.optim.AdamW(groups, betas=s[1:3], eps=s[3], weight_decay=s[4], foreach=False)
        state64 = {l: [params[l].double(), m[l].double(), v[l].double()] for l in settings}
        idle = [t[[0, 3]].clone() for t in (params, m, v)]
        for step in (1, 2, 3):
            grads = torch.randn(4, P, device=DEVICE) * 0.1
            table = torch.full((4, 11), float("nan"), device=DEVICE)
            table[:, 0] = 0
            for l, (lr, b1, b2, eps, decay, coefficient, ratio) in settings.items():
                table[l] = torch.tensor([1, lr, 1 - b1, b2, 1 - b2, eps, decay, 1 - b1**step, 1 - b2**step, coefficient, lr * ratio], device=DEVICE)
                for part, mine in zip(torch_params[l], (~of_b, of_b)):
                    part.grad = grads[l][mine] * coefficient
                torch_adamw[l].step()
                p64, m64, v64 = state64[l]
                g = grads[l].double() * coefficient
                m64 += (g - m64) * (1 - b1)
                v64 += (g * g - v64) * (1 - b2)
                lr = torch.where(of_b, lr * ratio, lr).double()
                p64 += -lr * decay * p64 - lr / (1 - b1**step) * m64 / ((v64 / (1 - b2**step)).sqrt() + eps)
            kept = grads[[0, 3]].clone()
            step_all(kind, params, grads, m, v, copy, factors, table)
            case.same("gradients of active adapters", grads[1:3], torch.zeros(2, P, device=DEVICE))
            case.same("gradients of the others", grads[[0, 3]], kept)
        for l in settings:
            for name, ours, exact in zip(("params", "m", "v"), (params[l], m[l], v[l]), state64[l]):
                case.near(name, ours, exact, 1e-6)
            for part, mine in zip(torch_params[l], (~of_b, of_b)):
                case.near("params beside torch", params[l][mine], part.detach().double(), 1e-6)
            if copy is not None:
                case.same("copy", copy[l], stored(params[l], torch.bfloat16))
        for name, before, now in zip(("params", "m", "v"), idle, (params, m, v)):
            case.same(f"{name} of idle adapters", now[[0, 3]], before)
        if copy is not None:
            case.same("copy of idle adapters", copy[[0, 3]], torch.full((2, P), 7.0, device=DEVICE, dtype=torch.bfloat16))
    if not small and kind == "ptr":
        adamw_far(case)
    return case


def dynamic_map(signed):
    """The numbers of codes, as src/ops/adamw8.ts has them."""
    found = [torch.zeros(1), torch.ones(1)]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, (1 if signed else 2) * 2**decade + 1)
        values = 10.0 ** (decade - 6) * ((bounds[1:] + bounds[:-1]) / 2)
        found += [values, -values] if signed else [values]
    return torch.cat(found).sort().values.to(DEVICE)


def adamw8(kind, small):
    """Moments of 8 bits, over four steps: the formula in float64 from the codes before each, the largest value of each 128, and
    that every code is the nearest one. A part of the blocks alone gives the same bits; without a step nothing is touched."""
    case = Case(kind)
    maps = [dynamic_map(True), dynamic_map(False)]
    codes = torch.full((4, 256), float("inf"), device=DEVICE)
    for i, values in enumerate(maps):
        codes[2 * i], codes[2 * i + 1, :255] = values, (values[1:] + values[:-1]) / 2
    for F in (1, 9) if small else (1, 37, 8193):
        P = 128 * F
        params, copy = torch.randn(P, device=DEVICE), None if kind == "f32" else torch.full((P,), 7.0, device=DEVICE, dtype=torch.bfloat16)
        m, v = (torch.zeros(P, device=DEVICE, dtype=torch.uint8) for _ in range(2))
        m_most, v_most = torch.zeros(F, device=DEVICE), torch.zeros(F, device=DEVICE)
        factors = torch.randint(0, 2, (F,), device=DEVICE, dtype=torch.int32)
        alone = slice(F // 2, F // 2 + 1)
        few = [t.view(F, -1)[alone].clone().flatten() for t in (params, m, v, m_most, v_most)]
        lr, b1, b2, eps, decay, coefficient = 1e-2, 0.9, 0.95, 1e-8, 0.1, 0.37
        for step in (1, 2, 3, 4):
            sizes = 10 ** (-4 * torch.rand(P, device=DEVICE))
            grads = torch.randn(P, device=DEVICE) * sizes
            if step == 1:
                grads[: P // 2] = 0  # as that of A is
            table = torch.tensor([1, lr, 1 - b1, b2, 1 - b2, eps, decay, 1 - b1**step, 1 - b2**step, coefficient, 4 * lr], device=DEVICE)
            g = grads.double() * coefficient
            m64 = maps[0][m.long()].double() * m_most.double().repeat_interleave(128)
            v64 = maps[1][v.long()].double() * v_most.double().repeat_interleave(128)
            m64 += (g - m64) * (1 - b1)
            v64 += (g * g - v64) * (1 - b2)
            rate = torch.where(factors.bool(), 4 * lr, lr).double().repeat_interleave(128)
            p64 = params.double() * (1 - rate * decay) - rate / (1 - b1**step) * m64 / ((v64 / (1 - b2**step)).sqrt() + eps)
            grads_few = grads.view(F, -1)[alone].clone().flatten()
            run.adamw8_step(kind, params, grads, m, v, m_most, v_most, codes, copy, factors, table)
            run.adamw8_step(kind, few[0], grads_few, *few[1:], codes, None if copy is None else torch.zeros(128, device=DEVICE, dtype=torch.bfloat16), factors[alone].contiguous(), table)
            case.near("params", params, p64, 2e-6)
            case.same("gradients", grads, torch.zeros(P, device=DEVICE))
            if copy is not None:
                case.same("copy", copy, stored(params, torch.bfloat16))
            for name, found, most, exact, values in (("m", m, m_most, m64, maps[0]), ("v", v, v_most, v64, maps[1])):
                largest = exact.view(F, 128).abs().amax(1)
                case.near(f"largest {name}", most, largest, 1e-6)
                share = exact / torch.where(largest > 0, largest, 1).repeat_interleave(128)
                distances = [(values[(found.long() + by).clamp(0, 255)].double() - share).abs() for by in (-1, 0, 1)]
                # m is a difference: its rounding is a share of what it was
                if bool((distances[1] > torch.minimum(distances[0], distances[2]) + 1e-6 * share.abs() + 2e-7).any()):
                    case.wrong.append(f"a code of {name} is not the nearest")
            for name, one, all_ in zip(("params", "m", "v", "largest m", "largest v"), few, (params, m, v, m_most, v_most)):
                case.same(f"{name} of a block alone", one, all_.view(F, -1)[alone].flatten())
        before = [t.clone() for t in (params, m, v, m_most, v_most)]
        table[0], grads = 0, torch.randn(P, device=DEVICE)
        kept = grads.clone()
        run.adamw8_step(kind, params, grads, m, v, m_most, v_most, codes, copy, factors, table)
        for name, was, now in zip(("params", "m", "v", "largest m", "largest v", "gradients"), (*before, kept), (params, m, v, m_most, v_most, grads)):
            case.same(f"{name} of an idle adapter", now, was)
    return case


def sgd(kind, small):
    """Adapters with SGD, one with AdamW and an idle one side by side, compared with torch.optim.SGD and the formula in
    float64; v is poison."""
    case = Case(kind)
    for P in (128, 1152) if small else (128, 128 * 37, 128 * 1025):
        params, m, v = torch.randn(4, P, device=DEVICE), torch.zeros(4, P, device=DEVICE), torch.full((4, P), float("nan"), device=DEVICE)
        v[3] = 0
        copy = None if kind == "f32" else torch.full((4, P), 7.0, device=DEVICE, dtype=torch.bfloat16)
        # lr, momentum, nesterov, decay, coefficient, and how much larger the rate of B is
        settings = {1: (3e-2, 0.9, 0, 0.01, 0.37, 1.0), 2: (1e-1, 0.8, 1, 0.2, 1.0, 3.0)}
        factors = torch.randint(0, 2, (P // 128,), device=DEVICE, dtype=torch.int32)
        of_b = factors.bool().repeat_interleave(128)
        torch_params = {l: [params[l][part].clone().requires_grad_() for part in (~of_b, of_b)] for l in settings}
        torch_sgd = {}
        for l, s in settings.items():
            groups = [dict(params=[part], lr=lr) for part, lr in zip(torch_params[l], (s[0], s[0] * s[5]))]
            torch_sgd[l] = torch.optim.SGD(groups, momentum=s[1], nesterov=bool(s[2]), weight_decay=s[3], foreach=False)
        state64 = {l: [params[l].double(), m[l].double()] for l in settings}
        idle, beside = params[0].clone(), params[3].clone()
        for step in (1, 2, 3):
            grads = torch.randn(4, P, device=DEVICE) * 0.1
            table = torch.full((4, 11), float("nan"), device=DEVICE)
            table[0, 0] = 0
            table[3] = torch.tensor([1, 1e-3, 0.1, 0.999, 0.001, 1e-8, 0.01, 1 - 0.9**step, 1 - 0.999**step, 1, 1e-3], device=DEVICE)
            for l, (lr, momentum, nesterov, decay, coefficient, ratio) in settings.items():
                nan = float("nan")
                table[l] = torch.tensor([2, lr, momentum, nesterov, nan, nan, decay, nan, nan, coefficient, lr * ratio], device=DEVICE)
                for part, mine in zip(torch_params[l], (~of_b, of_b)):
                    part.grad = grads[l][mine] * coefficient
                torch_sgd[l].step()
                p64, m64 = state64[l]
                d = grads[l].double() * coefficient + decay * p64
                m64 *= momentum
                m64 += d
                p64 -= torch.where(of_b, lr * ratio, lr).double() * (d + momentum * m64 if nesterov else m64)
            step_all(kind, params, grads, m, v, copy, factors, table)
            case.same("gradients", grads[1:], torch.zeros(3, P, device=DEVICE))
        for l in settings:
            case.near("params", params[l], state64[l][0], 1e-6)
            case.near("m", m[l], state64[l][1], 1e-6)
            for part, mine in zip(torch_params[l], (~of_b, of_b)):
                case.near("params beside torch", params[l][mine], part.detach().double(), 1e-6)
            if copy is not None:
                case.same("copy", copy[l], stored(params[l], torch.bfloat16))
        case.same("params of the idle one", params[0], idle)
        if not bool(v[:3].isnan().all()):
            case.wrong.append("v of SGD is written")
        still = (params[3] == beside).double().mean()  # a few come back by chance to what they were
        if float(still) > 0.01 or not bool((params[3].isfinite() & v[3].isfinite()).all()):
            case.wrong.append("AdamW beside SGD made no step")
    return case


def adamw_far(case):
    """Two adapters of 2^30 + 128 parameters: what lies beyond 2^31 elements is stepped as the same numbers elsewhere."""
    P, n = 2**30 + 128, 4096
    table = torch.tensor([[1, 1e-3, 0.1, 0.999, 0.001, 1e-8, 0.01, 0.1, 0.001, 1, 2e-3]] * 2, device=DEVICE)
    params, grads, m, v = (torch.ones(2, P, device=DEVICE) for _ in range(4))
    copy = torch.zeros(2, P, device=DEVICE, dtype=torch.bfloat16)
    factors = torch.zeros(P // 128, device=DEVICE, dtype=torch.int32)
    factors[-n // 128 :] = torch.arange(n // 128) % 2
    near = [torch.rand(2, n, device=DEVICE) for _ in range(4)]
    for big, few in zip((params, grads, m, v), near):
        big[:, -n:] = few
    step_all("ptr", params, grads, m, v, copy, factors, table)
    few_copy = torch.zeros(2, n, device=DEVICE, dtype=torch.bfloat16)
    step_all("ptr", *near, few_copy, factors[-n // 128 :].contiguous(), table)
    for name, big, few in zip(("params", "grads", "m", "v", "copy"), (params, grads, m, v, copy), (*near, few_copy)):
        case.same(f"{name} far away", big[:, -n:], few)
    for name, big, expected in (("grads", grads, 0.0), ("params", params, float(params[0, 0]))):
        for first in range(0, P - n, 2**28):  # equal numbers in, equal numbers out: this finds one in 10^9
            other = int((big[:, first : min(first + 2**28, P - n)] != expected).sum())
            if other > 0:
                case.wrong.append(f"{name}: {other} of those from {first} on are not {expected}")


def random_bits(seed, i):
    """int64 of any i, by the formula."""
    return mix(mix(mix(torch.tensor(seed, device=DEVICE)) ^ (i >> 32)) ^ (i & 0xFFFFFFFF))


def random_fill(kind, small):
    case = Case(kind)
    for size, seed, scale in ((7, 0, 0.02), (5001, 0xFFFFFFF3, 1.0)) if small else ((7, 0, 0.02), (4096 * 1000 + 3, 0xFFFFFFF3, 0.0137), (2**32 + 5000, 42, 1.0)):
        if kind == "f32" and size > 2**32:
            continue
        guarded = poison(kind, size + 64)
        out = guarded[:size]
        run.random_fill(kind, out, seed, scale)
        at = torch.arange(max(0, size - 1_000_000), size, device=DEVICE)
        exact = ((random_bits(seed, at) >> 8).float() * 2.0**-23 - 1) * torch.tensor(scale, device=DEVICE)
        case.same("numbers", out[-len(at) :], stored(exact, out.dtype))
        if not bool(guarded[size:].isnan().all()):
            case.wrong.append("written beyond the end")
        if size > 1000:
            case.near("variance", exact.var(), torch.tensor(scale**2 / 3, device=DEVICE, dtype=torch.float64), 0.05)
            if same_bits(exact[:500], exact[500:1000]) or abs(float(exact.mean())) > 0.05 * scale:
                case.wrong.append("numbers are not random")
    return case
