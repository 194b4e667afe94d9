"""Checks attention.py against float64 and against itself with others. One command: python3 tests/gpu/kernels/attention.py

Fresh random inputs, poisoned outputs, ragged sequences packed in tiles, padding rows, windows, grouped queries, places beyond
2^31 elements, a row of 131,072 tokens. With TRITON_INTERPRET=1 small cases in f32 are checked on the CPU. Arguments choose:
attention.py tma 128
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import torch

from attention_launch import DEVICE, DTYPE, INTERPRET, attention_backward, attention_forward

SEED = int(time.time())
NAN = float("nan")
LIMIT = {"f32": 3e-6, "ptr": 6e-3, "tma": 6e-3}
LSE_LIMIT = 2e-6  # products of bf16 are exact in f32: as near in every kind
HEAD_DIMS = {"tma": (256, 128, 64, 512), "ptr": (256, 128, 64, 24, 512), "f32": (128, 64, 24, 256, 512)}

# name -> query heads, key heads, window, lengths of the sequences of each adapter, and a cap of scores
SHORT = [1, 2, 3, 5, 7, 11, 13, 17, 31, 33, 63, 64, 65, 127, 128, 129]
CASES = {
    "long and short": (4, 4, 0, [[512], [300, 212], SHORT, [2048], [1], [100, 900]]),
    "a whole batch": (2, 2, 0, [[512] * 4, [512, 511], [1000, 24], [1024]]),
    "three to a key head": (6, 2, 0, [[257, 1, 200], [640], SHORT]),
    "four to a key head": (8, 2, 0, [[700], [2, 130, 128], [1100]]),
    "one key head": (4, 1, 0, [[129, 127], [1500]]),
    "window 1": (2, 2, 1, [[300, 5], [130]]),
    "window 7": (4, 2, 7, [SHORT, [500]]),
    "window 128": (2, 2, 128, [[1000], SHORT, [129, 400]]),
    "window 1000": (3, 1, 1000, [[2048], [999, 1001, 48]]),
    "window beyond all rows": (2, 2, 2**31 - 1, [[200, 100], [513]]),
    "a cap": (4, 2, 0, [[512], [300, 212], SHORT], 1.5),
    "a cap, window 100": (4, 4, 100, [[700, 9], [130]], 0.7),
}
MOST_CAPPED = 256  # the largest head that is compiled with a cap
SMALL = {
    "small": (2, 1, 0, [[3, 40, 1], [130]]),
    "small, window": (3, 3, 7, [[1, 70], [9, 100]]),
    "small, a cap": (2, 1, 0, [[1, 40]], 0.9),
}


class Batch:
    """Random inputs of packed sequences, and what the kernels make of them."""

    def __init__(self, kind, D, Q, C, window, adapters, cap=0.0):
        self.cap = cap
        self.kind, self.D, self.Q, self.C, self.window, self.scale = kind, D, Q, C, window, D**-0.5
        self.sequences, self.rows, bounds = [], [], []  # (first, last) of sequences and of adapters
        for lengths in adapters:
            start = len(bounds)
            for length in lengths:
                self.sequences.append((len(bounds), len(bounds) + length))
                bounds += [self.sequences[-1]] * length
            bounds += [(row, row) for row in range(len(bounds), start + ceil((len(bounds) - start) / 128) * 128)]
            self.rows.append((start, len(bounds)))
        self.M = len(bounds)
        self.bounds = torch.tensor(bounds, dtype=torch.int32, device=DEVICE)
        self.qkv = torch.randn(self.M, (Q + 2 * C) * D, device=DEVICE).to(DTYPE[kind])
        self.dout = torch.randn(self.M, Q * D, device=DEVICE).to(DTYPE[kind])

    def run(self):
        self.out, self.dqkv = torch.full_like(self.dout, NAN), torch.full_like(self.qkv, NAN)
        self.lse, self.delta = (torch.full((self.Q, self.M), NAN, device=DEVICE) for _ in range(2))
        sizes = (self.Q, self.C, self.D, self.scale, self.window, self.cap)
        attention_forward(self.kind, self.qkv, self.bounds, self.out, self.lse, *sizes)
        attention_backward(self.kind, self.qkv, self.bounds, self.out, self.lse, self.dout, self.delta, self.dqkv, *sizes)
        return self

    def results(self):
        """All that is written, rows first."""
        return dict(out=self.out, lse=self.lse.T, delta=self.delta.T, dqkv=self.dqkv)

    def like(self, **changes):
        """The same sizes with other inputs, not run yet."""
        other = object.__new__(Batch)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def heads(self, t, first, count):
        """f64[count, rows, D]: heads of a matrix."""
        return t.double().view(t.shape[0], -1, self.D)[:, first : first + count].transpose(0, 1)

    def reference(self, first, last):
        """What float64 makes of one sequence: each result's name, the kernels' and its own."""
        part, grad, n = self.qkv[first:last], self.dqkv[first:last], torch.arange(last - first, device=DEVICE)
        places = dict(dq=(0, self.Q), dk=(self.Q, self.C), dv=(self.Q + self.C, self.C))
        q, k, v = (self.heads(part, *place).clone().requires_grad_() for place in places.values())
        behind = n[:, None] - n[None, :]
        seen = (behind >= 0) & ((behind < self.window) | (self.window == 0))
        shared = self.Q // self.C
        scores = self.scale * q @ k.repeat_interleave(shared, 0).transpose(1, 2)
        if self.cap > 0:
            scores = self.cap * (scores / self.cap).tanh()
        scores = scores.masked_fill(~seen, float("-inf"))
        out = scores.softmax(-1) @ v.repeat_interleave(shared, 0)
        out.backward(self.heads(self.dout[first:last], 0, self.Q))
        yield "out", self.heads(self.out[first:last], 0, self.Q), out
        yield "lse", self.lse[:, first:last].double(), scores.logsumexp(-1)
        for (name, place), of in zip(places.items(), (q, k, v)):
            yield name, self.heads(grad, *place), of.grad

    def errors(self):
        """|| result - reference || / || reference || over all sequences; where the reference is 0 (dq of a window of 1), per
        element."""
        sums = {}
        for sequence in self.sequences:
            for name, found, reference in self.reference(*sequence):
                away, size, count = sums.get(name, (0.0, 0.0, 0))
                sums[name] = (away + float((found - reference).detach().square().sum()), size + float(reference.detach().square().sum()), count + found.numel())
        return {name: (away / (size or count)) ** 0.5 for name, (away, size, count) in sums.items()}

    def padding_faults(self):
        padding = self.bounds[:, 0] == self.bounds[:, 1]
        zero = all(bool((t[padding] == 0).all()) for t in (self.out, self.dqkv))
        finite = all(bool(t.isfinite().all()) for t in self.results().values())
        return ([] if zero else ["padding rows are not zero"]) + ([] if finite else ["a result is not finite"])


def same_bits(a, b):
    as_int = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    return torch.equal(a.contiguous().view(as_int), b.contiguous().view(as_int))


def check(kind, D, name):
    """One case: prints a line and says whether all is right."""
    batch = Batch(kind, D, *{**CASES, **SMALL}[name]).run()
    errors = batch.errors()
    wrong = [key for key, e in errors.items() if not e < (LSE_LIMIT if key == "lse" else LIMIT[kind])] + batch.padding_faults()
    before = {key: t.clone() for key, t in batch.results().items()}
    wrong += [f"{key} differs in a second run" for key, t in batch.run().results().items() if not same_bits(t, before[key])]
    for l, (start, end) in enumerate(batch.rows):
        alone = batch.like(M=end - start, bounds=batch.bounds[start:end] - start, qkv=batch.qkv[start:end].clone(), dout=batch.dout[start:end].clone())
        wrong += [f"{key} of adapter {l} differs alone" for key, t in alone.run().results().items() if not same_bits(t, before[key][start:end])]
    return report(kind, D, name, errors, wrong)


def check_far(kind, D):
    """An adapter whose rows lie beyond 2^31 elements has the bits that it has alone; all rows before it are padding."""
    near = Batch(kind, D, 2048 // D, 2048 // D, 0, [[300]])
    rows = ceil(2**31 / near.qkv.shape[1] / 128) * 128
    bounds = torch.cat([torch.zeros(rows, 2, dtype=torch.int32, device=DEVICE), near.bounds + rows])
    far = near.like(M=rows + near.M, bounds=bounds, **{key: torch.cat([t[:1].expand(rows, -1), t]) for key, t in (("qkv", near.qkv), ("dout", near.dout))})
    wrong = far.run().padding_faults()
    expected = near.run().results()
    wrong += [f"{key} differs" for key, t in far.results().items() if not same_bits(t[rows:], expected[key])]
    return report(kind, D, "beyond 2^31 elements", {}, wrong)


def check_long(kind, D, M=131_072, rows=1024):
    """One sequence of M rows next to a short one, against float64 by blocks of rows; two query heads to a key head."""
    batch = Batch(kind, D, 2, 1, 0, [[M], [70]]).run()
    q, k, v = (batch.heads(batch.qkv[:M], first, count) for first, count in ((0, 2), (2, 1), (3, 1)))
    dout, out, dqkv = (batch.heads(t[:M], 0, count) for t, count in ((batch.dout, 2), (batch.out, 2), (batch.dqkv, 4)))
    dk, dv, sums = torch.zeros_like(k), torch.zeros_like(v), {}

    def add(name, found, reference):
        away, size = sums.get(name, (0.0, 0.0))
        sums[name] = (away + float((found - reference).square().sum()), size + float(reference.square().sum()))

    for a in range(0, M, rows):
        b = a + rows
        scores = batch.scale * q[:, a:b] @ k[:, :b].transpose(1, 2)
        scores[:, :, a:].masked_fill_(torch.ones(rows, rows, dtype=torch.bool, device=DEVICE).triu(1), float("-inf"))
        lse = scores.logsumexp(-1)
        p = (scores - lse[:, :, None]).exp_()
        own = p @ v[:, :b]
        delta = (dout[:, a:b] * own).sum(-1)
        ds = p * (dout[:, a:b] @ v[:, :b].transpose(1, 2) - delta[:, :, None])
        dv[:, :b] += (p.transpose(1, 2) @ dout[:, a:b]).sum(0)
        dk[:, :b] += batch.scale * (ds.transpose(1, 2) @ q[:, a:b]).sum(0)
        add("out", out[:, a:b], own)
        add("lse", batch.lse[:, a:b].double(), lse)
        add("dq", dqkv[:2, a:b], batch.scale * ds @ k[:, :b])
    add("dk", dqkv[2:3], dk)
    add("dv", dqkv[3:4], dv)
    errors = {name: (away / size) ** 0.5 for name, (away, size) in sums.items()}
    wrong = [key for key, e in errors.items() if not e < (LSE_LIMIT if key == "lse" else LIMIT[kind])] + batch.padding_faults()
    return report(kind, D, f"a row of {M} tokens", errors, wrong)


def report(kind, D, name, errors, wrong):
    print(f"{'FAIL' if wrong else 'ok  '} {kind} {D} {name}: " + " ".join(f"{k} {e:.1e}" for k, e in errors.items()), *wrong, sep="; ", flush=True)
    return not wrong


def check_all(kind, D):
    """All cases of one kind and head size, which share what is compiled: how many are right, and of how many."""
    torch.manual_seed(SEED)
    names = [name for name, case in (SMALL if INTERPRET else {**CASES, **SMALL}).items() if len(case) == 4 or D <= MOST_CAPPED]
    right = [check(kind, D, name) for name in names]
    if not INTERPRET and kind != "f32":
        right.append(check_far(kind, D))
    if not INTERPRET and kind != "f32" and D == 128:
        right.append(check_long(kind, D))
    return sum(right), len(right)


def main():
    """No argument: every kind and head size, each in its own process, because compiling takes longer than running."""
    if len(sys.argv) == 3:
        print(*check_all(sys.argv[1], int(sys.argv[2])))
        return
    jobs = [(kind, str(D)) for kind in (("f32",) if INTERPRET else HEAD_DIMS) for D in HEAD_DIMS[kind]]

    def one(job):
        done = subprocess.run([sys.executable, __file__, *job], capture_output=True, text=True)
        lines = done.stdout.strip().split("\n")
        if done.returncode:
            print("\n".join([*lines, f"FAIL {' '.join(job)}: {done.stderr.strip()[-1500:]}"]), flush=True)
            return 0, 1
        print("\n".join(lines[:-1]), flush=True)
        return tuple(map(int, lines[-1].split()))

    with ThreadPoolExecutor(2 if INTERPRET else len(jobs)) as pool:
        counts = list(pool.map(one, jobs))
    right, total = (sum(c) for c in zip(*counts))
    print(f"{right} of {total} cases right")
    sys.exit(0 if right == total else 1)


if __name__ == "__main__":
    main()
