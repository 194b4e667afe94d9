"""Checks linear.py and lora.py against float64 and against themselves with others. One command: python3
tests/gpu/kernels/linear.py

Fresh random inputs, poisoned outputs, NaN after each factor and between the rows of s, ragged shapes, ranks from 1 to 512 side
by side, dropout, tiles of no adapter.
With TRITON_INTERPRET=1 the f32 variants are checked on the CPU (slow: only the small cases).
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from linear_pool import INTERPRET
from linear_problem import Problem

SEED = int(time.time())

CASES = {
    "q k v of SmolLM2": dict(columns=[576, 192, 192], K=576, tiles=[-1, 0, 0, 1, 3, 3, 3, -1, 2], ranks=[[1, 1, 1], [8, 0, 8], [16, 16, 16], [64, 64, 0]]),
    "one linear, many tiles": dict(columns=[1024], K=4096, tiles=[2] * 11 + [0] * 9 + [-1] + [1] * 17, ranks=[[16], [8], [1]], residual=True),
    "gate and up, odd widths": dict(columns=[520, 520], K=264, tiles=[1, 0, 0, -1, 2], ranks=[[17, 32], [3, 0], [0, 8]], bias=True),
    "aligned q k v": dict(columns=[1024, 256, 256], K=1024, tiles=[1, 0, 0, 2, -1], ranks=[[16, 16, 16], [4, 8, 12], [0, 0, 0]], bias=True),
    "aligned, up to 64": dict(columns=[1024, 256, 256], K=1024, tiles=[1, 0, 0, 2, -1], ranks=[[64, 40, 16], [4, 8, 12], [0, 0, 33]]),
    "aligned, wide": dict(columns=[1024, 256, 256], K=1024, tiles=[1] * 9 + [0, 0, 2, -1, 3], ranks=[[256, 40, 16], [4, 8, 12], [0, 0, 33], [65, 1, 512]], bias=True),
    "two linears of 16": dict(columns=[512, 512], K=512, tiles=[1, 0, 2], ranks=[[16, 16], [4, 8], [0, 9]]),
    "up to 64 with a residual": dict(columns=[640], K=512, tiles=[0, 0, 1, 2], ranks=[[64], [33], [8]], residual=True),
    "rank 256": dict(columns=[640], K=512, tiles=[0, 0, 1, 2], ranks=[[256], [100], [8]], residual=True),
    "rank 256 with bias and residual": dict(columns=[640], K=512, tiles=[0, 0, 1, 2], ranks=[[256], [100], [8]], bias=True, residual=True),
    "rank 128, two linears": dict(columns=[384, 256], K=328, tiles=[0, 1, 1, -1], ranks=[[128, 70], [16, 128]]),
    "rank 256, three linears": dict(columns=[256, 136, 136], K=256, tiles=[0, 1, 2], ranks=[[256, 1, 200], [64, 256, 256], [16, 16, 16]]),
    "many adapters": dict(columns=[256, 256, 256], K=256, tiles=[l for l in range(150) for _ in range(1 + l % 3)], ranks=[[1 + l * 5 % 256, l % 2, l * 3 % 64] for l in range(150)]),
}
SMALL = {
    "small": dict(columns=[72, 40, 24], K=88, tiles=[-1, 1, 0, 0], ranks=[[8, 20, 32], [1, 0, 16]], bias=True, residual=False, part=32),
    "whole, with residual": dict(columns=[72], K=88, tiles=[-1, 1, 0, 0], ranks=[[40], [1]], bias=True, residual=True),
    "chunks": dict(columns=[40, 72], K=40, tiles=[1, 0] + [2] * 10 + [3], ranks=[[8, 1], [1, 17], [16, 33], [0, 4]]),
    "whole parts": dict(columns=[64, 64], K=40, tiles=[1, 0, 2, -1], ranks=[[256, 1], [0, 17], [0, 0]]),
}
LIMIT = {"f32": 2e-6, "ptr": 4e-3, "tma": 4e-3}


def check(kind, name):
    """One case: prints a line and says whether all is right."""
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = False
    problem = Problem(kind, **{**CASES, **SMALL}[name]).run()
    errors = problem.errors()
    wrong = [k for k, e in errors.items() if not e < LIMIT[kind]] + problem.strays()
    first = problem.results()
    again = problem.run().results()
    wrong += [f"{k} differs in a second run" for k, v in first.items() if not torch.equal(torch.nan_to_num(v), torch.nan_to_num(again[k]))]
    wrong += problem.made_otherwise()
    for l in range(problem.case.L):
        # The interpreter's products are numpy's, whose order of summation goes by shape: only a GPU can show equal bits.
        wrong += [] if INTERPRET or l not in problem.tiles else [f"{k} of adapter {l} differs alone" for k in problem.alone(l)]
    print(f"{'FAIL' if wrong else 'ok  '} {kind} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in errors.items()), *wrong, sep="; ")
    return not wrong


def main():
    """No argument: every case, each in its own process, because compiling takes longer than running."""
    if len(sys.argv) == 3:
        sys.exit(0 if check(*sys.argv[1:]) else 1)
    names = list(SMALL) if INTERPRET else [*CASES, *SMALL]
    jobs = [(kind, name) for kind in (["f32"] if INTERPRET else ["tma", "ptr", "f32"]) for name in names]

    def one(job):
        done = subprocess.run([sys.executable, __file__, *job], capture_output=True, text=True)
        if done.stdout:
            print(done.stdout.strip(), flush=True)
        else:
            print(f"FAIL {' '.join(job)}: {done.stderr.strip()[-1500:]}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(code != 0 for code in pool.map(one, jobs))
    print(f"{len(jobs) - failed} of {len(jobs)} cases right")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
