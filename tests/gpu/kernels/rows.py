"""Checks the memory-bound kernels against float64 and against themselves elsewhere. One command: python3
tests/gpu/kernels/rows.py

Fresh random inputs, poisoned outputs, odd shapes, tensors beyond 2^31 elements, optional arguments there and absent, in place.
With TRITON_INTERPRET=1 small shapes are checked on the CPU. Arguments choose cases: python3 rows.py ptr rope
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

import rows_adapters
import rows_cases
import rows_decode
import rows_dora
import rows_packed
import rows_tables
import rows_values
import rows_vera
from rows_launch import INTERPRET

SEED = int(time.time())
CASES = {  # side by side on one GPU: those with the largest tensors first and last
    **{name: getattr(rows_adapters, name) for name in ("adamw", "adamw8", "sgd", "grad_norm", "random_fill")},
    **{name: getattr(rows_cases, name) for name in ("rows", "pool", "rmsnorm", "rope", "xent", "swiglu", "geglu", "shaped", "multiply", "add", "gate", "spans")},
    "decode": rows_decode.decode,
    "sink": rows_decode.sink,
    "values": rows_values.values,
    "columns": rows_values.columns,
    "expanded": rows_values.expanded,
    "nf4": rows_packed.nf4,
    "int8": rows_packed.int8,
    "fp8": rows_packed.fp8,
    "nf4_fp8": rows_packed.nf4_fp8,
    "fp8_swiglu": rows_packed.fp8_swiglu,
    "dora": rows_dora.dora,
    "vera": rows_vera.vera,
    "tables": rows_tables.tables,
}
KINDS = ("ptr", "f32")


def check(kind, name):
    """One case: prints a line and says whether all is right."""
    torch.manual_seed(SEED)
    case = CASES[name](kind, INTERPRET)
    torch.manual_seed(SEED)
    wrong = case.wrong + (["a second run differs"] if CASES[name](kind, INTERPRET).found != case.found else [])
    print(f"{'FAIL' if wrong else 'ok  '} {kind} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in case.errors.items()), *wrong, sep="; ", flush=True)
    return not wrong


def main():
    if len(sys.argv) == 3:
        sys.exit(0 if check(*sys.argv[1:]) else 1)
    jobs = [(kind, name) for name in CASES for kind in KINDS]

    def one(job):
        done = subprocess.run([sys.executable, __file__, *job], capture_output=True, text=True)
        print(done.stdout.strip() or f"FAIL {' '.join(job)}: {done.stderr.strip()[-1500:]}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(1 if INTERPRET else 5) as pool:
        failed = sum(code != 0 for code in pool.map(one, jobs))
    print(f"{len(jobs) - failed} of {len(jobs)} cases right")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
