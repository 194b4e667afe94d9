"""Checks the kernels of short gated convolutions against float64, with gradients by autograd. One command: python3
tests/gpu/kernels/lfm2.py [--time]

Fresh random inputs, poisoned outputs, sequences shorter than the convolution, as long and longer, with padding, each alone and
all between others that are NaN, bit for bit. With TRITON_INTERPRET=1 small shapes are checked on the CPU. --time measures a
layer of LFM2-2.6B.
"""
import sys
import time

import torch

from rows_check import Case, ints, poison, rnd
from rows_launch import DEVICE, DTYPE, INTERPRET, cdiv, find, launch
from sequences import TILE, between, packed

TAPS = 3


def forward(kind, bcx, weight, bounds, y):
    row, (M, C) = find("shortconv_forward", kind), y.shape
    launch(row, (cdiv(M, row["constants"]["BM"]), cdiv(C, row["constants"]["BC"])), bcx, weight, bounds, y, M, C)


def backward(kind, dy, bcx, weight, bounds, dbcx):
    row, (M, C) = find("shortconv_backward", kind), dy.shape
    launch(row, (cdiv(M, row["constants"]["BM"]), cdiv(C, row["constants"]["BC"])), dy, bcx, weight, bounds, dbcx, M, C)


def keep(kind, bcx, bounds, places, window, capacity):
    row, (M, C) = find("shortconv_keep", kind), (bcx.shape[0], window.shape[2])
    launch(row, (M, cdiv(C, row["constants"]["BC"])), bcx, bounds, places, window, C, capacity)


def decode(kind, bcx, weight, places, window, y, capacity):
    row, (M, C) = find("shortconv_decode", kind), y.shape
    launch(row, (M, cdiv(C, row["constants"]["BC"])), bcx, weight, places, window, y, C, capacity)


def reference(bcx, weight, starts, lengths):
    """The contract of src/ops/shortconv.ts."""
    b, c, x = bcx.split(weight.shape[0], 1)
    u, rows = b * x, []
    for start, length in zip(starts, lengths):
        padded = torch.nn.functional.pad(u[start : start + length].T, (TAPS - 1, 0))
        rows.append(torch.nn.functional.conv1d(padded[None], weight[:, None], groups=weight.shape[0])[0].T)
    padding = torch.zeros(len(bcx) - sum(lengths), weight.shape[0], device=bcx.device, dtype=bcx.dtype)
    return c * torch.cat([*rows, padding])


def both(kind, bcx, weight, bounds, dy):
    """y and dbcx of poisoned memory."""
    y, dbcx = poison(kind, *dy.shape), poison(kind, *bcx.shape)
    forward(kind, bcx, weight, bounds, y)
    backward(kind, dy, bcx, weight, bounds, dbcx)
    return {"y": y, "dbcx": dbcx}


def convolution(kind, lengths, C):
    case = Case(kind)
    bounds, starts, rows = packed(lengths)
    bcx, weight, dy = rnd(kind, rows, 3 * C), torch.randn(C, TAPS, device=DEVICE), rnd(kind, rows, C)
    bcx64 = bcx.double().requires_grad_()
    y64 = reference(bcx64, weight.double(), starts, lengths)
    y64.backward(dy.double())
    found = both(kind, bcx, weight, bounds, dy)
    case.near("y", found["y"], y64.detach())
    for name, a, b in zip(("db", "dc", "dx"), found["dbcx"].split(C, 1), bcx64.grad.split(C, 1)):
        case.near(name, a, b)
    for name, t in found.items():
        if bool(t[sum(lengths) :].ne(0).any()):
            case.wrong.append(f"{name} of padding is not 0")
    for start, length in list(zip(starts, lengths))[1:4]:  # alone
        own, _, few = packed([length])
        cut = lambda t: torch.nn.functional.pad(t[start : start + length], (0, 0, 0, few - length))  # noqa: E731, B023
        for name, t in both(kind, cut(bcx), weight, own, cut(dy)).items():
            case.same(f"{name} alone", t[:length], found[name][start : start + length])
    wide, bcx2, dy2 = between(bounds, bcx, dy)
    for name, t in both(kind, bcx2, weight, wide, dy2).items():
        case.same(f"{name} between others", t[TILE:-TILE], found[name])
    generation(case, kind, bcx, weight, bounds, starts, lengths)
    return case


