"""Times attention.py and PyTorch's attention in the same run, L2 cold: python3 scripts/bench/kernels/attention.py [--wide]
[--tune]

Causal, bf16, by tensor descriptors. PyTorch's kernels (flash, cuDNN's where it is there, and what scaled_dot_product_attention
chooses by itself) get q, k and v of [B, H, T, D] apart, ours the packed matrix. Backward is all launches of attention_backward.
Medians of rounds that take turns, because the clock falls as the chip warms; each run is a CUDA graph, so that no launch on the
host counts. --wide times Gemma's heads of 256 and 512 alone, with each of our launches; --tune times other tiles of each
kernel.
"""
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from triton.testing import do_bench

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tests/gpu/kernels"))
import attention_launch  # noqa: E402
from attention_variants import KERNELS, variant  # noqa: E402
from attention_launch import OVERRIDE, attention_backward, attention_forward  # noqa: E402

# Sequences, their length, query and key heads, head size.
SHAPES = [(8, 512, 32, 32, 128), (2, 2048, 32, 32, 128), (8, 512, 32, 8, 128), (2, 2048, 32, 8, 128), (1, 8192, 32, 8, 128), (8, 512, 32, 4, 64), (2, 2048, 32, 4, 64), (2, 2048, 32, 32, 64)]
# Gemma 3 4B; Gemma 4 E4B and 12B, layers with a window (which is no shorter than the rows or cuts them alike) and without.
WIDE = [(8, 512, 8, 4, 256), (2, 2048, 8, 4, 256), (8, 512, 8, 2, 256), (2, 2048, 8, 2, 256), (8, 512, 16, 8, 256), (2, 2048, 16, 8, 256), (8, 512, 8, 2, 512), (2, 2048, 8, 2, 512), (8, 512, 16, 1, 512), (2, 2048, 16, 1, 512)]
ROUNDS = 5
TUNED = {  # kernel -> head size -> BM, BN, warps, stages
    "attention_forward": {128: [(128, 128, 4, 2), (128, 64, 4, 3), (128, 64, 4, 4)], 64: [(128, 128, 4, 2), (128, 128, 4, 3), (128, 64, 4, 4)], 256: [(128, 64, 4, 2), (128, 32, 4, 4)], 512: [(64, 32, 8, 2), (64, 64, 8, 1), (64, 32, 8, 1)]},
    "attention_backward_q": {128: [(128, 128, 4, 2), (128, 64, 4, 3), (128, 64, 4, 4)], 64: [(128, 128, 4, 2), (128, 128, 4, 3), (128, 64, 4, 4)], 256: [(128, 32, 4, 2), (128, 64, 4, 1)], 512: [(64, 32, 8, 1), (64, 16, 8, 2)]},
    "attention_backward_kv": {128: [(64, 128, 4, 2), (64, 128, 4, 3), (64, 128, 4, 4)], 64: [(64, 128, 4, 3), (64, 128, 4, 4), (128, 128, 4, 2), (128, 128, 4, 3)], 256: [(64, 64, 4, 2), (32, 64, 4, 4)], 512: [(32, 32, 8, 1)]},
}


class Case:
    """One shape: ours and PyTorch's tensors, and a run of each."""

    def __init__(self, B, T, Q, C, D):
        self.shape, M = (B, T, Q, C, D), B * T
        rnd = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()
        self.qkv, self.dout = rnd(M, (Q + 2 * C) * D), rnd(M, Q * D)
        first = torch.arange(M, device="cuda") // T * T
        self.bounds = torch.stack([first, first + T], 1).int()
        self.out, self.dqkv = torch.empty_like(self.dout), torch.empty_like(self.qkv)
        self.lse, self.delta = (torch.empty(Q, M, device="cuda") for _ in range(2))
        self.q, self.k, self.v, self.do = rnd(B, Q, T, D), rnd(B, C, T, D), rnd(B, C, T, D), rnd(B, Q, T, D)
        self.sizes = (Q, C, D, D**-0.5, 0)

    def forward(self):
        attention_forward("tma", self.qkv, self.bounds, self.out, self.lse, *self.sizes)

    def backward(self):
        attention_backward("tma", self.qkv, self.bounds, self.out, self.lse, self.dout, self.delta, self.dqkv, *self.sizes)

    def peers(self):
        """Name -> (forward, backward) of PyTorch's kernels that take the shape."""
        ops = torch.ops.aten
        B, T, Q, C, D = self.shape
        k, v = (t.repeat_interleave(Q // C, 1) for t in (self.k, self.v))
        flash = lambda k, v: lambda: ops._scaled_dot_product_flash_attention(self.q, k, v, 0.0, True)
        flash_back = lambda k, v, made: lambda: ops._scaled_dot_product_flash_attention_backward(self.do, self.q, k, v, made[0], made[1], made[2], made[3], made[4], made[5], 0.0, True, made[6], made[7])
        cudnn = lambda: ops._scaled_dot_product_cudnn_attention(self.q, k, v, None, True, 0.0, True)
        cudnn_back = lambda made: lambda: ops._scaled_dot_product_cudnn_attention_backward(self.do, self.q, k, v, made[0], made[1], made[6], made[7], None, made[2], made[3], made[4], made[5], 0.0, True)
        found = {}
        same = lambda: torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, enable_gqa=C != Q)

        def both():
            inputs = [t.detach().requires_grad_() for t in (self.q, self.k, self.v)]
            torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=C != Q).backward(self.do)

        found["SDPA"] = (same, both)  # its backward is timed with the forward, which is taken off
        for name, forward, backward in (("flash", flash(self.k, self.v), lambda made: flash_back(self.k, self.v, made)), ("flash, keys repeated", flash(k, v), lambda made: flash_back(k, v, made)), ("cuDNN", cudnn, cudnn_back)):
            if C == Q and "repeated" in name:
                continue
            try:
                made = forward()
                backward(made)()
                torch.cuda.synchronize()
                found[name] = (forward, backward(made))
            except RuntimeError as e:
                print(f"{name}: {str(e).splitlines()[0][:120]}", flush=True)
        return found

    def flops(self):
        """Of the forward's two products, where a row sees itself and what is before it."""
        B, T, Q, _, D = self.shape
        return 4 * B * Q * D * T * (T + 1) / 2


