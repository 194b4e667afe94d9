"""What is compiled of the memory-bound kernels: embed, pool, rmsnorm, rope, swiglu, xent, adamw and fill. No Triton is needed
to read it.

A row is what linear_variants.py says, with `kinds`, the kinds of launch that it serves, and `module`, the file of its kernel.
None of these kernels uses tensor cores, so all are compiled for sm_80 and run on later chips too. A launcher takes the row of
its kernel and kind; where there are several it compares a constant: BLOCK >= H of rmsnorm (the least), HALF and EXACT of rope,
NORM, RESIDUAL and COPY. In f32, for tests, the most general one does.
"""

DTYPE = {"ptr": "bf16", "f32": "fp32"}
ALL = ["tma", "ptr", "f32"]
KINDS = {"ptr": ["tma", "ptr"], "f32": ["f32"]}

NORM_BLOCKS = {"ptr": ((1024, 1), (4096, 4), (8192, 8), (16384, 16)), "f32": ((16384, 16),)}  # widest row and warps
# HALF and EXACT: heads of 64, of 128, of 256, of 512, and all up to 256.
HALVES = {"ptr": ((32, 1), (64, 1), (128, 1), (256, 1), (128, 0)), "f32": ((128, 0), (256, 0))}

PARAMETERS = {
    "rows_gather": "x:*i32 rows:*i32 y:*i32 W:i32",
    "rows_scatter": "dy:*i32 rows:*i32 dx:*i32 W:i32",
    "pool_forward": "x:c bounds:*i32 y:c H:i32",
    "pool_backward": "dy:c bounds:*i32 dx:c H:i32",
    "rmsnorm_forward": "x:c weight:*fp32 residual:c y:c rstd:*fp32 H:i32 eps:fp32",
    "rmsnorm_backward": "dy:c x:c weight:*fp32 rstd:*fp32 residual:c dx:c H:i32",
    "rope_forward": "qkv:c positions:*i32 cos:*fp32 sin:*fp32 q_weight:*fp32 k_weight:*fp32 out:c heads:i32 kv_heads:i32 touched:i32 D:i32 eps:fp32",
    "rope_backward": "dqkv:c positions:*i32 cos:*fp32 sin:*fp32 qkv:c q_weight:*fp32 k_weight:*fp32 heads:i32 kv_heads:i32 D:i32 eps:fp32",
    "swiglu_forward": "gate_up:c h:c I:i32",
    "swiglu_backward": "dh:c gate_up:c dgate_up:c I:i32",
    "geglu_forward": "gate:c up:c h:c I:i32 gate_stride:i32 up_stride:i32",
    "geglu_backward": "dh:c gate:c up:c dgate:c dup:c I:i32 gate_stride:i32 up_stride:i32 dgate_stride:i32 dup_stride:i32",
    "xent": "logits:c targets:*i32 weights:*fp32 loss:*fp32 hit:*i32 V:i32 classes:i32 grad:i32",
    "grad_norm": "grads:*fp32 tensors:*i32 part:*fp32 P:i64",
    "grad_norm_sum": "part:*fp32 squares:*fp32 size:i32",
    "adamw_step": "params:*fp32 grads:*fp32 m:*fp32 v:*fp32 copy:*bf16 factors:*i32 table:*fp32 P:i64",
    "random_fill": "out:c size:i64 seed:i32 scale:fp32",
}


def variant(module, kernel, warps, kind=None, **constants):
    """One row; kind is None where no tensor has the compute type."""
    dtype = DTYPE[kind or "f32"]
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module=module, kernel=kernel, kinds=KINDS[kind] if kind else ALL, arch="sm_80", dtype=dtype, constants=constants, warps=warps, stages=1, signature=signature)


def variants():
    """Every row of these families."""
    yield variant("embed", "rows_gather", 4, BLOCK=2048)
    yield variant("embed", "rows_scatter", 4, BLOCK=2048)
    yield variant("adamw", "grad_norm", 2, SLICES=32, COLUMNS=256, ROWS=256)
    yield variant("adamw", "grad_norm_sum", 4, SLICES=32, BLOCK=32)
    for copy in (0, 1):
        yield variant("adamw", "adamw_step", 4, BLOCK=1024, COPY=copy)
    for kind in KINDS:
        for block, warps in NORM_BLOCKS[kind]:
            for residual in (0, 1):
                yield variant("rmsnorm", "rmsnorm_forward", warps, kind, BLOCK=block, RESIDUAL=residual)
                yield variant("rmsnorm", "rmsnorm_backward", warps, kind, BLOCK=block, RESIDUAL=residual)
        for half, exact in HALVES[kind]:
            for norm, pairs, warps in ((0, 4096, 8), (1, 1024, 4)):
                yield variant("rope", "rope_forward", warps, kind, HALF=half, HEADS=pairs // half, EXACT=exact, NORM=norm)
                yield variant("rope", "rope_backward", warps, kind, HALF=half, HEADS=pairs // half, EXACT=exact, NORM=norm)
        yield variant("pool", "pool_forward", 4, kind, BLOCK=512)
        yield variant("pool", "pool_backward", 4, kind, BLOCK=512)
        yield variant("swiglu", "swiglu_forward", 4, kind, BLOCK=1024)
        yield variant("swiglu", "swiglu_backward", 4, kind, BLOCK=1024)
        yield variant("geglu", "geglu_forward", 4, kind, BLOCK=1024)
        for up in (0, 1):
            yield variant("geglu", "geglu_backward", 4, kind, BLOCK=1024, UP=up)
        yield variant("xent", "xent", 16, kind, LANES=512, BLOCK=8192)
        yield variant("fill", "random_fill", 4, kind, BLOCK=4096)
