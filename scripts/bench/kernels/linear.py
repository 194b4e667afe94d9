"""Times linear.py, lora.py and cuBLAS in the same run, L2 cold: python3 scripts/bench/kernels/linear.py [--tune [kernel
..]]

M = 4096 rows of four adapters of rank 16, then of other ranks. `forward` is the fused product against cuBLAS's x W^T; `group`
is down, forward, up_grad, backward and down_grad, one after the other in one CUDA graph, against cuBLAS's two frozen products.
Medians of rounds that take turns, because the clock falls as the chip warms. --tune times variants of each kernel by the
profiler.
"""
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tests/gpu/kernels"))
from linear_launch import CONFIG  # noqa: E402
from linear_problem import Problem  # noqa: E402

SHAPES = {"4096 x 4096 x 4096": ([4096], 4096), "4096 x 12288 x 4096": ([4096] * 3, 4096), "4096 x 22016 x 4096": ([11008] * 2, 4096), "4096 x 4096 x 11008": ([4096], 11008)}
ROUNDS = 5


def problem(columns, K, p, ranks=(16,) * 4, M=4096, config=None, residual=False):
    adapters = len(ranks)
    tiles = [l for l in range(adapters) for _ in range(M // 128 // adapters)]
    pr = Problem("tma", columns, K, tiles, [[rank] * len(columns) for rank in ranks], p=p, config=config or {}, residual=residual)
    pr.case.dropout[:, 2:] = pr.case.dropout[0, 2:].clone()
    return pr.run()


def steps(p):
    c = p.case
    return {
        "down": lambda: c.lora_down(p.x, p.s),
        "forward": lambda: c.linear_forward(p.x, p.w, p.y, p.s, None, p.residual),
        "up_grad": lambda: c.lora_up_grad(p.dy, p.s, p.ds),
        "backward": lambda: c.linear_backward(p.dy, p.w, p.dx, p.ds),
        "down_grad": lambda: c.lora_down_grad(p.x, p.ds),
    }


def captured(run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def medians(runs, rep=25):
    """Milliseconds of each of several captured runs, taking turns; the L2 is flushed before each replay."""
    replays = {name: captured(run) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, replay in replays.items():
            times[name].append(do_bench(replay, warmup=5, rep=rep, return_mode="median"))
    return {name: statistics.median(t) for name, t in times.items()}


def row(name, columns, K, p, **more):
    pr = problem(columns, K, p, **more)
    run = steps(pr)
    whole = lambda: [f() for f in run.values()]
    ms = medians({"cublas_f": lambda: torch.mm(pr.x, pr.w.T, out=pr.y), "cublas_b": lambda: torch.mm(pr.dy, pr.w, out=pr.dx), **run, "group": whole})
    rate = lambda key: f"{2 * pr.case.M * pr.case.N * K / 1e9 / ms[key]:.0f}"
    us = lambda key: f"{ms[key] * 1e3:.0f}"
    print(f"| {name}{''.join(f', {k} {v}' for k, v in more.items())} | {p} | {rate('cublas_f')} | {rate('cublas_b')} | {rate('forward')} ({ms['cublas_f'] / ms['forward']:.3f}) | {rate('backward')} ({ms['cublas_b'] / ms['backward']:.3f}) "
          f"| {us('down')} | {us('up_grad')} | {us('down_grad')} | {us('group')} | {(ms['cublas_f'] + ms['cublas_b']) / ms['group']:.3f} |", flush=True)


def kernel_us(run, times=12):
    """Microseconds of each kernel of a run by the profiler, L2 flushed before each."""
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(times):
            flush.zero_()
            run()
        torch.cuda.synchronize()
    by_name = {}
    for event in found.events():
        if event.device_type == DeviceType.CUDA and event.name.startswith(("lora", "linear")):
            by_name.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return {name: statistics.median(t) for name, t in by_name.items()}


def variants():
    for BM, BK, warps, part in [(64, 128, 4, 1024), (64, 64, 4, 1024), (64, 128, 4, 512), (64, 64, 4, 512), (64, 64, 8, 1024), (64, 128, 8, 512), (128, 64, 8, 512), (128, 64, 4, 1024), (64, 64, 4, 2048), (128, 64, 8, 1024)]:
        yield "down", dict(BM=BM, BK=BK, num_warps=warps, num_stages=3 if BM * BK > 4096 else 4), part
    for BM, BN, chunk, warps in product((64, 128), (128, 256), (2, 4, 8), (4, 8)):
        if BM * BN < 128 * 256 and not (BN == 256 and warps == 4):
            yield "up_grad", dict(BM=BM, BN=BN, CHUNK=chunk, num_warps=warps, num_stages=4 if BM * BN == 64 * 128 else 3), 1024
    for BM, BK, chunk, warps in product((64, 128), (64, 128), (4, 8), (4, 8)):
        if BM * BK <= 64 * 128:
            yield "down_grad", dict(BM=BM, BK=BK, CHUNK=chunk, num_warps=warps, num_stages=4 if BM * BK == 64 * 64 else 3), 1024


def tune(shapes, warm=None):
    """Times every variant; with warm = (i, n) only compiles the i-th of n shares."""
    for columns, K, p in shapes:
        pr = problem(columns, K, p)
        run = steps(pr)
        for i, (name, config, part) in enumerate(variants()):
            if warm and i % warm[1] != warm[0]:
                continue
            pr.case.config, pr.case.cfg, pr.case.part = {name: config}, {**CONFIG["tma"], name: config}, part
            pr.case.scratch = {}
            try:
                if warm:
                    run[name]()
                else:
                    us = kernel_us(run[name])
                    print(f"{len(columns)} x {columns[0]} p={p} {name} {list(config.values())} {part if name == 'down' else ''} {sum(us.values()):.1f} = {' + '.join(f'{v:.1f}' for v in us.values())}", flush=True)
            except Exception as e:
                print(name, config, type(e).__name__, str(e)[:100], flush=True)


def main():
    if "--warm" in sys.argv:
        i, n = map(int, sys.argv[-2:])
        return tune([([4096], 4096, 0), ([4096] * 3, 4096, 0.05)], (i, n))
    print(torch.cuda.get_device_name(0))
    if "--tune" in sys.argv:
        with ThreadPoolExecutor(14) as pool:
            list(pool.map(lambda i: subprocess.run([sys.executable, __file__, "--warm", *sys.argv[2:], str(i), "14"]), range(14)))
        return tune([([4096], 4096, 0), ([4096], 4096, 0.05), ([4096] * 3, 4096, 0.05)])
    print("| M x N x K | dropout | cuBLAS xW' TFLOP/s | cuBLAS dyW | forward | backward | down us | up_grad us | down_grad us | group us | cuBLAS's two / group |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for p in (0, 0.05):
        for name, (columns, K) in SHAPES.items():
            row(name, columns, K, p)
    row("4096 x 4096 x 4096", [4096], 4096, 0, residual=True)
    for ranks in ((64,) * 4, (256,) * 4, (8,) * 8, (8,) * 7 + (256,), (4, 8, 16, 32, 64, 64, 128, 256)):
        row("4096 x 12288 x 4096", [4096] * 3, 4096, 0.05, ranks=ranks)
    row("16384 x 12288 x 4096", [4096] * 3, 4096, 0.05, ranks=(16,) * 32, M=16384)
    row("16384 x 12288 x 4096", [4096] * 3, 4096, 0.05, ranks=(16,), M=16384)


if __name__ == "__main__":
    main()
