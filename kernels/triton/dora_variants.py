"""What is compiled of dora.py. No Triton is needed to read it.

A row is what linear_variants.py says. As of the memory-bound kernels, all are compiled for sm_80 and run on later chips too.
"""
from linear_variants import RANKS, rank_block

DTYPE = {"ptr": "bf16", "f32": "fp32"}
KINDS = {"ptr": ["tma", "ptr"], "f32": ["f32"]}
NORM = {"ptr": dict(BN=32, BK=64), "f32": dict(BN=32, BK=32)}

PARAMETERS = {
    "dora_norm": "w:c a:c b:c scale:*fp32 ranks:*i32 m:*fp32 gain:*fp32 inverse:*fp32 stale:*i32 a_stride:i64 b_stride:i64 m_stride:i64 "
    "g:i32 G:i32 first:i32 last:i32 N:i32 K:i32",
    "dora_forward": "z:c bias:c residual:c gain:*fp32 decomposed:*i32 y:c tile_adapter:*i32 N:i32",
    "dora_backward": "dy:c z:c gain:*fp32 inverse:*fp32 decomposed:*i32 dm:*fp32 tile_adapter:*i32 dm_stride:i64 L:i32 M:i32 N:i32",
}


def variant(kernel, kind, stages, **constants):
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{DTYPE[kind]}" if type == "c" else type for name, type in signature.items()}
    return dict(module="dora", kernel=kernel, kinds=KINDS[kind], arch="sm_80", dtype=DTYPE[kind], constants=constants, warps=4, stages=stages, signature=signature)


def variants():
    """Every row of this family."""
    for kind in KINDS:
        for R in RANKS[kind]:
            yield variant("dora_norm", kind, 4, R=R, RB=rank_block(R), **NORM[kind])
        for bias in (0, 1):
            for residual in (0, 1):
                yield variant("dora_forward", kind, 1, ROWS=16, BN=256, BIAS=bias, RESIDUAL=residual)
        yield variant("dora_backward", kind, 2, ROWS=64, BN=32)
