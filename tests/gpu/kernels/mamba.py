"""Checks the kernels of Mamba 2's layers against the recurrence in float64, token by token, with gradients by autograd. One
command: python3 tests/gpu/kernels/mamba.py [--time | CASE ...]

Fresh random inputs, poisoned outputs and scratch, sequences of a token, of one chunk, a token more, and of many chunks, with
padding; steps at their limits, and tiny ones, and chunks that decay beyond e^-88, also by single rows among tiny ones; each
sequence alone and among others, and all between others that are NaN, bit for bit. With TRITON_INTERPRET=1 small shapes are
checked on the CPU. --time measures layers of Granite 4.0 H small and of Nemotron 3 Nano.
"""
import sys
import time

import torch

import deltanet_launch
import mamba_launch as run
from rows_check import Case, floats, ints, poison, rnd
from rows_launch import DEVICE, INTERPRET
from sequences import TILE, between, packed

INFINITE = float("inf")


def step_of(before, limits):
    return torch.nn.functional.softplus(before).clamp(*limits)


def recurrence(mixed, steps, vectors, starts, lengths, limits, N, G, P, S):
    """The contract of src/ops/statespace.ts, and the states after the sequences."""
    M = mixed.shape[0]
    x, b, c = mixed.split([N * P, G * S, G * S], 1)
    x, (b, c) = x.view(M, N, P), (t.view(M, G, S).repeat_interleave(N // G, 1) for t in (b, c))
    step = step_of(steps + vectors["bias"], limits)
    keeps = (-vectors["decay"].exp() * step).exp()
    out, states = [torch.zeros(N, P, device=mixed.device, dtype=mixed.dtype)] * M, []
    for start, length in zip(starts, lengths):
        state = torch.zeros(N, P, S, device=mixed.device, dtype=mixed.dtype)
        for m in range(start, start + length):
            state = state * keeps[m][:, None, None] + (step[m][:, None] * x[m])[:, :, None] * b[m][:, None, :]
            out[m] = torch.einsum("nps,ns->np", state, c[m]) + vectors["skip"][:, None] * x[m]
        states.append(state)
    return torch.stack(out).reshape(M, N * P), torch.stack(states)


def inputs(kind, rows, N, G, P, S, offset=0.0, decay=-2.0, resets=False):
    """dt lies in the last columns of wider rows; a negative `offset` makes the steps small."""
    mixed, wide = rnd(kind, rows, N * P + 2 * G * S), rnd(kind, rows, N + 40, scale=2)
    vectors = {"decay": torch.randn(N, device=DEVICE) + decay, "bias": torch.randn(N, device=DEVICE) + offset, "skip": torch.randn(N, device=DEVICE)}
    if resets:
        wide[::7, -N:] = 600
    return mixed, wide, vectors


def both(kind, mixed, wide, vectors, bounds, dout, limits, kept=None, **of):
    """out, dmixed and the wide gradient of dt, of poisoned memory."""
    N = of["N"]
    out, dmixed, dwide = poison(kind, *dout.shape), poison(kind, *mixed.shape), poison(kind, *wide.shape)
    run.forward(kind, mixed, wide[:, -N:], vectors, bounds, out, limits, **of, kept=kept)
    run.backward(kind, mixed, wide[:, -N:], vectors, bounds, dout, dmixed, dwide[:, -N:], limits, **of)
    return {"out": out, "dmixed": dmixed, "dsteps": dwide[:, -N:]}, dwide[:, :-N]


def space(kind, lengths, N, G, P, S, limits=(0.0, INFINITE), **how):
    case = Case(kind)
    of = dict(N=N, G=G, P=P, S=S)
    limit = (1e-4 if how.get("resets") else 2e-5) if kind == "f32" else 3e-2 if INTERPRET else 1.2e-2
    bounds, starts, rows = packed(lengths)
    mixed, wide, vectors = inputs(kind, rows, **of, **how)
    dout = rnd(kind, rows, N * P)
    reference = [t.double().requires_grad_() for t in (mixed, wide[:, -N:])]
    exact = {name: t.double() for name, t in vectors.items()}
    out64, states64 = recurrence(*reference, exact, starts, lengths, limits, **of)
    out64.backward(dout.double())
    capacity = max(lengths) + 1
    places = torch.full((rows,), -1, device=DEVICE, dtype=torch.int32)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        places[start : start + length] = torch.arange(length, device=DEVICE, dtype=torch.int32) + capacity * i
    places[starts[-1] : starts[-1] + lengths[-1]] = -1  # nothing is kept of the last
    state = floats(len(lengths), N, P, S)
    found, others = both(kind, mixed, wide, vectors, bounds, dout, limits, kept=(places, state, capacity), **of)
    case.near("out", found["out"], out64.detach(), limit)
    case.near("state", state[:-1], states64[:-1].detach(), limit)
    if not bool(others.isnan().all()) or not bool(state[-1].isnan().all()):
        case.wrong.append("other columns, or a state without a place, are written")
    parts = [N * P, G * S, G * S]
    for name, a, b in zip(("dx", "dB", "dC"), found["dmixed"].split(parts, 1), reference[0].grad.split(parts, 1)):
        case.near(name, a, b, 2 * limit)
    case.near("ddt", found["dsteps"], reference[1].grad, 3 * limit)
    free = torch.nn.functional.softplus(wide[:, -N:].double() + exact["bias"])
    limited = ((free < limits[0] - 1e-5) | (free > limits[1] + 1e-5))[: sum(lengths)]
    if limits[0] > 0 and (not bool(limited.any()) or bool(found["dsteps"][: sum(lengths)][limited].ne(0).any())):
        case.wrong.append("a step beyond a limit has a gradient")
    for name, t in found.items():
        if bool(t[sum(lengths) :].ne(0).any()):
            case.wrong.append(f"{name} of padding is not 0")
    for start, length in list(zip(starts, lengths))[1:4]:  # alone
        own, _, few = packed([length])
        cut = lambda t: torch.nn.functional.pad(t[start : start + length], (0, 0, 0, few - length))  # noqa: E731, B023
        for name, t in both(kind, cut(mixed), cut(wide), vectors, own, cut(dout), limits, **of)[0].items():
            case.same(f"{name} alone", t[:length], found[name][start : start + length])
    wider, mixed2, wide2, dout2 = between(bounds, mixed, wide, dout)
    for name, t in both(kind, mixed2, wide2, vectors, wider, dout2, limits, **of)[0].items():
        case.same(f"{name} between others", t[TILE:-TILE], found[name])
    decoded(case, kind, state, capacity, exact, vectors, limits, **of)
    return case


def decoded(case, kind, state, capacity, exact, vectors, limits, N, G, P, S):
    """A row more of each sequence, over the state that was kept; the last has no place."""
    count = len(state)
    mixed, wide, _ = inputs(kind, count, N, G, P, S)
    after, out = state.clone(), poison(kind, count, N * P)
    at = ints([capacity * i + capacity - 1 for i in range(count - 1)] + [-1])
    run.decode(kind, mixed, wide[:, -N:], vectors, at, after, out, capacity, limits, N, G, P, S)
    x, b, c = mixed[:-1].double().split([N * P, G * S, G * S], 1)
    x, (b, c) = x.reshape(-1, N, P), (t.reshape(-1, G, S).repeat_interleave(N // G, 1) for t in (b, c))
    step = step_of(wide[:-1, -N:].double() + exact["bias"], limits)
    keeps = (-exact["decay"].exp() * step).exp()
    s = state[:-1].double() * keeps[:, :, None, None] + (step[..., None] * x)[..., None] * b[:, :, None, :]
    want = torch.einsum("knps,kns->knp", s, c) + exact["skip"][:, None] * x
    case.near("decode", out[:-1], want.reshape(count - 1, -1), 2e-2 if INTERPRET and kind == "ptr" else None)
    case.near("state after", after[:-1], s, 2e-6)
    if out[-1].ne(0).any() or not bool(after[-1].isnan().all()):
        case.wrong.append("a row without a place has an output or a state")


def convolution(kind, lengths, C):
    """With a bias; without one deltanet.py checks it."""
    case = Case(kind)
    bounds, starts, rows = packed(lengths)
    wide, weight, bias, dy = rnd(kind, rows, C + 24), torch.randn(C, 4, device=DEVICE), torch.randn(C, device=DEVICE), rnd(kind, rows, C)
    x64 = wide[:, 24:].double().requires_grad_()
    pieces = [torch.nn.functional.conv1d(torch.nn.functional.pad(x64[a : a + n].T, (3, 0))[None], weight.double()[:, None], bias.double(), groups=C)[0].T for a, n in zip(starts, lengths)]
    y64 = torch.cat([torch.nn.functional.silu(torch.cat(pieces)), torch.zeros(rows - sum(lengths), C, device=DEVICE, dtype=torch.float64)])
    y64.backward(dy.double())

    def passed(wide, bounds, dy):
        y, dx = poison(kind, *dy.shape), poison(kind, *wide.shape)
        deltanet_launch.convolution_forward(kind, wide[:, 24:], weight, bounds, y, bias)
        deltanet_launch.convolution_backward(kind, dy, wide[:, 24:], weight, bounds, dx[:, 24:], bias)
        return {"y": y, "dx": dx[:, 24:]}

    found = passed(wide, bounds, dy)
    case.near("y", found["y"], y64.detach())
    case.near("dx", found["dx"], x64.grad)
    for name, t in found.items():
        if bool(t[sum(lengths) :].ne(0).any()):
            case.wrong.append(f"{name} of padding is not 0")
    wider, wide2, dy2 = between(bounds, wide, dy)
    for name, t in passed(wide2, wider, dy2).items():
        case.same(f"{name} between others", t[TILE:-TILE], found[name])
    window, more, y = rnd(kind, 3, 3, C), rnd(kind, 3, C), poison(kind, 3, C)
    four = torch.cat([window, more[:, None]], 1)
    deltanet_launch.convolution_decode(kind, more, weight, ints([0, 5, -1]), window, y, 5, bias)
    case.near("decode", y[:2], torch.nn.functional.silu((four.double() * weight.double().T).sum(1) + bias.double())[:2])
    if y[2].ne(0).any():
        case.wrong.append("a row without a place has an output")
    return case


def norm(kind, M, groups, D):
    case = Case(kind)
    W = groups * D
    x, gate, weight, dy = rnd(kind, M, W), rnd(kind, M, W + 40), torch.randn(W, device=DEVICE), rnd(kind, M, W)
    x64, z64 = x.double().requires_grad_(), gate[:, :W].double().requires_grad_()
    u64 = (x64 * torch.nn.functional.silu(z64)).view(M, groups, D)
    y64 = weight.double() * (u64 * (u64.square().mean(2, keepdim=True) + 1e-3).rsqrt()).reshape(M, W)
    y64.backward(dy.double())
    y, dx, dgate = poison(kind, M, W), dy.clone(), poison(kind, *gate.shape)
    run.groupnorm_forward(kind, x, gate[:, :W], weight, y, groups, 1e-3)
    run.groupnorm_backward(kind, dx, x, gate[:, :W], weight, dx, dgate[:, :W], groups, 1e-3)
    case.near("y", y, y64.detach())
    case.near("dx", dx, x64.grad)
    case.near("dgate", dgate[:, :W], z64.grad)
    if not bool(dgate[:, W:].isnan().all()):
        case.wrong.append("other columns are written")
    return case


def squares(kind, M, I):
    """The squared ReLU, and that of experts' rows, of which some are no pair's."""
    case = Case(kind)
    x, dy, weights = rnd(kind, M, I), rnd(kind, M, I), torch.rand(M, 2, device=DEVICE)
    x64 = x.double().requires_grad_()
    y64 = x64.relu().square()
    y64.backward(dy.double())
    y, dx = poison(kind, M, I), x.clone()
    run.squaredrelu_forward(kind, x, y)
    run.squaredrelu_backward(kind, dy, dx, dx)
    case.near("y", y, y64.detach())
    case.near("dx", dx, x64.grad)
    source = torch.full((2 * M + 3,), -1, device=DEVICE, dtype=torch.int32)
    source[: 2 * M - 1] = torch.randperm(2 * M, device=DEVICE)[: 2 * M - 1].to(torch.int32)  # a pair has no row
    place = torch.full((2 * M,), -1, device=DEVICE, dtype=torch.int32)
    place[source[: 2 * M - 1].long()] = torch.arange(2 * M - 1, device=DEVICE, dtype=torch.int32)
    rows, dact = rnd(kind, len(source), I), rnd(kind, len(source), I)
    act, dweights, before, given = poison(kind, *rows.shape), floats(M, 2), rows.clone(), dact.clone()
    run.expert_square_forward(kind, rows, act, source)
    run.expert_square_backward(kind, dact, rows, source, weights, place.view(M, 2), rows, dweights)
    pairs = source[: 2 * M - 1].long()
    square, by = before[: 2 * M - 1].double().relu().square(), weights.view(-1)[pairs].double()[:, None]
    case.near("act", act[: 2 * M - 1], square)
    case.near("dact", dact[: 2 * M - 1], square * by)
    case.near("dx of experts", rows[: 2 * M - 1], 2 * before[: 2 * M - 1].double().relu() * given[: 2 * M - 1].double() * by)
    along = torch.zeros(2 * M, device=DEVICE, dtype=torch.float64)
    along[pairs] = (given[: 2 * M - 1].double() * square).sum(1)
    case.near("dweights", dweights.view(-1), along, 2e-6)
    if rows[2 * M - 1 :].ne(0).any():
        case.wrong.append("dx of rows without a pair is not 0")
    return case


LIMITS = (0.3, 2.5)
SMALL = {
    "convolution": lambda kind: convolution(kind, (2, 3, 1, 70), 16),
    "norm": lambda kind: norm(kind, 5, 3, 24),
    "squares": lambda kind: squares(kind, 5, 24),
    "space": lambda kind: space(kind, (2, 64, 65, 3, 70), 4, 2, 16, 24),
    "limits": lambda kind: space(kind, (70, 2), 2, 2, 8, 12, LIMITS),
    "tiny steps": lambda kind: space(kind, (70, 130), 10, 2, 16, 16, offset=-9.0),
    "fast decay": lambda kind: space(kind, (70, 60, 2), 2, 2, 16, 16, decay=3.0),
    "resets": lambda kind: space(kind, (70, 60, 2), 2, 2, 16, 16, offset=-9.0, decay=2.0, resets=True),
}
MANY = (2, 64, 65, 3, 1, 300, 129)
WHOLE = {
    "convolution": lambda kind: convolution(kind, (2, 3, 1, 70, 64, 300), 8448),
    "norm": lambda kind: norm(kind, 333, 8, 512),
    "wide norm": lambda kind: norm(kind, 33, 1, 8192),
    "norm of 1280": lambda kind: norm(kind, 33, 4, 1280),
    "squares": lambda kind: squares(kind, 333, 1856),
    "space": lambda kind: space(kind, MANY, 24, 2, *((64, 128) if kind == "ptr" else (32, 32))),
    "odd": lambda kind: space(kind, MANY, 6, 3, *((80, 128) if kind == "ptr" else (20, 28)), LIMITS),
    "large": lambda kind: space(kind, (70, 2, 200), 4, 2, *((128, 256) if kind == "ptr" else (32, 16))),
    "small": lambda kind: space(kind, (70, 2, 33, 200), 8, 4, 8, 12, LIMITS),
    "fast decay": lambda kind: space(kind, (256, 60, 2), 4, 2, *((64, 128) if kind == "ptr" else (32, 32)), decay=3.0),
    "resets": lambda kind: space(kind, (256, 60, 2), 4, 2, *((64, 128) if kind == "ptr" else (32, 32)), offset=-9.0, decay=2.0, resets=True),
    "many chunks": lambda kind: space(kind, (1, 1700, 64, 3), 4, 2, *((64, 128) if kind == "ptr" else (32, 32))),
    "tiny steps": lambda kind: space(kind, (256, 70), 4, 2, *((64, 128) if kind == "ptr" else (32, 32)), offset=-9.0),
}


def check(names):
    """All cases, or those of these names, "space" or "ptr space"."""
    failed = 0
    for name, case in (SMALL if INTERPRET else WHOLE).items():
        for kind in ("f32",) if INTERPRET else ("ptr", "f32"):
            if names and name not in names and f"{kind} {name}" not in names:
                continue
            seed = int(time.time())
            torch.manual_seed(seed)
            first = case(kind)
            if not INTERPRET:
                torch.manual_seed(seed)
                first.wrong += ["a second run differs"] if case(kind).found != first.found else []
            failed += bool(first.wrong)
            print(f"{'FAIL' if first.wrong else 'ok  '} {kind} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in first.errors.items()), *first.wrong, sep="; ", flush=True)
    sys.exit(1 if failed else 0)


def measure():
    """Milliseconds of each op of a layer, 4 x 2048 and 1 x 16384 tokens, and of each kernel."""
    import triton

    kind = "ptr"
    for model, of in (("Granite 4.0 H small", dict(N=128, G=1, P=64, S=128)), ("Nemotron 3 Nano", dict(N=64, G=8, P=64, S=128))):
        for lengths in ((2048,) * 4, (16384,)):
            bounds, _, rows = packed(lengths)
            mixed, wide, vectors = inputs(kind, rows, **of)
            N, inner, limits = of["N"], of["N"] * of["P"], (0.0, INFINITE)
            dout, out, dmixed, dwide = rnd(kind, rows, inner), poison(kind, rows, inner), torch.empty_like(mixed), torch.empty_like(wide)
            steps, to = wide[:, -N:], (dmixed, dwide[:, -N:])
            forward = lambda: run.forward(kind, mixed, steps, vectors, bounds, out, limits, **of)  # noqa: B023, E731
            backward = lambda: run.backward(kind, mixed, steps, vectors, bounds, dout, *to, limits, **of)  # noqa: B023, E731
            times = {"forward": forward, "backward": backward}
            found = {name: triton.testing.do_bench(one, warmup=10, rep=40) for name, one in times.items()}
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for one in times.values():
                    one()
            kernels = {e.key: e.device_time_total / e.count / 1e3 for e in profile.key_averages() if e.key.startswith("space_")}
            print(f"{model}, {len(lengths)} x {lengths[0]}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in found.items()), flush=True)
            print("  " + ", ".join(f"{name} {ms:.3f}" for name, ms in kernels.items()), flush=True)


if __name__ == "__main__":
    measure() if "--time" in sys.argv else check(sys.argv[1:])
