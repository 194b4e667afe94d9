"""What is compiled of fp8.py: for Hopper, and by pointers for Ada, whose PTX runs on what is later. No Triton is needed to read
it.

A row is what linear_variants.py says.
"""
from linear_variants import GROUPS, RANKS, forward_shapes, rank_block_backward, rank_block_forward

PRODUCT = {
    "tma": dict(BM=128, BN=256, BK=128, GROUP=16, DESC=1, FLAT=1),
    "ptr": dict(BM=128, BN=128, BK=64, GROUP=8, DESC=0, FLAT=0),
}
ARCH = {"tma": "sm_90a", "ptr": "sm_89"}
WARPS, STAGES = 8, 3
PARAMETERS = {
    "fp8_quantise": "x:*bf16 columns:*fp32 codes:*fp8e4nv scale:*fp32 K:i32",
    "turn": "codes:*u8 turned:*u8 N:i32 K:i32",
    "fp8_dequantise": "codes:*fp8e4nv scale:*fp32 out:*bf16 K:i32",
    "fp8_forward": "x:d x_scale:*fp32 w:d w_scale:*fp32 y:d bias:*bf16 residual:d s:d b:d scale:*fp32 ranks:*i32 tile_adapter:*i32 "
    "b_stride:i64 M:i32 N:i32 K:i32 first1:i32 first2:i32",
    "fp8_backward": "dy:d dy_scale:*fp32 w:d dx:d ds:d a:d ranks:*i32 tile_adapter:*i32 row_number:*i32 dropout:*i32 module:i32 "
    "a_stride:i64 M:i32 N:i32 K:i32",
}


def blocks_of(kernel, BM, BN, BK, RB):
    """Types and blocks of the tensor descriptors."""
    half = BN // 2
    shared = dict(w=("fp8e4nv", (BN, BK)))
    if kernel == "fp8_forward":
        return shared | dict(x=("fp8e4nv", (BM, BK)), y=("bf16", (BM, half)), residual=("bf16", (BM, half)), s=("bf16", (BM, RB)), b=("bf16", (1, half, RB)))
    return shared | dict(dy=("fp8e4nv", (BM, BK)), dx=("bf16", (BM, half)), ds=("bf16", (BM, RB)), a=("bf16", (1, RB, half)))


def variant(kernel, kind, warps, stages=1, **constants):
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    if "d" in signature.values():
        blocks = blocks_of(kernel, *(constants[name] for name in ("BM", "BN", "BK", "RB")))
        for name, (dtype, block) in blocks.items():
            signature[name] = f"tensordesc<{dtype}[{','.join(map(str, block))}]>" if constants["DESC"] else f"*{dtype}"
    return dict(module="fp8", kernel=kernel, kinds=[kind], arch=ARCH[kind], dtype="bf16", constants=constants, warps=warps, stages=stages, signature=signature)


def variants():
    """Every row of this family."""
    for kind, product in PRODUCT.items():
        for columns in (0, 1):
            yield variant("fp8_quantise", kind, 8, COLUMNS=columns, BLOCK=4096)
        yield variant("turn", kind, 4, BLOCK=64)
        yield variant("fp8_dequantise", kind, 4, BLOCK=2048)
        for bias, residual in ((0, 0), (1, 0), (0, 1), (1, 1)):
            yield variant("fp8_forward", kind, WARPS, STAGES, G=1, R=16, RB=16, **product, BIAS=bias, RESIDUAL=residual, LORA=0, WHOLE=1)
        yield variant("fp8_backward", kind, WARPS, STAGES, G=1, R=16, RB=16, **product, LORA=0)
        for R in RANKS[kind]:
            for G, bias, residual, whole in forward_shapes(kind):
                RB = rank_block_forward(R, whole, residual)
                yield variant("fp8_forward", kind, WARPS, STAGES, G=G, R=R, RB=RB, **product, BIAS=bias, RESIDUAL=residual, LORA=1, WHOLE=whole)
            for G in GROUPS:
                yield variant("fp8_backward", kind, WARPS, STAGES, G=G, R=R, RB=rank_block_backward(G, R), **product, LORA=1)
