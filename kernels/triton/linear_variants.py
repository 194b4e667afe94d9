"""What is compiled of linear.py and lora.py, and with which constants: the one place that says so. No Triton is needed to read
it.

A variant is a row as variants.py says.
Constants follow from (kind, G, R) by the functions below, which tests and launchers use too. `tma` is bf16 on sm_90a, `ptr`
bf16 by pointers on sm_80, `f32` for tests; f32 and the *_sum kernels are compiled for sm_80 alone, whose PTX also runs on later
chips.

Within one kind, what decides an order of sums (CHUNK, BN of up_grad, `part` of down) is the same for every R: an adapter
trained alone has a smaller padded rank than with others and must get the same bits.
"""

RANKS = {"tma": (16, 32, 64, 128, 256), "ptr": (16, 32, 64, 128, 256), "f32": (16, 64, 256)}  # padded ranks, by kind
GROUPS = (1, 2, 3)

CONFIG = {
    "tma": dict(
        linear=dict(BM=128, BN=256, BK=64, GROUP=16, DESC=1, FLAT=1, num_warps=8, num_stages=3),
        down=dict(BM=64, BK=64, num_warps=4, num_stages=4),
        up_grad=dict(BM=64, BN=128, CHUNK=8, num_warps=4, num_stages=4),
        down_grad=dict(BM=64, BK=128, CHUNK=4, num_warps=8, num_stages=3),
        part=1024,  # columns of x that one program of lora_down sums
    ),
    "ptr": dict(
        linear=dict(BM=128, BN=128, BK=32, GROUP=8, DESC=0, FLAT=0, num_warps=8, num_stages=4),
        down=dict(BM=64, BK=64, num_warps=4, num_stages=3),
        up_grad=dict(BM=64, BN=128, CHUNK=8, num_warps=8, num_stages=2),
        down_grad=dict(BM=64, BK=64, CHUNK=4, num_warps=4, num_stages=3),
        part=1024,
    ),
    "f32": dict(
        linear=dict(BM=64, BN=64, BK=32, GROUP=8, DESC=0, FLAT=0, num_warps=4, num_stages=2),
        down=dict(BM=32, BK=32, num_warps=4, num_stages=2),
        up_grad=dict(BM=32, BN=64, CHUNK=8, num_warps=4, num_stages=2),
        down_grad=dict(BM=32, BK=64, CHUNK=4, num_warps=4, num_stages=2),
        part=1024,
    ),
}
SUM_BLOCK = {"lora_down_sum": 512, "lora_up_grad_sum": 4096, "lora_down_grad_sum": 4096}
ARCH = {"tma": "sm_90a", "ptr": "sm_80", "f32": "sm_80"}
DTYPE = {"tma": "bf16", "ptr": "bf16", "f32": "fp32"}


def power_of_two(n):
    """The least power of two from n, at least 16: what a matrix product takes."""
    return max(16, 1 << (n - 1).bit_length())


def column_block(G, R):
    """CB: columns of G R that one program of lora_down and lora_down_grad makes."""
    return min(power_of_two(G * R), 128)


def rank_block(R):
    """RB of lora_up_grad and lora_up_grad_sum."""
    return min(R, 64)


def rank_block_forward(R, whole, residual):
    """RB of linear_forward: what shared memory holds next to the residual or the three products of a tile that is not whole."""
    return min(R, 64 if whole and not residual else 32)


def rank_block_backward(G, R):
    """RB of linear_backward: all G R at once where that is short."""
    return power_of_two(G * R) if power_of_two(G * R) <= 64 else min(R, 64)


def rows_of_sum(R):
    """ROWS of lora_up_grad_sum: 256 elements a program."""
    return 256 // rank_block(R)


def down_grad_config(kind, G, R):
    config = dict(CONFIG[kind]["down_grad"])
    if kind == "tma" and column_block(G, R) == 64:
        config["num_warps"] = 4  # 42 us instead of 54 for q, k, v of 4096 and rank 16
    return config


POINTERS = {name: f"*{kind}" for kind, names in {
    "i32": "ranks tile_adapter row_number dropout", "fp32": "scale scratch da db ds_part db_part",
}.items() for name in names.split()}
PARAMETERS = {
    "linear_forward": "x w y bias residual s b scale ranks tile_adapter b_stride M N K first1 first2",
    "linear_backward": "dy w dx ds a ranks tile_adapter row_number dropout module a_stride M N K",
    "lora_down": "x a s scratch ranks tile_adapter row_number dropout module a_stride M K part_blocks",
    "lora_down_sum": "s scratch parts size",
    "lora_up_grad": "dy s b db ds_part db_part scale ranks tile_adapter b_stride db_stride M N first1 first2",
    "lora_up_grad_sum": "ds db ds_part db_part scale ranks tile_adapter db_stride M N first1 first2",
    "lora_down_grad": "x ds da scratch ranks tile_adapter row_number dropout module da_stride M K",
    "lora_down_grad_sum": "da scratch ranks tile_adapter da_stride M K",
}
INTEGERS = set("M N K first1 first2 module parts size part_blocks".split())


