"""Checks the kernels of attention over latents against PyTorch, with gradients by autograd in float64. One command: python3
tests/gpu/kernels/latent.py [--time]

Fresh random inputs, poisoned outputs, unequal heads of both ways of pairing. All but a sum are copies, which have to be the
same bits. With TRITON_INTERPRET=1 small shapes are checked on the CPU. --time measures a layer of GLM-4.7-Flash.
"""
import sys
import time

import torch

from rows_check import Case, poison, rnd
from rows_launch import INTERPRET, cdiv, find, launch


def forward(kind, queries, keys, shared, qkv, of):
    row = find("latent_heads", kind)
    launch(row, (len(qkv), 3 * cdiv(qkv.shape[1] // 3, row["constants"]["BLOCK"])), queries, keys, shared, qkv, shared.shape[1], *of)


def backward(kind, dqkv, dqueries, dkeys, dshared, of):
    row = find("latent_heads_backward", kind)
    programs = sum(cdiv(t.shape[1], row["constants"]["BLOCK"]) for t in (dqueries, dkeys)) + 1
    launch(row, (len(dqkv), programs), dqkv, dqueries, dkeys, dshared, dshared.shape[1], *of)


def narrow(kind, x, y, heads):
    row = find("heads_narrow", kind)
    launch(row, (len(y), cdiv(y.shape[1], row["constants"]["BLOCK"])), x, y, heads, x.shape[1] // heads, y.shape[1] // heads)


def reference(queries, keys, shared, heads, D, N, R, U, interleaved):
    """The contract of src/ops/latent.ts."""
    M = len(queries)
    queries, keys = queries.view(M, heads, N + R), keys.view(M, heads, N + U)
    halves = lambda t: torch.cat([t[..., 0::2], t[..., 1::2]], -1) if interleaved else t  # noqa: E731
    wide = lambda *parts: torch.nn.functional.pad(torch.cat(parts, -1), (0, D - sum(p.shape[-1] for p in parts)))  # noqa: E731
    k_turned = halves(shared[:, -R:])[:, None].expand(M, heads, R)
    q, k, v = wide(halves(queries[..., N:]), queries[..., :N]), wide(k_turned, keys[..., :N]), wide(keys[..., N:])
    return torch.stack([q, k, v], 1).view(M, -1)


def heads_of(kind, M, S, of):
    heads, D, N, R, U, _ = of
    case = Case(kind)
    queries, keys, shared = rnd(kind, M, heads * (N + R)), rnd(kind, M, heads * (N + U)), rnd(kind, M, S)
    qkv, dqkv = poison(kind, M, 3 * heads * D), rnd(kind, M, 3 * heads * D)
    forward(kind, queries, keys, shared, qkv, of)
    case.same("qkv", qkv, reference(queries, keys, shared, *of))
    inputs = [t.double().requires_grad_() for t in (queries, keys, shared)]
    reference(*inputs, *of).backward(dqkv.double())
    dqueries, dkeys, dshared = torch.full_like(queries, float("nan")), torch.full_like(keys, float("nan")), rnd(kind, M, S)
    before = dshared.clone()
    backward(kind, dqkv, dqueries, dkeys, dshared, of)
    case.same("dqueries", dqueries, inputs[0].grad.to(dqueries.dtype))
    case.same("dkeys", dkeys, inputs[1].grad.to(dkeys.dtype))
    case.near("dshared", dshared[:, -R:], inputs[2].grad[:, -R:])
    case.same("other columns", dshared[:, :-R], before[:, :-R])
    alone = before[:1].clone()
    backward(kind, dqkv[:1].contiguous(), dqueries[:1].contiguous(), dkeys[:1].contiguous(), alone, of)
    case.same("a row alone", alone, dshared[:1])
    for has, keeps in ((D, U), (U, D)):
        x, y = rnd(kind, M, heads * has), poison(kind, M, heads * keeps)
        narrow(kind, x, y, heads)
        each = x.view(M, heads, has)
        wanted = each[..., :keeps] if keeps <= has else torch.nn.functional.pad(each, (0, keeps - has))
        case.same(f"narrow {has} to {keeps}", y, wanted.reshape(M, -1))
    return case


# Heads, their width, plain and rotated features, those of values, interleaved; columns of the value with the shared key.
SHAPES = (((3, 64, 24, 16, 64, 1), 56), ((2, 256, 128, 64, 128, 0), 104), ((5, 128, 64, 24, 80, 1), 56), ((20, 256, 192, 64, 256, 1), 576))


def check():
    failed = 0
    for kind in ("f32", "ptr"):
        torch.manual_seed(int(time.time()))
        for of, S in SHAPES:
            case = heads_of(kind, 5 if INTERPRET else 700, S, of)
            failed += bool(case.wrong)
            print(f"{'FAIL' if case.wrong else 'ok  '} {kind} {of}: " + " ".join(f"{k} {e:.1e}" for k, e in case.errors.items()), *case.wrong, sep="; ", flush=True)
    sys.exit(1 if failed else 0)


def measure():
    """Microseconds, and of the bytes that have to move the share of 4.8 TB/s."""
    import triton

    kind, M, (of, S) = "ptr", 4096, SHAPES[-1]
    heads, D, N, R, U, _ = of
    queries, keys, shared, qkv = rnd(kind, M, heads * (N + R)), rnd(kind, M, heads * (N + U)), rnd(kind, M, S), poison(kind, M, 3 * heads * D)
    moved = 2 * M * (heads * (2 * N + R + U + 3 * D) + R)
    for name, run in (("forward", lambda: forward(kind, queries, keys, shared, qkv, of)), ("backward", lambda: backward(kind, qkv, queries, keys, shared, of))):
        us = 1000 * triton.testing.do_bench(run, return_mode="median")
        print(f"{name}: {us:.1f} us, {moved / us / 4.8e6:.2f}", flush=True)


if __name__ == "__main__":
    measure() if "--time" in sys.argv else check()
