"""What is compiled of attention.py, attention_hopper.py and attention_hopper_keys.py: each kernel for every kind and head
size. No Triton is needed to read it.

A row is what variants.py says. A launcher takes the row of its kernel and kind with HEAD_DIM = D and EXACT = 1; where there is
none, that with EXACT = 0 and the least HEAD_DIM >= D; CAP is 1 where scores have a cap, PARTS where query heads are divided and
there is such a row, or no other. Its grid follows from BM and BN.
"""

from variants import row

KERNELS = ("attention_forward", "attention_backward_q", "attention_backward_kv")
# "wide": on Hopper, but by attention.py; "any": heads of other sizes, and scores with a cap, in bf16.
KINDS = {"tma": ["tma"], "wide": ["tma"], "ptr": ["ptr"], "any": ["tma", "ptr"], "f32": ["f32"]}
# HEAD_DIM, EXACT and CAP.
HEADS = {
    "tma": ((64, 1, 0), (128, 1, 0), (256, 1, 0)),
    "wide": ((512, 1, 0),),
    "ptr": ((64, 1, 0), (128, 1, 0), (256, 1, 0), (512, 1, 0)),
    "any": ((128, 0, 0), (256, 0, 1)),
    "f32": ((128, 0, 0), (256, 0, 0), (512, 0, 0), (256, 0, 1)),
}

# BM, BN, warps (of "tma": those of one group of two), stages.
CONFIG = {
    ("tma", "attention_forward"): {64: (128, 128, 4, 3), 128: (128, 128, 4, 2), 256: (128, 64, 4, 2)},
    ("tma", "attention_backward_q"): {64: (128, 128, 4, 3), 128: (128, 64, 4, 3), 256: (128, 32, 4, 2)},
    ("tma", "attention_backward_kv"): {64: (64, 128, 4, 3), 128: (64, 128, 4, 3), 256: (64, 64, 4, 2)},
    ("wide", "attention_forward"): {512: (64, 32, 8, 2)},
    ("wide", "attention_backward_q"): {512: (64, 32, 8, 1)},
    ("wide", "attention_backward_kv"): {512: (32, 64, 8, 1)},
    ("ptr", "attention_forward"): {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 4, 2), 512: (32, 32, 8, 1)},
    ("ptr", "attention_backward_q"): {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (64, 32, 8, 1), 512: (32, 16, 8, 2)},
    ("ptr", "attention_backward_kv"): {64: (64, 64, 4, 2), 128: (32, 64, 4, 2), 256: (16, 64, 8, 2), 512: (16, 32, 8, 1)},
    **{("any", kernel): {128: (32, 32, 4, 1), 256: (32, 32, 8, 1)} for kernel in KERNELS},
    **{("f32", kernel): {128: (32, 32, 4, 1), 256: (16, 32, 4, 1), 512: (16, 16, 8, 1)} for kernel in KERNELS},
}
REGISTERS = 240  # of each thread of a warp group that computes, where another loads: two groups and the loader share 65536

PARAMETERS = {
    "attention_forward": "q_rows:c kv_rows:c bounds:*i32 out:c lse:*fp32 M:i32 D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32 cap:fp32",
    "attention_backward_q": "q_rows:c kv_rows:c do_rows:c bounds:*i32 out:c lse:*fp32 delta:*fp32 dqkv:c M:i32 D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32 cap:fp32",
    "attention_backward_kv": "q_rows:c kv_rows:c do_rows:c bounds:*i32 lse:*fp32 delta:*fp32 dqkv:c parts:*fp32 M:i32 D:i32 heads:i32 kv_heads:i32 splits:i32 scale:fp32 window:i32 cap:fp32",
}


def boxes(kernel, head_dim, BM, BN):
    """Descriptors of a kernel of attention_hopper.py: parameter -> type. What a warp group reads or writes for itself has 64
    rows."""
    keys = kernel == "attention_backward_kv"
    rows = dict(q_rows=BM if keys else 64, do_rows=BM if keys else 64, kv_rows=64 if keys else BN, **{"attention_forward": {"out": 64}}.get(kernel, {"dqkv": 64}))
    types = {name: descriptor("bf16", height, head_dim, 128) for name, height in rows.items()}
    return types | ({name: descriptor("fp32", 1, BM, 0) for name in ("lse", "delta")} if keys else {})


def descriptor(dtype, rows, cols, swizzle):
    """Gluon's type of a descriptor; how its tile lies in shared memory is part of it."""
    layout = f"swizzle_byte_width={swizzle}, element_bitwidth={16 if dtype == 'bf16' else 32}, rank=2, transposed=False, fp4_padded=False, cga_layout=[]"
    return f"tensordesc<{dtype}[{rows}, {cols}],NVMMASharedLayout({layout})>"


def parts(kind, kernel, head_dim):
    """MAKES and PARTS of attention_backward_kv: dk and dv in one launch (0), or each in its own (1, 2); of others nothing."""
    if kernel != "attention_backward_kv":
        return ({},)
    makes = (1, 2) if head_dim == 512 and kind in ("wide", "ptr") else (0,)
    divided = {"wide": (1,), "tma": (0, 1) if head_dim == 256 else (0,)}.get(kind, (0,))
    return [dict(MAKES=own, PARTS=part) for part in divided for own in makes]


def variant(kind, kernel, head_dim, exact, cap, part={}, config=None):
    """One row; config may replace that of CONFIG."""
    BM, BN, warps, stages = config or CONFIG[kind, kernel][head_dim]
    dtype, hopper = "fp32" if kind == "f32" else "bf16", kind == "tma"
    arch = "sm_90a" if kind in ("tma", "wide") else "sm_80"
    signature = dict(parameter.split(":") for parameter in PARAMETERS[kernel].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    constants = dict(BM=BM, BN=BN, HEAD_DIM=head_dim, EXACT=exact, CAP=cap, **part)
    if hopper:
        signature |= {name: type for name, type in boxes(kernel, head_dim, BM, BN).items() if name in signature}
        constants |= dict(STAGES=stages, REGISTERS=REGISTERS)
    module = "attention" if not hopper else "attention_hopper_keys" if kernel == "attention_backward_kv" else "attention_hopper"
    return dict(module=module, kernel=kernel, kinds=KINDS[kind], arch=arch, dtype=dtype,
                constants=constants, warps=warps, stages=1 if hopper else stages, signature=signature)


def variants():
    """Every row of the family."""
    for kind, sizes in HEADS.items():
        for head_dim, exact, cap in sizes:
            for kernel in KERNELS:
                for part in parts(kind, kernel, head_dim):
                    yield variant(kind, kernel, head_dim, exact, cap, part)
    yield row("attention", "attention_sum_keys", "ptr", "parts:*fp32 dqkv:c M:i32 heads:i32 kv_heads:i32 D:i32 splits:i32", BLOCK=1024)