def generation(case, kind, bcx, weight, bounds, starts, lengths):
    """What is kept of sequences, and a row more of each over it, next to a row without a place."""
    C, count, capacity = weight.shape[0], len(lengths), max(lengths) + 2
    places = torch.full((len(bcx),), -1, device=DEVICE, dtype=torch.int32)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        places[start : start + length] = torch.arange(length, device=DEVICE, dtype=torch.int32) + capacity * i
    places[starts[-1] : starts[-1] + lengths[-1]] = -1  # nothing is kept of the last
    window = poison(kind, count, TAPS - 1, C)
    keep(kind, bcx, bounds, places, window, capacity)
    b, _, x = bcx.double().split(C, 1)
    wanted = [torch.nn.functional.pad((b * x)[start : start + length], (0, 0, TAPS - 1, 0))[1 - TAPS :] for start, length in zip(starts, lengths)]
    case.near("window", window[:-1], torch.stack(wanted[:-1]))
    if not bool(window[-1].isnan().all()):
        case.wrong.append("a window without a place is written")
    more, before = rnd(kind, count, 3 * C), window.clone()
    at, y = ints([capacity * i + length for i, length in enumerate(lengths[:-1])] + [-1]), poison(kind, count, C)
    decode(kind, more, weight, at, window, y, capacity)
    b, c, x = more[:-1].double().split(C, 1)
    three = torch.cat([before[:-1].double(), (b * x)[:, None]], 1)
    case.near("decode", y[:-1], c * (three * weight.double().T).sum(1))
    case.same("window moved", window[:-1, :-1], before[:-1, 1:])
    case.near("window after", window[:-1, -1], b * x)
    if y[-1].ne(0).any() or not bool(window[-1].isnan().all()):
        case.wrong.append("a row without a place has an output or a window")


SMALL, WHOLE = ((2, 3, 1, 70), 16), ((2, 3, 1, 70, 64, 300, 4), 2048)


def check():
    failed = 0
    for kind in ("f32", "ptr"):
        seed = int(time.time())
        torch.manual_seed(seed)
        first = convolution(kind, *(SMALL if INTERPRET else WHOLE))
        if not INTERPRET:
            torch.manual_seed(seed)
            first.wrong += ["a second run differs"] if convolution(kind, *WHOLE).found != first.found else []
        failed += bool(first.wrong)
        print(f"{'FAIL' if first.wrong else 'ok  '} {kind} shortconv: " + " ".join(f"{k} {e:.1e}" for k, e in first.errors.items()), *first.wrong, sep="; ", flush=True)
    sys.exit(1 if failed else 0)


def measure():
    """Milliseconds, and of the bytes that have to move the share of 4.8 TB/s."""
    import triton

    kind, C = "ptr", 2048
    for lengths in ((2048,) * 4, (16384,)):
        bounds, _, rows = packed(lengths)
        bcx, weight, dy = rnd(kind, rows, 3 * C), torch.randn(C, TAPS, device=DEVICE), rnd(kind, rows, C)
        y, dbcx = torch.empty_like(dy), torch.empty_like(bcx)
        times = {
            "forward": (4, lambda: forward(kind, bcx, weight, bounds, y)),  # noqa: B023
            "backward": (7, lambda: backward(kind, dy, bcx, weight, bounds, dbcx)),  # noqa: B023
        }
        for name, (moved, one) in times.items():
            ms = triton.testing.do_bench(one, warmup=20, rep=60)
            share = moved * rows * C * DTYPE[kind].itemsize / ms / 1e-3 / 4.8e12
            print(f"{len(lengths)} x {lengths[0]} {name}: {ms:.3f} ms, {share:.0%} of the memory's speed", flush=True)


if __name__ == "__main__":
    measure() if "--time" in sys.argv else check()
