"""What is compiled of attention.py: each kernel for every kind and head size. No Triton is needed to read it.

A row is what variants.py says. A launcher takes the row of its kernel and kind with HEAD_DIM = D and EXACT = 1; where there is none,
one with EXACT = 0 and HEAD_DIM >= D. Its grid follows from BM and BN.
"""

KINDS = {"tma": ["tma"], "ptr": ["ptr"], "any": ["tma", "ptr"], "f32": ["f32"]}  # "any": heads of other sizes, in bf16
HEADS = {"tma": ((64, 1), (128, 1)), "ptr": ((64, 1), (128, 1)), "any": ((128, 0),), "f32": ((128, 0),)}  # HEAD_DIM and EXACT

# BM, BN, warps, stages of each head size.
CONFIG = {
    ("tma", "attention_forward"): {64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    ("tma", "attention_backward_q"): {64: (64, 64, 4, 3), 128: (128, 64, 8, 3)},
    ("tma", "attention_backward_kv"): {64: (128, 64, 4, 2), 128: (64, 64, 4, 2)},
    ("ptr", "attention_forward"): {64: (128, 64, 4, 3), 128: (128, 64, 8, 2)},
    ("ptr", "attention_backward_q"): {64: (64, 64, 4, 2), 128: (64, 64, 4, 2)},
    ("ptr", "attention_backward_kv"): {64: (64, 64, 4, 2), 128: (32, 64, 4, 2)},
    **{(kind, kernel): {128: (32, 32, 4, 1)} for kind in ("any", "f32") for kernel in ("attention_forward", "attention_backward_q", "attention_backward_kv")},
}
DELTA_ROWS = 32

PARAMETERS = {
    "attention_forward": "q_rows:c kv_rows:c bounds:*i32 out:c lse:*fp32 M:i32 D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32",
    "attention_delta": "out:c dout:c delta:*fp32 M:i32 D:i32 heads:i32",
    "attention_backward_q": "q_rows:c kv_rows:c do_rows:c bounds:*i32 lse:*fp32 delta:*fp32 dqkv:c M:i32 D:i32 heads:i32 kv_heads:i32 scale:fp32 window:i32",
}
PARAMETERS["attention_backward_kv"] = PARAMETERS["attention_backward_q"]


def variant(kind, kernel, head_dim, exact):
    """One row."""
    BM, BN, warps, stages = CONFIG[kind, kernel][head_dim]
    dtype, desc = "fp32" if kind == "f32" else "bf16", kind == "tma"
    boxes = {"q_rows": BM, "do_rows": BM, "kv_rows": BN} if desc else {}
    signature = {}
    for parameter in PARAMETERS[kernel].split():
        name, type = parameter.split(":")
        signature[name] = f"tensordesc<{dtype}[{boxes[name]},{head_dim}]>" if name in boxes else f"*{dtype}" if type == "c" else type
    constants = dict(BM=BM, BN=BN, HEAD_DIM=head_dim, EXACT=exact, DESC=int(desc))
    return dict(module="attention", kernel=kernel, kinds=KINDS[kind], arch="sm_90a" if desc else "sm_80", dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def delta_variant(kind, head_dim, exact):
    """One row of attention_delta, which uses no tensor cores: the same for tma and ptr."""
    dtype, constants = "fp32" if kind == "f32" else "bf16", dict(BM=DELTA_ROWS, HEAD_DIM=head_dim, EXACT=exact)
    signature = dict(parameter.split(":") for parameter in PARAMETERS["attention_delta"].split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module="attention", kernel="attention_delta", kinds=KINDS[kind], arch="sm_80", dtype=dtype, constants=constants, warps=4, stages=1, signature=signature)


def variants():
    """Every row of the family."""
    for kind, sizes in HEADS.items():
        for head_dim, exact in sizes:
            yield delta_variant(kind, head_dim, exact)
            for kernel in ("attention_forward", "attention_backward_q", "attention_backward_kv"):
                yield variant(kind, kernel, head_dim, exact)
