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
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../kernels/triton"))
from attention_variants import variants  # noqa: E402

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
DTYPE = {"tma": torch.bfloat16, "ptr": torch.bfloat16, "f32": torch.float32}
ROWS = list(variants())
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


def launch(kernel, kind, heads, args, height="BM"):
    """Runs a kernel over all tiles of `height` rows of `heads` heads, or each of its parts; `args` may name more than it
    takes."""
    first = find(kernel, kind, args["D"], args["cap"])
    same = {name: first["constants"][name] for name in ("HEAD_DIM", "EXACT", "CAP")}
    parts = [row for row in ROWS if row["kernel"] == kernel and kind in row["kinds"] and same.items() <= row["constants"].items()]
    for row in [first] if kernel in OVERRIDE else parts:
        launch_row(row, kernel, heads, args, height)


def launch_row(row, kernel, heads, args, height):
    function, constants = getattr(importlib.import_module(row["module"]), kernel), row["constants"]
    taken = {name: as_typed(args[name], type) for name, type in row["signature"].items()}
    function[(args["M"] // constants[height], heads)](**taken, **constants, num_warps=row["warps"], num_stages=row["stages"])


def attention_forward(kind, qkv, bounds, out, lse, Q, C, D, scale, window, cap=0.0):
    args = dict(q_rows=qkv, kv_rows=qkv, bounds=bounds, out=out, lse=lse, M=qkv.shape[0], D=D, heads=Q, kv_heads=C, scale=scale, window=window, cap=cap)
    launch("attention_forward", kind, Q, args)


def attention_backward(kind, qkv, bounds, out, lse, dout, delta, dqkv, Q, C, D, scale, window, cap=0.0):
    args = dict(q_rows=qkv, kv_rows=qkv, do_rows=dout, bounds=bounds, out=out, lse=lse, delta=delta, dqkv=dqkv,
                M=qkv.shape[0], D=D, heads=Q, kv_heads=C, scale=scale, window=window, cap=cap)
    launch("attention_backward_q", kind, Q, args)
    launch("attention_backward_kv", kind, C, args, "BN")
