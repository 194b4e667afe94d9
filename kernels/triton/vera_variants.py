"""What is compiled of vera.py. No Triton is needed to read it.

A row is what variants.py says. All are compiled for sm_80 and run on later chips too.
"""
DTYPE = {"ptr": "bf16", "f32": "fp32"}
KINDS = {"ptr": ["tma", "ptr"], "f32": ["f32"]}
SIDES = {"vera_expand": (dict(BI=8, BJ=256), dict(BI=64, BJ=16)), "vera_reduce": (dict(BI=4, BJ=256), dict(BI=64, BJ=16))}

TABLES = "vector:*fp32 ranks:*i32 which:*i32 projection:*i32"
NUMBERS = "vector_stride:i64 g:i32 G:i32 rows:i32 ld:i32"
PARAMETERS = {
    "vera_expand": f"factor:c {TABLES} factor_stride:i64 {NUMBERS}",
    "vera_reduce": f"grad:*fp32 {TABLES} grad_stride:i64 {NUMBERS}",
}


def variant(kernel, kinds, dtype, **constants):
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module="vera", kernel=kernel, kinds=kinds, arch="sm_80", dtype=dtype, constants=constants, warps=4, stages=1, signature=signature)


def variants():
    """Every row of this family."""
    for side, blocks in enumerate(SIDES["vera_expand"]):
        for kind in KINDS:
            yield variant("vera_expand", KINDS[kind], DTYPE[kind], SIDE=side, **blocks)
    for side, blocks in enumerate(SIDES["vera_reduce"]):
        yield variant("vera_reduce", [kind for kinds in KINDS.values() for kind in kinds], "fp32", SIDE=side, **blocks)
