"""What is compiled of linear.py and lora.py, and with which constants: the one place that says so. No Triton is needed to read
it.

A variant is a row as variants.py says. `tma` is bf16 on sm_90a, `ptr` bf16 by pointers on sm_80, `f32` for tests; f32 and the
*_sum kernels are compiled for sm_80 alone, whose PTX also runs on later chips.

Ranks are no constants. A launch takes the first variant whose block of ranks (RB) or of columns (CB) holds those of the widest
adapter, or the last one, which takes them in a loop (WIDE). Within one kind what decides an order of sums (CHUNK, BN of
up_grad, PART of down) is the same for all, so an adapter alone and next to a wider one gets the same bits.
"""

CONFIG = {
    "tma": dict(
        linear=dict(BM=128, BN=256, BK=64, GROUP=16, DESC=1, num_warps=8, num_stages=3),
        down=dict(BM=64, BK=64, num_warps=4, num_stages=4),
        up_grad=dict(BM=64, BN=128, CHUNK=8, num_warps=4, num_stages=4),
        down_grad=dict(BM=64, BK=128, CHUNK=4, num_warps=8, num_stages=3),
    ),
    "ptr": dict(
        linear=dict(BM=128, BN=128, BK=32, GROUP=8, DESC=0, num_warps=8, num_stages=4),
        down=dict(BM=64, BK=64, num_warps=4, num_stages=3),
        up_grad=dict(BM=64, BN=128, CHUNK=8, num_warps=8, num_stages=2),
        down_grad=dict(BM=64, BK=64, CHUNK=4, num_warps=4, num_stages=3),
    ),
    "f32": dict(
        linear=dict(BM=64, BN=64, BK=32, GROUP=8, DESC=0, num_warps=4, num_stages=2),
        down=dict(BM=32, BK=32, num_warps=4, num_stages=2),
        up_grad=dict(BM=32, BN=64, CHUNK=8, num_warps=4, num_stages=2),
        down_grad=dict(BM=32, BK=64, CHUNK=4, num_warps=4, num_stages=2),
    ),
}
PART = 1024  # columns of x that one program of lora_down sums
SUM_BLOCK, ADD_BLOCK = 256, 1024  # elements of s and ds, of da and db, that one program of a *_sum kernel adds at a time
# RB and WIDE. On Hopper the loop keeps tiles from overlapping (FLAT), so the blocks before it go as far as shared memory does.
RANKS_FORWARD = {"tma": ((16, 0), (64, 0), (64, 1)), "ptr": ((16, 0), (64, 1)), "f32": ((16, 1),)}
RANKS_BACKWARD = {"tma": ((16, 0), (32, 0), (64, 0), (64, 1)), "ptr": ((16, 0), (64, 1)), "f32": ((16, 1),)}
DIVIDED = {"tma": 32, "ptr": 32, "f32": 16}  # RB of linear_forward where WHOLE = 0: three products take registers
RANK_BLOCKS = {"tma": (16, 32, 64), "ptr": (16, 32, 64), "f32": (16,)}  # RB of lora_up_grad
COLUMN_BLOCKS = {"tma": (16, 32, 64, 128), "ptr": (16, 32, 64, 128), "f32": (32,)}  # CB of lora_down and lora_down_grad
MADE = (0, 1, 2, 3)  # what lora_down_grad reads: x itself, or what a norm or an activation made it of
ACTIVATION_BLOCKS = {"tma": (16, 64), "ptr": (16, 64), "f32": (32,)}  # CB of it with an activation, which is one linear's input
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}


def down_grad_config(kind, CB, made=0):
    config = dict(CONFIG[kind]["down_grad"])
    if kind == "tma" and CB == 64 and made < 2:
        config["num_warps"] = 4  # 42 us instead of 54 for q, k, v of 4096 and rank 16; with an activation they would spill
    return config


POINTERS = {name: f"*{kind}" for kind, names in {
    "i64": "factors", "i32": "ranks tile_adapter low_at row_number dropout", "fp32": "scale scratch ds_part db_part rstd weight",
}.items() for name in names.split()}
STRIDES = "factors_stride scale_stride ranks_stride"
PARAMETERS = {
    "linear_forward": f"x w y bias residual s low_at factors scale ranks tile_adapter {STRIDES} M N K first1 first2 G",
    "linear_backward": "dy w dx ds low_at factors ranks tile_adapter row_number dropout module factors_stride ranks_stride M N K G",
    "lora_down": "x s scratch low_at factors ranks tile_adapter row_number dropout module factors_stride ranks_stride M K low_size part_blocks G",
    "lora_down_sum": "s scratch low_at ranks tile_adapter ranks_stride low_size parts G",
    "lora_up_grad": f"dy s ds_part db_part low_at factors scale ranks tile_adapter {STRIDES} M N first1 first2 low_size pitch G",
    "lora_up_grad_sum": f"ds ds_part db_part low_at factors scale ranks tile_adapter {STRIDES} M N first1 first2 low_size pitch ds_programs db_programs G",
    "lora_down_grad": "x rstd weight ds scratch low_at factors ranks tile_adapter row_number dropout module factors_stride ranks_stride M K G",
    "lora_down_grad_sum": "scratch low_at factors ranks tile_adapter factors_stride ranks_stride M K G",
}
INTEGERS = set("M N K G first1 first2 module parts part_blocks pitch ds_programs db_programs".split())


