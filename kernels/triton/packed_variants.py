"""What is compiled of packed.py. No Triton is needed to read it.

A row is what linear_variants.py says. As of the memory-bound kernels, all are compiled for sm_80 and run on later chips too.
"""
DTYPE = {"ptr": "bf16", "f32": "fp32"}
KINDS = {"ptr": ["tma", "ptr"], "f32": ["f32"]}
ALL = ["tma", "ptr", "f32"]

PARAMETERS = {
    "int8_quantise": "x:c codes:*i8 scale:*fp32 K:i32",
    "int8_dequantise": "codes:*i8 scale:*fp32 out:c K:i32",
    "nf4_quantise": "x:c codes:*u8 absmax:*fp32 size:i64",
    "nf4_mean": "absmax:*fp32 mean:*fp32 blocks:i32",
    "nf4_nest": "absmax:*fp32 mean:*fp32 nested:*fp32 codes:*u8 blocks:i32",
    "nf4_dequantise": "codes:*u8 absmax:*u8 nested:*fp32 mean:*fp32 out:c size:i64",
}


def variant(kernel, warps, kind=None, **constants):
    """One row; kind is None where no tensor has the compute type."""
    dtype = DTYPE[kind or "f32"]
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module="packed", kernel=kernel, kinds=KINDS[kind] if kind else ALL, arch="sm_80", dtype=dtype, constants=constants, warps=warps, stages=1, signature=signature)


def variants():
    """Every row of this family."""
    for kind in KINDS:
        yield variant("int8_quantise", 8, kind, BLOCK=4096)
        yield variant("int8_dequantise", 4, kind, BLOCK=2048)
        yield variant("nf4_quantise", 4, kind, BLOCKS=32)
        yield variant("nf4_dequantise", 4, kind, BLOCK=4096)
    yield variant("nf4_mean", 8, BLOCK=4096)
    yield variant("nf4_nest", 4)
