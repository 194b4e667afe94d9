"""Checks the kernels of mixture-of-experts layers against float64 and against themselves with others. One command: python3
tests/gpu/kernels/experts.py

Fresh random inputs, poisoned outputs, NaN after each factor, experts without a row and one with most of them, tiles of no
adapter, padding rows, factors per expert and shared, ranks side by side, biases, clamps. Each adapter is computed alone, too:
its numbers are the same bits. With TRITON_INTERPRET=1 the f32 variants are checked on the CPU (slow: only the small cases).
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from experts_launch import INTERPRET
from experts_problem import Problem

SEED = int(time.time())
GPT_OSS = dict(interleaved=1, limit=7.0, alpha=1.702)
CASES = {
    "Qwen3-30B-A3B": dict(E=128, k=8, H=2048, I=768, tiles=[0] * 8 + [1] * 3 + [-1] + [2], up=[[16], [8], [0]], down=[[16], [0], [4]], shares=[1, 0, 0]),
    "gpt-oss": dict(E=32, k=4, H=720, I=720, tiles=[1, 1, 0, -1], up=[[16], [4]], down=[[8], [16]], shares=[1, 0], bias=True, act=GPT_OSS),
    "gate and up apart": dict(E=40, k=6, H=264, I=136, tiles=[2, 2, 0, 1], up=[[17, 3], [0, 32], [16, 16]], down=[[1], [40], [0]], shares=[1, 1, 0], router=dict(sigmoid=1, scaling=2.5, groups=8, kept=3)),
    "few rows": dict(E=256, k=2, H=128, I=64, tiles=[0, 1], up=[[8], [8]], down=[[8], [8]], shares=[1, 0], router=dict(normalise=0)),
    "one expert has most": dict(E=16, k=4, H=512, I=256, tiles=[0] * 5 + [1] * 2, up=[[16], [64]], down=[[16], [64]], shares=[1, 0], skew=True),
    "32 adapters": dict(E=64, k=8, H=256, I=128, tiles=[l for l in range(32) for _ in range(1 + l % 2)], up=[[1 + l % 20] for l in range(32)], down=[[16]] * 32, shares=[l % 3 > 0 for l in range(32)]),
}
SMALL = {
    "small": dict(E=5, k=2, H=40, I=24, tiles=[0, -1], up=[[3, 0]], down=[[17]], shares=[1], bias=True, act=GPT_OSS),
    "small, groups": dict(E=8, k=3, H=40, I=24, tiles=[1, 0], up=[[17, 3], [0, 8]], down=[[1], [40]], shares=[0, 1], router=dict(sigmoid=1, scaling=2.5, groups=4, kept=2)),
}
LIMIT = {"f32": 5e-6, "ptr": 5e-3, "tma": 5e-3}


def bits(t):
    return t.contiguous().view({2: torch.int16, 4: torch.int32}[t.element_size()])


def check(kind, name):
    """One case: prints a line and says whether all is right."""
    torch.manual_seed(SEED)
    problem = Problem(kind, **{**CASES, **SMALL}[name]).run()
    errors, wrong = problem.errors()
    wrong += [k for k, e in errors.items() if not e < LIMIT[kind]]
    first = problem.results()
    own = {l: problem.results(l) for l in set(problem.tiles) - {-1}}
    again = problem.run().results()
    wrong += [f"{k} differs in a second run" for k, v in first.items() if not torch.equal(bits(v), bits(again[k]))]
    if not INTERPRET:  # numpy's products sum in an order that goes by shape
        for l, mine in own.items():
            alone = problem.part(l).run().results(l)
            wrong += [f"{k} of adapter {l} differs alone" for k, v in mine.items() if not torch.equal(bits(v), bits(alone[k]))]
    print(f"{'FAIL' if wrong else 'ok  '} {kind} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in errors.items()), *wrong[:12], sep="; ")
    return not wrong


def main():
    """No argument: every case, each in its own process, because compiling takes longer than running."""
    if len(sys.argv) == 3:
        sys.exit(0 if check(*sys.argv[1:]) else 1)
    names = list(SMALL) if INTERPRET else [*CASES, *SMALL]
    jobs = [(kind, name) for kind in (["f32"] if INTERPRET else ["tma", "ptr", "f32"]) for name in names]

    def one(job):
        done = subprocess.run([sys.executable, __file__, *job], capture_output=True, text=True)
        print(done.stdout.strip() or f"FAIL {' '.join(job)}: {done.stderr.strip()[-1500:]}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = sum(code != 0 for code in pool.map(one, jobs))
    print(f"{len(jobs) - failed} of {len(jobs)} cases right")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