def type_of(name, dtype):
    if name == "low_size":
        return "i64"
    return POINTERS.get(name) or ("i32" if name in INTEGERS or name.endswith("_stride") else f"*{dtype}")


def variant(kernel, kind, config, **constants):
    """One row; config may hold num_warps and num_stages."""
    constants = {**{k: v for k, v in config.items() if not k.startswith("num_")}, **constants}
    dtype = DTYPE[kind]
    signature = {name: type_of(name, dtype) for name in PARAMETERS[kernel].split()}
    if f"*{dtype}" not in signature.values():
        dtype = "fp32"  # no tensor has the compute type: the same for all kinds
    if constants.get("DESC"):
        BM, BN, BK = (constants[k] for k in ("BM", "BN", "BK"))
        forward = dict(x=(BM, BK), w=(BN, BK), y=(BM, BN // 2), residual=(BM, BN // 2))
        for name, block in (forward if kernel == "linear_forward" else dict(dy=(BM, BK), w=(BK, BN), dx=(BM, BN // 2))).items():
            signature[name] = f"tensordesc<{dtype}[{','.join(map(str, block))}]>"
    arch = "sm_80" if kernel.endswith("_sum") else ARCH[kind]
    module = "linear" if kernel.startswith("linear") else "lora"
    launch = dict(PART=PART) if kernel == "lora_down" else {}
    return dict(module=module, kernel=kernel, kinds=[kind], launch=launch, arch=arch, dtype=dtype, constants=constants, warps=config.get("num_warps", 4), stages=config.get("num_stages", 1), signature=signature)


def forward_rows(kind, flat):
    """Constants of a forward product's variants, but for the sizes of its blocks. A tile that is not whole has no residual."""
    for bias, residual in ((0, 0), (1, 0), (0, 1), (1, 1)):
        shape = dict(BIAS=bias, RESIDUAL=residual)
        for RB, wide in RANKS_FORWARD[kind]:
            yield dict(**shape, LORA=1, RB=RB, WIDE=wide, WHOLE=1, FLAT=flat & ~wide)
        if not residual:
            yield dict(**shape, LORA=1, RB=DIVIDED[kind], WIDE=1, WHOLE=0, FLAT=0)
        yield dict(**shape, LORA=0, RB=16, WIDE=0, WHOLE=1, FLAT=flat)


def variants():
    """Every variant of the family; the *_sum kernels are alike for tma and ptr."""
    for kind, config in CONFIG.items():
        linear, up = config["linear"], config["up_grad"]
        flat = linear["DESC"]
        for constants in forward_rows(kind, flat):
            yield variant("linear_forward", kind, linear, **constants)
        for RB, wide in RANKS_BACKWARD[kind]:
            yield variant("linear_backward", kind, linear, LORA=1, RB=RB, WIDE=wide, FLAT=flat & ~wide)
        yield variant("linear_backward", kind, linear, LORA=0, RB=16, WIDE=0, FLAT=flat)
        for RB in RANK_BLOCKS[kind]:
            yield variant("lora_up_grad", kind, up, RB=RB)
        for CB in COLUMN_BLOCKS[kind]:
            yield variant("lora_down", kind, config["down"], CB=CB)
        for made in MADE:
            for CB in COLUMN_BLOCKS[kind] if made < 2 else ACTIVATION_BLOCKS[kind]:
                yield variant("lora_down_grad", kind, down_grad_config(kind, CB, made), MADE=made, CB=CB)
        yield variant("lora_down_sum", kind, {}, BLOCK=SUM_BLOCK)
        yield variant("lora_up_grad_sum", kind, {}, BN=up["BN"], CHUNK=up["CHUNK"], BLOCK=SUM_BLOCK, DB_BLOCK=ADD_BLOCK)
        yield variant("lora_down_grad_sum", kind, {}, CHUNK=config["down_grad"]["CHUNK"], BLOCK=ADD_BLOCK)
