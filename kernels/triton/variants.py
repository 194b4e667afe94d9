"""What is compiled: every variant of every kernel, and with which constants. The one table; no Triton is needed to read it.

A row: module and kernel (file and function), kinds (what launches it: "tma" is bf16 on Hopper, "ptr" bf16 from Ampere on, "f32"
any GPU), arch that it is compiled for, dtype, constants, warps, stages, signature (parameter -> Triton's type, constants left
out), launch (numbers that a launcher needs and the kernel does not). Rows of several kinds that would be compiled alike are
one.
"""
import attention_variants
import decode_variants
import dora_variants
import fp8_variants
import linear_variants
import packed_variants
import rows_variants
import vera_variants

FAMILIES = (linear_variants, attention_variants, decode_variants, rows_variants, dora_variants, vera_variants, packed_variants, fp8_variants)


def variants():
    """All rows, each once, in the order of the families."""
    merged = {}
    for family in FAMILIES:
        for row in family.variants():
            key = (row["module"], row["kernel"], row["arch"], row["dtype"], row["warps"], row["stages"], *row["constants"].items(), *row["signature"].items())
            if key in merged:
                merged[key]["kinds"] += [kind for kind in row["kinds"] if kind not in merged[key]["kinds"]]
            else:
                merged[key] = dict(row, kinds=list(row["kinds"]), launch=row.get("launch", {}))
    return list(merged.values())
