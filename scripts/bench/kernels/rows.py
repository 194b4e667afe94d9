"""Times the memory-bound kernels at the sizes of Llama-2-7B and a copy: python3 scripts/bench/kernels/rows.py [--tune]
[kernel ..]

4096 rows, bf16, L2 flushed before each launch, medians by the profiler. The bytes of a kernel are those that it must move: each
input read once, each output written once (cross-entropy's logits are read twice). The last column is its rate over that of a
copy by PyTorch of as many bytes. --tune also times other constants than those that are compiled.
"""
import os
import statistics
import sys

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tests/gpu/kernels"))
import rows_launch as run  # noqa: E402

M, H, I, Q, D, V, T = 4096, 4096, 11008, 32, 128, 32000, 4096
LINEARS = [(H, H)] * 4 + [(H, I)] * 2 + [(I, H)]  # of a layer: K and N
OURS = {"rows_gather", "rows_scatter", "rmsnorm_forward", "rmsnorm_backward", "rope_forward", "rope_backward", "swiglu_forward",
        "swiglu_backward", "xent", "grad_norm", "grad_norm_sum", "adamw_of_p", "adamw8_of_p", "random_fill"}
KIND = "ptr"
flush = None


def rnd(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def kernel_us(launch, ours=True, times=15):
    """Microseconds of the kernels that a launch runs, summed over them, median of launches with a cold L2."""
    global flush
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda") if flush is None else flush
    launch()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(times):
            flush.zero_()
            launch()
        torch.cuda.synchronize()
    by_name = {}
    for event in found.events():
        if event.device_type == DeviceType.CUDA and (event.name in OURS if ours else "emcpy" in event.name or "copy" in event.name):
            by_name.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return sum(statistics.median(t) for t in by_name.values())


def tensors_of(R):
    """Places of A and B of all linears of 32 layers, and the elements of an adapter's block: of multiples of 128, as here."""
    places, at = [], 0
    for K, N in LINEARS * 32:
        for columns in (K, N):
            places.append((at, R, columns))
            at += R * columns
    return places, at


def problems():
    """name -> (launch, bytes), one after the other: memory of the last is free again."""
    x, dy, y, weight, rstd = rnd(M, H), rnd(M, H), rnd(M, H), rnd(H), torch.rand(M, device="cuda")
    row = x.nbytes
    table, ids = rnd(V, H), torch.randint(0, V, (M,), device="cuda", dtype=torch.int32)
    yield "rows_gather", "embedding", lambda: run.rows_gather(KIND, table, ids, y), 2 * row
    rows = torch.randperm(M, device="cuda").int()
    yield "rows_scatter", "all rows", lambda: run.rows_scatter(KIND, dy, rows, y), 2 * row
    yield "rmsnorm_forward", "", lambda: run.rmsnorm_forward(KIND, x, weight, y, rstd, 1e-5), 2 * row
    yield "rmsnorm_backward", "", lambda: run.rmsnorm_backward(KIND, dy, x, weight, rstd, None, y), 3 * row
    yield "rmsnorm_backward", "residual in place", lambda: run.rmsnorm_backward(KIND, dy, x, weight, rstd, y, y), 4 * row
    del table, dy, y
    for C in (32, 8):
        qkv, out, w = rnd(M, (Q + 2 * C) * D), rnd(M, (Q + 2 * C) * D), rnd(D)
        positions, cos, sin = torch.arange(M, device="cuda", dtype=torch.int32) % 512, torch.rand(512, D // 2, device="cuda"), torch.rand(512, D // 2, device="cuda")
        part, where = qkv.nbytes * (Q + C) // (Q + 2 * C), f"{Q} + {C} heads"
        yield "rope_forward", f"{where}, in place", lambda: run.rope_forward(KIND, qkv, positions, cos, sin, None, None, qkv, Q, C, D, 1e-6), 2 * part
        yield "rope_backward", where, lambda: run.rope_backward(KIND, qkv, positions, cos, sin, None, None, None, Q, C, D, 1e-6), 2 * part
        yield "rope_forward", f"{where}, norms", lambda: run.rope_forward(KIND, qkv, positions, cos, sin, w, w, out, Q, C, D, 1e-6), 2 * qkv.nbytes
        yield "rope_backward", f"{where}, norms", lambda: run.rope_backward(KIND, out, positions, cos, sin, qkv, w, w, Q, C, D, 1e-6), 3 * part
    gate_up, h = rnd(M, 2 * I), rnd(M, I)
    yield "swiglu_forward", "", lambda: run.swiglu_forward(KIND, gate_up, h), 3 * h.nbytes
    yield "swiglu_backward", "in place", lambda: run.swiglu_backward(KIND, h, gate_up, gate_up), 5 * h.nbytes
    del gate_up, h
    for V_, T_ in ((V, T), (128256, 1024)):
        logits, loss, hit = rnd(T_, V_), torch.rand(T_, device="cuda"), torch.zeros(T_, device="cuda", dtype=torch.int32)
        targets, weights = torch.randint(0, V_, (T_,), device="cuda", dtype=torch.int32), torch.rand(T_, device="cuda")
        sharpness = torch.ones_like(weights)
        yield "xent", f"{T_} rows of {V_}, gradient", lambda: run.xent(KIND, logits, V_, targets, weights, sharpness, loss, hit, 1), 3 * logits.nbytes
        yield "xent", f"{T_} rows of {V_}, loss", lambda: run.xent(KIND, logits, V_, targets, weights, sharpness, loss, hit, 0), logits.nbytes
    del logits
    for R in (16, 256):
        places, P = tensors_of(R)
        grads, tensors = torch.randn(P, device="cuda") * 1e-3, torch.tensor(places, device="cuda", dtype=torch.int32)
        squares = torch.zeros(len(places), device="cuda")
        yield "grad_norm", f"rank {R}, {P / 1e6:.0f} M", lambda: run.grad_norm(KIND, grads, tensors, squares), grads.nbytes
        params, m, v, copy = torch.randn(P, device="cuda"), torch.zeros(P, device="cuda"), torch.zeros(P, device="cuda"), rnd(P)
        table = torch.tensor([1, 1e-4, 0.1, 0.999, 0.001, 1e-8, 0.01, 0.1, 0.001, 1, 1e-4], device="cuda")
        factors = torch.zeros(P // 128, device="cuda", dtype=torch.int32)
        yield "adamw_step", f"rank {R}, {P / 1e6:.0f} M", lambda: run.adamw_step(KIND, params, grads, m, v, copy, factors, table), 8 * grads.nbytes + copy.nbytes
        m, v, absmax = torch.zeros(P, device="cuda", dtype=torch.uint8), torch.zeros(P, device="cuda", dtype=torch.uint8), torch.rand(2, P // 128, device="cuda")
        codes = torch.linspace(-1, 1, 1024, device="cuda").view(4, 256)
        moments = 2 * (m.nbytes + v.nbytes + absmax.nbytes)
        yield "adamw8_step", f"rank {R}, {P / 1e6:.0f} M", lambda: run.adamw8_step(KIND, params, grads, m, v, absmax[0], absmax[1], codes, copy, factors, table), 4 * grads.nbytes + copy.nbytes + moments
        del params, m, v, copy
    out = rnd(1 << 30)
    yield "random_fill", "1 G numbers", lambda: run.random_fill(KIND, out, 7, 0.02), out.nbytes


TUNE = {
    "rows_gather": [(dict(BLOCK=1024), 4), (dict(BLOCK=1024), 2)],
    "rmsnorm_forward": [(dict(BLOCK=4096), 8)],
    "rmsnorm_backward": [(dict(BLOCK=4096), 8)],
    "rope_forward": [(dict(HEADS=16), 4), (dict(HEADS=32), 4), (dict(HEADS=64), 8)],
    "rope_backward": [(dict(HEADS=16), 4), (dict(HEADS=32), 4), (dict(HEADS=64), 8)],
    "swiglu_forward": [(dict(BLOCK=2048), 8)],
    "swiglu_backward": [(dict(BLOCK=2048), 8)],
    "xent": [(dict(LANES=512, BLOCK=8192), 8), (dict(LANES=1024, BLOCK=16384), 16), (dict(LANES=256, BLOCK=4096), 8)],
    "grad_norm": [(dict(BLOCK=512), 4), (dict(BLOCK=2048), 4), (dict(BLOCK=2048), 8)],
    "adamw_step": [(dict(BLOCK=512), 4), (dict(BLOCK=2048), 8)],
    "adamw8_step": [(dict(BLOCKS=4), 4), (dict(BLOCKS=16), 4), (dict(BLOCKS=16), 8)],
    "random_fill": [(dict(BLOCK=2048), 4), (dict(BLOCK=1024), 4)],
}


def main():
    print(torch.cuda.get_device_name(0))
    print("| kernel | | MB | us | TB/s | of a copy's rate |\n|---|---|---|---|---|---|")
    copies, wanted = {}, [name for name in sys.argv[1:] if name != "--tune"]
    for kernel, what, launch, size in problems():
        if wanted and kernel not in wanted:
            continue
        if size not in copies:
            a, b = (torch.empty(size // 2, dtype=torch.int8, device="cuda") for _ in range(2))
            copies[size] = kernel_us(lambda: b.copy_(a), ours=False)
            del a, b
        run.OVERRIDE.clear()
        us = kernel_us(launch)
        print(f"| {kernel} | {what} | {size / 1e6:.0f} | {us:.1f} | {size / us / 1e6:.2f} | {copies[size] / us:.2f} |", flush=True)
        found = []
        for constants, warps in TUNE.get(kernel, []) if "--tune" in sys.argv else []:
            run.OVERRIDE[kernel] = (constants, warps)
            found.append(f"{list(constants.values())} {warps} warps {kernel_us(launch):.1f}")
        if found:
            print("    " + ", ".join(found), flush=True)


if __name__ == "__main__":
    main()
