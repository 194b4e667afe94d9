"""Times linear.py and lora.py beside cuBLAS in the same run, L2 cold: python3 scripts/bench/kernels/linear.py [--tune]

M = 4096 rows of four adapters, rank 16. `forward` is the fused product against cuBLAS's x W^T; `group` is down, forward, up_grad,
backward and down_grad in one CUDA graph against cuBLAS's two frozen products. Medians.
"""
import os
import sys

import torch
from triton.testing import do_bench

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tests/gpu/kernels"))
from linear import Problem  # noqa: E402

SHAPES = {"4096 x 4096 x 4096": ([4096], 4096), "4096 x 12288 x 4096": ([4096] * 3, 4096), "4096 x 22016 x 4096": ([11008] * 2, 4096), "4096 x 4096 x 11008": ([4096], 11008)}
TUNE = {
    "linear": [dict(GROUP=4), dict(GROUP=16), dict(FLAT=0), dict(num_stages=4, BK=32)],
    "down": [dict(BK=64), dict(num_warps=8), dict(num_stages=3), dict(BK=64, num_warps=8), dict(BK=256, num_warps=8, num_stages=2)],
    "up_grad": [dict(num_warps=8), dict(BN=256, num_warps=8, num_stages=3), dict(BN=256, CHUNK=4, num_warps=8, num_stages=3), dict(CHUNK=4), dict(BM=128, num_stages=3), dict(num_stages=3)],
    "down_grad": [dict(num_warps=8), dict(BK=64), dict(CHUNK=4), dict(BM=128, num_stages=3), dict(num_stages=3), dict(BK=64, CHUNK=16)],
}


def graph_ms(run, ms=60):
    """Median milliseconds of a captured run, L2 flushed before each."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return do_bench(graph.replay, warmup=20, rep=ms, return_mode="median")


def steps(p):
    c = p.case
    return {
        "down": lambda: c.lora_down(p.x, p.a, p.s),
        "forward": lambda: c.linear_forward(p.x, p.w, p.y, p.s, p.b),
        "up_grad": lambda: c.lora_up_grad(p.dy, p.s, p.b, p.ds, p.db),
        "backward": lambda: c.linear_backward(p.dy, p.w, p.dx, p.ds, p.a),
        "down_grad": lambda: c.lora_down_grad(p.x, p.ds, p.da),
    }


def problem(columns, K, p, R=16, adapters=4, M=4096, config=None, residual=False):
    tiles = [l for l in range(adapters) for _ in range(M // 128 // adapters)]
    return Problem("tma", columns, K, R, tiles, [[R] * len(columns)] * adapters, p=p, config=config, residual=residual).run()


def row(name, columns, K, p, **more):
    pr = problem(columns, K, p, **more)
    if p == 0:
        pr.case.dropout[:, 2] = 0
    run = steps(pr)
    fwd = graph_ms(lambda: torch.mm(pr.x, pr.w.T, out=pr.y))
    bwd = graph_ms(lambda: torch.mm(pr.dy, pr.w, out=pr.dx))
    ms = {k: graph_ms(f) for k, f in run.items()}
    group = graph_ms(lambda: [f() for f in run.values()])
    flops = 2 * pr.case.M * pr.case.N * K / 1e9
    print(f"{name} p={p} {more or ''}: cuBLAS {flops / fwd:.0f} {flops / bwd:.0f}, forward {flops / ms['forward']:.0f} ({fwd / ms['forward']:.3f}), backward {flops / ms['backward']:.0f} ({bwd / ms['backward']:.3f}), "
          + ", ".join(f"{k} {ms[k] * 1e3:.0f} us" for k in ("down", "up_grad", "down_grad")) + f", group {group * 1e3:.0f} us ({(fwd + bwd) / group:.3f} of the two products)", flush=True)


def tune(columns, K, p):
    from linear_launch import CONFIG
    base = CONFIG["tma"]
    for part, changes in TUNE.items():
        for change in [{}, *changes]:
            try:
                pr = problem(columns, K, p, config={part: {**base[part], **change}})
                run = steps(pr)
                names = ("forward", "backward") if part == "linear" else (part,)
                print(f"  {len(columns)}x{columns[0]} K={K} p={p} {part} {change}: " + ", ".join(f"{n} {graph_ms(run[n], 30) * 1e3:.1f} us" for n in names), flush=True)
            except Exception as e:
                print(f"  {part} {change}: {type(e).__name__} {str(e)[:120]}", flush=True)


def main():
    print(torch.cuda.get_device_name(0))
    for p in (0, 0.05):
        for name, (columns, K) in SHAPES.items():
            row(name, columns, K, p)
    if "--tune" in sys.argv:
        tune([4096], 4096, 0)
        tune([4096] * 3, 4096, 0.05)
    else:
        row("residual", [4096], 4096, 0, residual=True)
        row("rank 64", [4096] * 3, 4096, 0.05, R=64)
        row("32 adapters", [4096] * 3, 4096, 0.05, adapters=32, M=16384)


if __name__ == "__main__":
    main()
