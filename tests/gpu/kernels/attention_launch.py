"""How attention.py is launched, from Python: what src/device/cuda does, for tests and timings of the kernels alone.

The functions are the kernels of the contract (src/ops/attention.ts) by name; `kind` is tma, ptr or f32. Constants come from
the rows of attention_variants.py, grids from the top of attention.py. With TRITON_INTERPRET=1 the f32 variants run on the CPU
(its products of bf16 are wrong).
"""
import importlib
import os
import re
import sys

import torch
from triton import knobs
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../kernels/triton"))
from attention_variants import variants  # noqa: E402

knobs.language.default_fp_fusion = False  # as codegen.py compiles

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
DTYPE = {"tma": torch.bfloat16, "ptr": torch.bfloat16, "f32": torch.float32}
ROWS = list(variants())
POISONED = True  # what kernels hand to each other, before it is written
OVERRIDE = {}  # kernel -> row: for timings of other variants than those that are compiled


def find(kernel, kind, D, cap=0):
    """The row for heads of D: the exact one, else the narrowest that masks what a head has not."""
    rows = [row for row in ROWS if row["kernel"] == kernel and kind in row["kinds"] and row["constants"]["CAP"] == int(cap > 0) and (row["constants"]["HEAD_DIM"] == D or not row["constants"]["EXACT"])]
    return OVERRIDE.get(kernel) or min((row for row in rows if row["constants"]["HEAD_DIM"] >= D), key=lambda row: (-row["constants"]["EXACT"], row["constants"]["HEAD_DIM"]))


def as_typed(t, type):
    """A tensor as a row's signature says: by pointer or by descriptor."""
    block = re.match(r"tensordesc<\w+\[(\d+), (\d+)\],NVMMASharedLayout\(swizzle_byte_width=(\d+), element_bitwidth=(\d+)", type)
    if not block:
        return t
    rows, cols, swizzle, bits = map(int, block.groups())
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [rows, cols], NVMMASharedLayout(swizzle, bits, 2))


def parts_of(kernel, kind, D, cap, parts=0):
    """The rows that are launched, one after the other."""
    first = find(kernel, kind, D, cap)
    if kernel in OVERRIDE:
        return [first]
    same = {name: first["constants"][name] for name in ("HEAD_DIM", "EXACT", "CAP")}
    rows = [row for row in ROWS if row["kernel"] == kernel and kind in row["kinds"] and same.items() <= row["constants"].items()]
    return [row for row in rows if row["constants"].get("PARTS", 0) == parts] or rows


def launch(kernel, kind, heads, args, height="BM", parts=0):
    """Runs a kernel over all tiles of `height` rows of `heads` heads, or each of its parts; `args` may name more than it
    takes."""
    for row in parts_of(kernel, kind, args["D"], args["cap"], parts):
        launch_row(row, heads, args, height)


def launch_row(row, heads, args, height):
    function, constants = getattr(importlib.import_module(row["module"]), row["kernel"]), row["constants"]
    taken = {name: as_typed(args[name], type) for name, type in row["signature"].items()}
    function[(args["M"] // constants[height], heads)](**taken, **constants, num_warps=row["warps"], num_stages=row["stages"])


def splits_of(heads, kv_heads):
    """Shares of the query heads of a key head whose dk and dv are summed apart: as src/ops/attention.ts."""
    group = heads // kv_heads
    return max(n for n in (1, 2, 3, 4) if n == 1 or (group % n == 0 and group // n > 1))


def attention_forward(kind, qkv, bounds, out, lse, Q, C, D, scale, window, cap=0.0):
    args = dict(q_rows=qkv, kv_rows=qkv, bounds=bounds, out=out, lse=lse, M=qkv.shape[0], D=D, heads=Q, kv_heads=C, scale=scale, window=window, cap=cap)
    launch("attention_forward", kind, Q, args)


def attention_backward(kind, qkv, bounds, out, lse, dout, delta, dqkv, Q, C, D, scale, window, cap=0.0):
    args = dict(q_rows=qkv, kv_rows=qkv, do_rows=dout, bounds=bounds, out=out, lse=lse, delta=delta, dqkv=dqkv,
                M=qkv.shape[0], D=D, heads=Q, kv_heads=C, scale=scale, window=window, cap=cap)
    launch("attention_backward_q", kind, Q, args)
    launch_keys(kind, Q, C, args)


def launch_keys(kind, Q, C, args):
    splits = splits_of(Q, C)
    rows = parts_of("attention_backward_kv", kind, args["D"], args["cap"], int(splits > 1))
    divided = rows[0]["constants"]["PARTS"]
    splits = splits if divided else 1
    width = 2 * C * args["D"]
    parts = torch.empty((splits, args["M"], width) if divided else (1,), device=DEVICE)
    if POISONED:
        parts.fill_(float("nan"))
    args = args | dict(parts=parts, splits=splits)
    launch("attention_backward_kv", kind, C * splits, args, "BN", divided)
    if divided:
        sum_keys(kind, parts, args, Q, C, splits)


def sum_keys(kind, parts, args, Q, C, splits):
    """dk and dv as the sums of their parts."""
    row = next(row for row in ROWS if row["kernel"] == "attention_sum_keys" and kind in row["kinds"])
    function, constants, columns = importlib.import_module("attention").attention_sum_keys, row["constants"], parts.shape[2]
    grid = (args["M"], -(-columns // constants["BLOCK"]))
    function[grid](parts, args["dqkv"], args["M"], Q, C, args["D"], splits, **constants, num_warps=row["warps"])
