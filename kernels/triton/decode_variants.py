"""What is compiled of decode.py: for every kind and head size, as attention.py's. No Triton is needed to read it.

A row is what variants.py says. A launcher takes the row of its kind with HEAD_DIM = D and EXACT = 1; where there is none, one
with EXACT = 0 and HEAD_DIM >= D. All are compiled for sm_80 and run on later chips too.
"""

DTYPE = {"ptr": "bf16", "f32": "fp32"}
KINDS = {"ptr": ["tma", "ptr"], "f32": ["f32"]}
HEADS = {"ptr": ((64, 1), (128, 1), (256, 1), (512, 1), (128, 0), (256, 0)), "f32": ((128, 0), (256, 0), (512, 0))}  # HEAD_DIM and EXACT

PARAMETERS = {
    "cache_write": "qkv:*i32 places:*i32 cache:*i32 W:i32 skip:i32",
    "attention_decode": "qkv:c cache:c bounds:*i32 out:c D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32 cap:fp32",
}


def variant(kernel, kinds, dtype, **constants):
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module="decode", kernel=kernel, kinds=kinds, arch="sm_80", dtype=dtype, constants=constants, warps=4, stages=1, signature=signature)


def variants():
    """Every row of the family."""
    yield variant("cache_write", [kind for kinds in KINDS.values() for kind in kinds], "fp32", BLOCK=2048)
    for kind, sizes in HEADS.items():
        for head_dim, exact in sizes:
            yield variant("attention_decode", KINDS[kind], DTYPE[kind], BN=64, HEAD_DIM=head_dim, EXACT=exact)
