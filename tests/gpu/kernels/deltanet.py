"""Checks the kernels of layers with the gated delta rule against the recurrence in float64, token by token, with gradients by
autograd. One command: python3 tests/gpu/kernels/deltanet.py

Fresh random inputs, poisoned outputs and scratch, sequences shorter than the convolution, of one chunk, a token more, and of
many chunks, with padding; keys that are nearly alike, whose chunk's matrix is hard to invert; states that are forgotten within
a few rows, whose decays over a chunk are no f32, or never, or at once by some rows among others that forget little; each
sequence alone and among others, and all between others that are NaN, bit for bit. With TRITON_INTERPRET=1 small shapes are
checked on the CPU.
"""
import sys
import time

import torch

import deltanet_launch as run
from rows_check import Case, floats, ints, poison, rnd
from rows_launch import DEVICE, DTYPE, INTERPRET
from sequences import TILE, between, packed


def recurrence(mixed, gates, decay, bias, starts, lengths, H, heads, K, V):
    """The contract of src/ops/deltanet.ts, and the states after the sequences."""
    M = mixed.shape[0]
    q, k, v = mixed.split([H * K, H * K, heads * V], 1)
    unit = lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()  # noqa: E731
    q, k = (unit(x.view(M, H, K)).repeat_interleave(heads // H, 1) for x in (q, k))
    q, v = q * K**-0.5, v.view(M, heads, V)
    beta, a = gates[:, :heads].sigmoid(), gates[:, heads:]
    keep = (-decay.exp() * torch.nn.functional.softplus(a + bias)).exp()
    out, states = [torch.zeros(heads, V, device=mixed.device, dtype=mixed.dtype)] * M, []
    for start, length in zip(starts, lengths):
        state = torch.zeros(heads, K, V, device=mixed.device, dtype=mixed.dtype)
        for m in range(start, start + length):
            state = state * keep[m][:, None, None]
            change = beta[m][:, None] * (v[m] - torch.einsum("hk,hkv->hv", k[m], state))
            state = state + k[m][:, :, None] * change[:, None, :]
            out[m] = torch.einsum("hk,hkv->hv", q[m], state)
        states.append(state)
    return torch.stack(out).reshape(M, heads * V), torch.stack(states)


def inputs(kind, rows, H, heads, K, V, alike=False, decay=-3.0, resets=False):
    mixed, gates = rnd(kind, rows, 2 * H * K + heads * V), rnd(kind, rows, 2 * heads, scale=2)
    if alike:  # keys of a chunk that all but agree, written in full and kept long
        mixed[:, H * K : 2 * H * K] = (mixed[:1, H * K : 2 * H * K] + 0.05 * mixed[:, H * K : 2 * H * K]).to(mixed.dtype)
        gates[:, :heads] = 4
        gates[:, heads:] = -6
    if resets:
        gates[::7, heads:] = 6e5
    return mixed, gates, torch.randn(heads, device=DEVICE) + decay, torch.randn(heads, device=DEVICE)


def delta(kind, lengths, H, heads, K, V, **how):
    case = Case(kind)
    of = dict(H=H, heads=heads, K=K, V=V)
    # Keys that are alike: the same sums in PyTorch, rounded to bf16 where the kernels round, lie 3e-2 to 6e-2 from float64.
    # Decays of thousands over a chunk: their sums are off by 1e-4, and so are the few powers of differences near 0.
    rough = how.get("resets") or how.get("decay", 0) > 0
    limit = (1e-4 if rough else 2e-5) if kind == "f32" else 8e-2 if how.get("alike") else 3e-2 if INTERPRET else 1.2e-2
    bounds, starts, rows = packed(lengths)
    mixed, gates, decay, bias = inputs(kind, rows, H, heads, K, V, **how)
    dout = rnd(kind, rows, heads * V)
    reference = [t.double().requires_grad_() for t in (mixed, gates)]
    out64, states64 = recurrence(*reference, decay.double(), bias.double(), starts, lengths, **of)
    out64.backward(dout.double())
    out, dmixed, dgates = poison(kind, rows, heads * V), poison(kind, *mixed.shape), gates.clone()
    capacity = max(lengths) + 1
    places = torch.full((rows,), -1, device=DEVICE, dtype=torch.int32)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        places[start : start + length] = torch.arange(length, device=DEVICE, dtype=torch.int32) + capacity * i
    state = floats(len(lengths), heads, K, V)
    run.delta_forward(kind, mixed, gates, decay, bias, bounds, out, **of, kept=(places, state, capacity))
    run.delta_backward(kind, mixed, dgates, decay, bias, bounds, dout, dmixed, **of)
    case.near("out", out, out64.detach(), limit)
    case.near("state", state, states64.detach(), limit)
    parts = dict(zip("qkv", mixed.split([H * K, H * K, heads * V], 1))), dict(zip("qkv", dmixed.split([H * K, H * K, heads * V], 1)))
    wanted = dict(zip("qkv", reference[0].grad.split([H * K, H * K, heads * V], 1)))
    for name in "qkv":
        case.near(f"d{name}", parts[1][name], wanted[name], 2 * limit)
    case.near("db", dgates[:, :heads], reference[1].grad[:, :heads], 2 * limit)
    case.near("da", dgates[:, heads:], reference[1].grad[:, heads:], 3 * limit)
    for name, t in (("out", out), ("dmixed", dmixed), ("dgates", dgates)):
        if bool(t[sum(lengths) :].ne(0).any()):
            case.wrong.append(f"{name} of padding is not 0")
    for i, (start, length) in list(enumerate(zip(starts, lengths)))[1:4]:  # alone
        own, _, few = packed([length])
        cut = lambda t: torch.nn.functional.pad(t[start : start + length], (0, 0, 0, few - length))  # noqa: E731, B023
        out2, dmixed2, dgates2 = poison(kind, few, heads * V), poison(kind, few, mixed.shape[1]), cut(gates)
        run.delta_forward(kind, cut(mixed), cut(gates), decay, bias, own, out2, **of)
        run.delta_backward(kind, cut(mixed), dgates2, decay, bias, own, cut(dout), dmixed2, **of)
        for name, a, b in (("out", out2, out), ("dmixed", dmixed2, dmixed), ("dgates", dgates2, dgates)):
            case.same(f"{name} alone", a[:length], b[start : start + length])
    wide, mixed2, gates2, dout2 = between(bounds, mixed, gates, dout)
    out2, dmixed2, dgates2 = poison(kind, len(wide), heads * V), poison(kind, *mixed2.shape), gates2.clone()
    run.delta_forward(kind, mixed2, gates2, decay, bias, wide, out2, **of)
    run.delta_backward(kind, mixed2, dgates2, decay, bias, wide, dout2, dmixed2, **of)
    for name, a, b in (("out", out2, out), ("dmixed", dmixed2, dmixed), ("dgates", dgates2, dgates)):
        case.same(f"{name} between others", a[TILE:-TILE], b)
    # A row more of each sequence, over the state that was kept, and a row without a place.
    more, more_gates = rnd(kind, len(lengths) + 1, mixed.shape[1]), rnd(kind, len(lengths) + 1, 2 * heads)
    after, out3 = state.clone(), poison(kind, len(lengths) + 1, heads * V)
    at = ints([capacity * i + length for i, length in enumerate(lengths)] + [-1])
    run.delta_decode(kind, more, more_gates, decay, bias, at, after, out3, capacity, **of)
    q, k, v = more[:-1].double().split([H * K, H * K, heads * V], 1)
    unit = lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()  # noqa: E731
    q, k = (unit(x.reshape(-1, H, K)).repeat_interleave(heads // H, 1) for x in (q, k))
    keep = (-decay.double().exp() * torch.nn.functional.softplus(more_gates[:-1, heads:].double() + bias.double())).exp()
    s = state.double() * keep[:, :, None, None]
    s = s + k[..., None] * (more_gates[:-1, :heads].double().sigmoid()[..., None] * (v.reshape(-1, heads, V) - torch.einsum("bhk,bhkv->bhv", k, s)))[:, :, None, :]
    case.near("decode", out3[:-1], torch.einsum("bhk,bhkv->bhv", q * K**-0.5, s).reshape(len(lengths), -1), 2e-2 if INTERPRET and kind == "ptr" else None)
    case.near("state after", after, s, 5e-6)
    if out3[-1].abs().max() > 0:
        case.wrong.append("a row without a place has an output")
    return case


def convolution(kind, lengths, C):
    case = Case(kind)
    bounds, starts, rows = packed(lengths)
    wide, weight, dy = rnd(kind, rows, C + 24), torch.randn(C, 4, device=DEVICE), rnd(kind, rows, C)
    x64 = wide[:, :C].double().requires_grad_()
    pieces = [torch.nn.functional.conv1d(torch.nn.functional.pad(x64[a : a + n].T, (3, 0))[None], weight.double()[:, None], groups=C)[0].T for a, n in zip(starts, lengths)]
    y64 = torch.cat([torch.nn.functional.silu(torch.cat(pieces)), torch.zeros(rows - sum(lengths), C, device=DEVICE, dtype=torch.float64)])
    y64.backward(dy.double())
    y, dx = poison(kind, rows, C), poison(kind, rows, C + 24)
    run.convolution_forward(kind, wide[:, :C], weight, bounds, y)
    run.convolution_backward(kind, dy, wide[:, :C], weight, bounds, dx[:, :C])
    case.near("y", y, y64.detach())
    case.near("dx", dx[:, :C], x64.grad)
    if not bool(dx[:, C:].isnan().all()):
        case.wrong.append("other columns are written")
    bounds2, wide2, dy2 = between(bounds, wide, dy)
    y2, dx2 = poison(kind, len(bounds2), C), poison(kind, *wide2.shape)
    run.convolution_forward(kind, wide2[:, :C], weight, bounds2, y2)
    run.convolution_backward(kind, dy2, wide2[:, :C], weight, bounds2, dx2[:, :C])
    case.same("y between others", y2[TILE:-TILE], y)
    case.same("dx between others", dx2[TILE:-TILE, :C], dx[:, :C])
    capacity = max(lengths) + 2
    places = torch.full((rows,), -1, device=DEVICE, dtype=torch.int32)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        places[start : start + length] = torch.arange(length, device=DEVICE, dtype=torch.int32) + capacity * i
    window = poison(kind, len(lengths), 3, C)
    run.convolution_keep(kind, wide[:, :C], bounds, places, window, capacity)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        kept = torch.cat([torch.zeros(3, C, device=DEVICE, dtype=DTYPE[kind]), wide[start : start + length, :C]])[-3:]
        case.same("window", window[i], kept)
    more, before = rnd(kind, len(lengths) + 1, C), window.clone()
    at, y2 = ints([capacity * i + length for i, length in enumerate(lengths)] + [-1]), poison(kind, len(lengths) + 1, C)
    run.convolution_decode(kind, more, weight, at, window, y2, capacity)
    four = torch.cat([before, more[:-1, None]], 1)
    case.near("decode", y2[:-1], torch.nn.functional.silu((four.double() * weight.double().T).sum(1)))
    case.same("window after", window, four[:, 1:])
    if y2[-1].abs().max() > 0:
        case.wrong.append("a row without a place has an output")
    return case


def gates(kind, M, Q, C, D, N):
    """The norm with a gate, of heads of N, and heads of D that have gates after them."""
    case = Case(kind)
    x, gate, weight, dy = rnd(kind, M, Q * D), rnd(kind, M, Q * D + 40), torch.randn(N, device=DEVICE), rnd(kind, M, Q * D)
    x64, z64 = x.double().requires_grad_(), gate[:, 40:].double().requires_grad_()
    heads = x64.view(M, -1, N)
    y64 = (weight.double() * heads * (heads.square().mean(2, keepdim=True) + 1e-6).rsqrt()).reshape(M, -1) * torch.nn.functional.silu(z64)
    y64.backward(dy.double())
    y, dx, dgate = poison(kind, M, Q * D), dy.clone(), poison(kind, *gate.shape)
    run.gatednorm_forward(kind, x, gate[:, 40:], weight, y, 1e-6)
    run.gatednorm_backward(kind, dx, x, gate[:, 40:], weight, dx, dgate[:, 40:], 1e-6)
    case.near("y", y, y64.detach())
    case.near("dx", dx, x64.grad)
    case.near("dgate", dgate[:, 40:], z64.grad)
    of = dict(heads=Q, kv_heads=C, D=D)
    gated = rnd(kind, M, 2 * (Q + C) * D)
    pairs, kv = gated[:, : 2 * Q * D].view(M, Q, 2, D), gated[:, 2 * Q * D :]
    parted, joined, out, dx, over = poison(kind, M, (Q + 2 * C) * D), poison(kind, *gated.shape), poison(kind, M, Q * D), dy.clone(), gated.clone()
    run.heads_split(kind, gated, parted, **of)
    case.same("split", parted, torch.cat([pairs[:, :, 0].reshape(M, -1), kv], 1))
    run.heads_join(kind, parted, joined, **of)
    back = joined[:, : 2 * Q * D].view(M, Q, 2, D)
    case.same("joined", torch.cat([back[:, :, 0].reshape(M, -1), joined[:, 2 * Q * D :]], 1), parted)
    if not bool(back[:, :, 1].isnan().all()):
        case.wrong.append("gates are written")
    x64, g64 = x.double().requires_grad_(), pairs[:, :, 1].reshape(M, -1).double().requires_grad_()
    y64 = x64 * g64.sigmoid()
    y64.backward(dy.double())
    run.heads_gate(kind, x, gated, out, **of)
    run.heads_gate_backward(kind, dx, x, over, dx, **of)
    case.near("gated", out, y64.detach())
    case.near("dx of gated", dx, x64.grad)
    case.near("dgates", over[:, : 2 * Q * D].view(M, Q, 2, D)[:, :, 1].reshape(M, -1), g64.grad)
    case.same("the rest", over[:, 2 * Q * D :], kv)
    return case


SMALL = {
    "convolution": lambda kind: convolution(kind, (2, 3, 1, 70), 16),
    "gates": lambda kind: gates(kind, 5, 3, 2, 16, 24),
    "norms of 12": lambda kind: gates(kind, 19, 3, 2, 16, 12),
    "delta": lambda kind: delta(kind, (2, 64, 65, 3, 70), 1, 2, 16, 24),
    "alike": lambda kind: delta(kind, (70,), 1, 2, 16, 16, alike=True),
    "fast decay": lambda kind: delta(kind, (60, 70), 1, 2, 16, 16, decay=2.0),
    "slow decay": lambda kind: delta(kind, (3, 70, 1), 1, 2, 16, 16, decay=-20.0),
    "resets": lambda kind: delta(kind, (60, 70), 1, 2, 16, 16, resets=True),
}
WHOLE = {
    "convolution": lambda kind: convolution(kind, (2, 3, 1, 70, 64, 300), 8192),
    "gates": lambda kind: gates(kind, 333, 16, 4, 256, 128),
    "norms of 12": lambda kind: gates(kind, 333, 16, 4, 24, 12),
    "delta": lambda kind: delta(kind, (2, 64, 65, 3, 1, 300, 129), 2, 6, *((32, 32) if kind == "f32" else (128, 128))),
    "small": lambda kind: delta(kind, (70, 2, 33, 200), 4, 8, 8, 12),
    "alike": lambda kind: delta(kind, (256, 70), 1, 2, *((32, 32) if kind == "f32" else (128, 128)), alike=True),
    "fast decay": lambda kind: delta(kind, (60, 200, 3), 2, 4, *((32, 32) if kind == "f32" else (128, 128)), decay=2.0),
    "slow decay": lambda kind: delta(kind, (300, 3, 64), 2, 4, *((32, 32) if kind == "f32" else (128, 128)), decay=-20.0),
    "resets": lambda kind: delta(kind, (60, 200, 3), 2, 4, *((32, 32) if kind == "f32" else (128, 128)), resets=True),
    "many chunks": lambda kind: delta(kind, (1, 1700, 64, 3), 1, 2, *((32, 32) if kind == "f32" else (128, 128))),
}

OF_128 = ("delta", "alike", "fast decay", "slow decay", "resets", "many chunks")  # which Hopper has kernels of its own for


def check():
    failed = 0
    for name, case in (SMALL if INTERPRET else WHOLE).items():
        for kind in ("f32",) if INTERPRET else ("tma", "ptr", "f32") if name in OF_128 else ("ptr", "f32"):
            seed = int(time.time())
            torch.manual_seed(seed)
            first = case(kind)
            if not INTERPRET:
                torch.manual_seed(seed)
                first.wrong += ["a second run differs"] if case(kind).found != first.found else []
            failed += bool(first.wrong)
            print(f"{'FAIL' if first.wrong else 'ok  '} {kind} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in first.errors.items()), *first.wrong, sep="; ", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    check()