def captured(run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def medians(runs, rounds=ROUNDS, rep=15):
    """Microseconds of each of several captured runs, taking turns; the L2 is flushed before each replay."""
    replays = {name: captured(run) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, replay in replays.items():
            times[name].append(do_bench(replay, warmup=3, rep=rep, return_mode="median"))
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def row(shape):
    case = Case(*shape)
    peers = case.peers()
    runs = {"f": case.forward, "b": case.backward}
    for name, (forward, backward) in peers.items():
        runs |= {f"{name} f": forward, f"{name} b": backward}
    us = medians(runs)
    us["SDPA b"] -= us["SDPA f"]
    rate = lambda part, key: f"{case.flops() * (1 if part == 'f' else 2.5) / us[key] / 1e6:.0f}"
    cells = [f"{us[part]:.0f} ({rate(part, part)})" + "".join(f" | {us[f'{name} {part}']:.0f} ({us[f'{name} {part}'] / us[part]:.2f})" if name in peers else " | " for name in ("flash", "cuDNN", "SDPA")) for part in "fb"]
    B, T, Q, C, D = shape
    print(f"| {B} x {T}, {Q} / {C} heads of {D} | {' | '.join(cells)} |" + "".join(f" {n}: {us[n + ' f']:.0f} {us[n + ' b']:.0f}" for n in peers if "repeated" in n), flush=True)


def one_launch(case, kernel):
    """Only the named kernel of a pass."""
    def run():
        launch, sum_keys = attention_launch.launch, attention_launch.sum_keys
        attention_launch.launch = lambda name, *args: launch(name, *args) if name == kernel else None
        if kernel != "attention_backward_kv":
            attention_launch.sum_keys = lambda *_: None
        try:
            case.forward() if kernel == "attention_forward" else case.backward()
        finally:
            attention_launch.launch, attention_launch.sum_keys = launch, sum_keys
    return run


def tune(share=None):
    """Times every configuration; with share = (i, n) only compiles the i-th of n shares."""
    wide = [(8, 512, 8, 2, 256), (2, 2048, 8, 2, 256), (8, 512, 8, 2, 512), (2, 2048, 8, 2, 512)]
    shapes = wide if "--wide" in sys.argv else [(8, 512, 32, 32, 128), (2, 2048, 32, 32, 128), (2, 2048, 32, 32, 64)]
    cases = {shape: Case(*shape) for shape in shapes}
    for case in cases.values():
        case.forward()
    jobs = [(kernel, D, config) for kernel, by_size in TUNED.items() for D, configs in by_size.items() for config in configs]
    jobs = [job for job in jobs if job[1] in {shape[-1] for shape in shapes}]
    for i, (kernel, D, config) in enumerate(jobs):
        if share and i % share[1] != share[0]:
            continue
        OVERRIDE.clear()
        part = {} if kernel != "attention_backward_kv" else dict(MAKES=0, PARTS=0)
        OVERRIDE[kernel] = variant("wide" if D == 512 else "tma", kernel, D, 1, 0, part, config)
        try:
            times = []
            for shape, case in cases.items():
                if shape[-1] != D:
                    continue
                run = one_launch(case, kernel)
                run()
                torch.cuda.synchronize()
                times.append("" if share else f"{shape[0]} x {shape[1]}: {medians({'': run}, 2, 10)['']:.1f}")
            if not share:
                print(kernel, D, config, *times, flush=True)
        except Exception as e:
            print(kernel, D, config, type(e).__name__, str(e).splitlines()[0][:100] if str(e) else "", flush=True)


def main():
    attention_launch.POISONED = False
    if "--warm" in sys.argv:
        return tune(tuple(map(int, sys.argv[-2:])))
    start = time.monotonic()
    print(torch.cuda.get_device_name(0), torch.__version__)
    if "--tune" in sys.argv:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda i: subprocess.run([sys.executable, __file__, *sys.argv[1:], "--warm", str(i), "12"]), range(12)))
        print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
        return tune()
    print("| shape | forward us (TFLOP/s) | flash | cuDNN | SDPA | backward us | flash | cuDNN | SDPA |\n|---|---|---|---|---|---|---|---|---|")
    for shape in WIDE if "--wide" in sys.argv else SHAPES:
        row(shape)
        if "--wide" in sys.argv:
            case = Case(*shape)
            case.forward()
            us = medians({kernel: one_launch(case, kernel) for kernel in KERNELS}, 3, 10)
            print(", ".join(f"{kernel} {time:.0f}" for kernel, time in us.items()), flush=True)


if __name__ == "__main__":
    main()