def variant(kernel, kind, config, **constants):
    """One row; config may hold num_warps and num_stages."""
    constants = {**{k: v for k, v in config.items() if not k.startswith("num_")}, **constants}
    dtype = DTYPE[kind]
    signature = {}
    for name in PARAMETERS[kernel].split():
        signature[name] = POINTERS.get(name) or ("i64" if name.endswith("_stride") else "i32" if name in INTEGERS else f"*{dtype}")
    if f"*{dtype}" not in signature.values():
        dtype = "fp32"  # no tensor has the compute type: the same for all kinds
    if constants.get("DESC"):
        BM, BN, BK, RB = (constants[k] for k in ("BM", "BN", "BK", "RB"))
        forward = kernel == "linear_forward"
        blocks = dict(x=(BM, BK), w=(BN, BK), y=(BM, BN // 2), residual=(BM, BN // 2), s=(BM, RB), b=(1, BN // 2, RB)) if forward else dict(
            dy=(BM, BK), w=(BK, BN), dx=(BM, BN // 2), ds=(BM, RB), a=(1, RB, BN // 2))
        for name, block in blocks.items():
            signature[name] = f"tensordesc<{dtype}[{','.join(map(str, block))}]>"
    arch = "sm_80" if kernel.endswith("_sum") else ARCH[kind]
    module = "linear" if kernel.startswith("linear") else "lora"
    launch = dict(PART=CONFIG[kind]["part"]) if kernel == "lora_down" else {}
    return dict(module=module, kernel=kernel, kinds=[kind], launch=launch, arch=arch, dtype=dtype, constants=constants, warps=config.get("num_warps", 4), stages=config.get("num_stages", 1), signature=signature)


def whole_pays(kind):
    """Whether there are variants with WHOLE = 1 for two and three linears; where not, WHOLE = 0 is right for every boundary."""
    return kind == "tma"


def forward_shapes(kind):
    """(G, bias, residual, whole) that a layer has: the residual follows a lone linear; DoRA's product is bare."""
    for bias, residual in ((0, 0), (0, 1), (1, 1)):
        yield 1, bias, residual, 1
    for G in GROUPS[1:]:
        for whole in (0, 1) if whole_pays(kind) else (0,):
            for bias in (0, 1):
                yield G, bias, 0, whole


def variants():
    """Every variant of the family; the *_sum kernels are alike for tma and ptr."""
    for kind, config in CONFIG.items():
        linear = config["linear"]
        for bias, residual in ((0, 0), (1, 0), (0, 1), (1, 1)):
            yield variant("linear_forward", kind, linear, G=1, R=16, RB=16, BIAS=bias, RESIDUAL=residual, LORA=0, WHOLE=1)
        yield variant("linear_backward", kind, linear, G=1, R=16, RB=16, LORA=0)
        yield variant("lora_down_sum", kind, {}, BLOCK=SUM_BLOCK["lora_down_sum"])
        for R in RANKS[kind]:
            for G, bias, residual, whole in forward_shapes(kind):
                yield variant("linear_forward", kind, linear, G=G, R=R, RB=rank_block_forward(R, whole, residual), BIAS=bias, RESIDUAL=residual, LORA=1, WHOLE=whole)
            for G in GROUPS:
                CB, RB = column_block(G, R), rank_block(R)
                up, down_grad = config["up_grad"], down_grad_config(kind, G, R)
                yield variant("linear_backward", kind, linear, G=G, R=R, RB=rank_block_backward(G, R), LORA=1)
                yield variant("lora_down", kind, config["down"], G=G, R=R, CB=CB)
                yield variant("lora_up_grad", kind, up, G=G, R=R, RB=RB)
                yield variant("lora_up_grad_sum", kind, {}, G=G, R=R, RB=RB, ROWS=rows_of_sum(R), BN=up["BN"], CHUNK=up["CHUNK"], BLOCK=SUM_BLOCK["lora_up_grad_sum"])
                yield variant("lora_down_grad", kind, down_grad, G=G, R=R, CB=CB)
                yield variant("lora_down_grad_sum", kind, {}, G=G, R=R, CHUNK=down_grad["CHUNK"], BLOCK=SUM_BLOCK["lora_down_grad_sum"])
