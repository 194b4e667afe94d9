"""Checks the rotation of a part of each head against float64 and the bits of rope.py, there and back. One command: python3
tests/gpu/kernels/rope_part.py; with TRITON_INTERPRET=1 on the CPU.
"""
import sys
import time

import torch

from rows_check import Case, rnd
from rows_launch import DEVICE, INTERPRET, cdiv, find, launch, rope_backward, rope_forward


def rotate(kind, x, positions, cos, sin, touched, D, back):
    row, R = find("rope_part", kind), cos.shape[1]
    launch(row, (len(x), cdiv(touched * R, row["constants"]["BLOCK"])), x, positions, cos, sin, touched, x.shape[1], D, R, back)


def rotated(kind, M, heads, D, R):
    case = Case(kind)
    x = rnd(kind, M, 3 * heads * D)
    positions = torch.randint(0, 50, (M,), device=DEVICE, dtype=torch.int32)
    angles = 6 * torch.rand(50, R, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    for back in (0, 1):
        y = x.clone()
        rotate(kind, y, positions, cos, sin, 2 * heads, D, back)
        of, got = x.double().view(M, -1, D), y.view(M, -1, D)
        c, s = (t[positions.long()].double()[:, None] for t in (cos, -sin if back else sin))
        lo, hi = of[:, : 2 * heads, :R], of[:, : 2 * heads, R : 2 * R]
        case.near(f"back {back}", got[:, : 2 * heads, : 2 * R], torch.cat([lo * c - hi * s, hi * c + lo * s], -1))
        case.same("other features", got[:, : 2 * heads, 2 * R :], x.view(M, -1, D)[:, : 2 * heads, 2 * R :])
        case.same("other heads", got[:, 2 * heads :], x.view(M, -1, D)[:, 2 * heads :])
        masks = x.clone()
        args = (kind, masks, positions, cos, sin, None)
        if back:
            rope_backward(*args, None, None, None, heads, heads, D, 0.0)
        else:
            rope_forward(*args, None, None, masks, heads, heads, D, 0.0)
        case.same("the bits of the kernels that mask", y, masks)
        few = x[2:3].clone()
        rotate(kind, few, positions[2:3].contiguous(), cos, sin, 2 * heads, D, back)
        case.same("a row alone", few, y[2:3])
    return case


failed = 0
for kind in ("f32", "ptr"):
    torch.manual_seed(int(time.time()))
    for shape in ((3, 64, 16), (20, 256, 32), (5, 128, 24)):
        case = rotated(kind, 7 if INTERPRET else 900, *shape)
        failed += bool(case.wrong)
        print(f"{'FAIL' if case.wrong else 'ok  '} {kind} {shape}: " + " ".join(f"{k} {e:.1e}" for k, e in case.errors.items()), *case.wrong, sep="; ", flush=True)
sys.exit(1 if failed else 0)
