"""What is compiled: every variant of every kernel, and with which constants. The one table; no Triton is needed to read it.

A row: module and kernel (file and function), kinds (what launches it: "tma" is bf16 on Hopper, "ptr" bf16 from Ampere on, "f32"
any GPU), arch that it is compiled for, dtype, constants, warps, stages, signature (parameter -> Triton's type, constants left
out), launch (numbers that a launcher needs and the kernel does not). Rows of several kinds that would be compiled alike are
one.
"""
from importlib import import_module
from pathlib import Path


def variants():
    """All rows of the files *_variants.py, in the order of their names, each row once."""
    merged = {}
    for family in sorted(path.stem for path in Path(__file__).parent.glob("?*_variants.py")):
        for row in import_module(family).variants():
            key = (row["module"], row["kernel"], row["arch"], row["dtype"], row["warps"], row["stages"], *row["constants"].items(), *row["signature"].items())
            if key in merged:
                merged[key]["kinds"] += [kind for kind in row["kinds"] if kind not in merged[key]["kinds"]]
            else:
                merged[key] = dict(row, kinds=list(row["kinds"]), launch=row.get("launch", {}))
    return list(merged.values())
