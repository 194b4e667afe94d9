"""How the memory-bound kernels are launched, from Python: what src/device/cuda does, for tests and timings of the kernels
alone.

Each function is a kernel of the contract (src/ops) by its name; `kind` is ptr (bf16) or f32. Constants come from
the rows of variants.py, grids from the tops of the kernels' files. With TRITON_INTERPRET=1 all run on the CPU.
"""
import importlib
import os
import sys

import torch
import triton
import triton.language as tl

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../kernels/triton"))
import adamw  # noqa: E402
import adamw8  # noqa: E402
from variants import variants  # noqa: E402

triton.knobs.language.default_fp_fusion = False  # as codegen.py compiles

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
DTYPE = {"tma": torch.bfloat16, "ptr": torch.bfloat16, "f32": torch.float32}
ROWS = variants()
OVERRIDE = {}  # kernel -> (constants, warps): for timings of other variants than those that are compiled


adamw_of_params = adamw.adamw_step


@triton.jit
def adamw_of_p(p, grads, m, v, copy, factors, table, P, BLOCK: tl.constexpr, COPY: tl.constexpr):
    """Triton's own launcher, which is not what mlora uses, cannot bind a parameter of the name `params`."""
    adamw_of_params(p, grads, m, v, copy, factors, table, P, BLOCK, COPY)


adamw8_of_params = adamw8.adamw8_step


@triton.jit
def adamw8_of_p(p, grads, m, v, m_absmax, v_absmax, codes, copy, factors, table, F, BLOCKS: tl.constexpr, COPY: tl.constexpr):
    """The same of moments of 8 bits."""
    adamw8_of_params(p, grads, m, v, m_absmax, v_absmax, codes, copy, factors, table, F, BLOCKS, COPY)


WRAPPED = {"adamw_step": adamw_of_p, "adamw8_step": adamw8_of_p}


def cdiv(a, b):
    return -(-a // b)


def find(kernel, kind, accepts=lambda constants: True, **constants):
    """The first row of a kernel and kind with these constants."""
    for row in ROWS:
        c = row["constants"]
        if row["kernel"] == kernel and kind in row["kinds"] and constants.items() <= c.items() and accepts(c):
            other, warps = OVERRIDE.get(kernel, ({}, row["warps"]))
            return {**row, "constants": {**c, **other}, "warps": warps}
    raise LookupError(f"{kernel} {kind} {constants}")


def launch(row, grid, *args):
    """Runs a row; a missing tensor is any other, which the kernel must not touch."""
    function = WRAPPED.get(row["kernel"]) or getattr(importlib.import_module(row["module"]), row["kernel"])
    constants = {**row["constants"], **({"PAIRS": 0} if INTERPRET and "PAIRS" in row["constants"] else {})}
    function[grid](*args, **constants, num_warps=row["warps"], num_stages=row["stages"])


def words(t):
    return t.view(torch.int32)


def rows_gather(kind, x, rows, y):
    row, W = find("rows_gather", kind), words(x).shape[1]
    launch(row, (y.shape[0], cdiv(W, row["constants"]["BLOCK"])), words(x), rows, words(y), W)


def nf4_dequantise(kind, codes, absmax, nested, mean, out, size, step, out_step, weights):
    row = find("nf4_dequantise", kind)
    launch(row, (cdiv(size, row["constants"]["BLOCK"]), 1, weights), codes, absmax, nested, mean, out, size, step, out_step)


def int8_dequantise(kind, codes, scale, out, N, K, step, out_step, weights):
    row = find("int8_dequantise", kind)
    launch(row, (N, cdiv(K, row["constants"]["BLOCK"]), weights), codes, scale, out, K, step, out_step)


def mxfp4_expand(kind, codes, scale, out, size, step, out_step, weights):
    row = find("mxfp4_expand", kind)
    launch(row, (cdiv(size, row["constants"]["BLOCK"]), 1, weights), codes, scale, out, size, step, out_step)


def fp8_quantise(x, columns, codes, scale):
    """The rows of both kinds are alike."""
    M, K = x.shape
    row = find("fp8_quantise", "tma", lambda c: c["CHUNKS"] == 0 or c["CHUNKS"] * c["BLOCK"] >= K, COLUMNS=int(columns is not None))
    launch(row, (M,), x, scale if columns is None else columns, codes, scale, K)


def fp8_pack(x, exponents, codes):
    launch(find("fp8_pack", "tma"), (x.shape[0],), x, exponents, codes, x.shape[1])


def nf4_exponents(absmax, nested, mean, exponents, K):
    launch(find("nf4_exponents", "tma"), (exponents.numel(),), absmax, nested, mean, exponents, K)


def nf4_codes(codes, absmax, nested, mean, exponents, out):
    row = find("nf4_codes", "tma")
    launch(row, (cdiv(out.numel(), row["constants"]["BLOCK"]),), codes, absmax, nested, mean, exponents, out, out.numel(), out.shape[1])


def nf4_turned(codes, absmax, nested, mean, exponents, turned, N, K, stride):
    row = find("nf4_turned", "tma")
    grid = cdiv(K, row["constants"]["TK"]), cdiv(N, row["constants"]["TN"])
    launch(row, grid, codes, absmax, nested, mean, exponents, turned, N, K, stride)


def fp8_swiglu(gate_up, codes, scale):
    (M, I), held = codes.shape, lambda c: c["CHUNKS"] * c["BLOCK"] >= codes.shape[1]  # noqa: E731
    launch(find("fp8_swiglu", "tma", held), (M,), gate_up, codes, scale, I)


def fp8_swiglu_backward(dh, gate_up, columns, codes, scale):
    (M, I), held = dh.shape, lambda c: c["CHUNKS"] * c["BLOCK"] >= dh.shape[1]  # noqa: E731
    launch(find("fp8_swiglu_backward", "tma", held), (M,), dh, gate_up, columns, codes, scale, I)


def fp8_expand(codes, exponents, out, K, step, out_step, weights):
    row = find("fp8_expand", "ptr")
    launch(row, (exponents.numel(), cdiv(K, row["constants"]["BLOCK"]), weights), codes, exponents, out, K, step, out_step)


def rows_fetch(kind, x, rows, y, programs):
    launch(find("rows_fetch", kind), (programs,), words(x), rows, words(y), y.shape[0], words(x).shape[1])


def rows_scatter(kind, dy, rows, dx):
    row, W = find("rows_scatter", kind), words(dy).shape[1]
    launch(row, (dy.shape[0], cdiv(W, row["constants"]["BLOCK"])), words(dy), rows, words(dx), W)


def cache_write(kind, qkv, places, pages, cache, Q, C, D):
    row, W = find("cache_write", kind), words(cache).shape[1]
    launch(row, (qkv.shape[0], cdiv(W, row["constants"]["BLOCK"])), words(qkv), places, pages, words(cache), W, words(qkv).shape[1] - W)


def attention_decode(kind, qkv, cache, pages, bounds, out, Q, C, D, scale, window, cap=0.0, sinks=None):
    """As src/ops/decode.ts chooses."""
    rows = [row["constants"] for row in ROWS if row["kernel"] == "attention_decode" and kind in row["kinds"]]
    exact = any(c["HEAD_DIM"] == D and c["EXACT"] for c in rows)
    alone = Q == C and any(c["HEAD_DIM"] == D and c["BM"] == 1 for c in rows)
    row = find("attention_decode", kind, lambda c: c["HEAD_DIM"] == D if exact else c["HEAD_DIM"] >= D, EXACT=int(exact), BM=1 if alone else 16)
    grid = (qkv.shape[0], C, cdiv(Q // C, row["constants"]["BM"]))
    launch(row, grid, qkv, cache, pages, bounds, bounds if sinks is None else sinks, out, D, Q, C, scale, window, cap, int(sinks is not None))


def attention_sink(kind, out, lse, sinks, bounds):
    row, (M, Q) = find("attention_sink", kind), (out.shape[0], sinks.numel())
    launch(row, (M // row["constants"]["ROWS"], Q), out, lse, sinks, bounds, M, out.shape[1] // Q)


def pool(kernel, kind, given, bounds, out, P):
    row, H = find(kernel, kind), given.shape[1]
    launch(row, (P, cdiv(H, row["constants"]["BLOCK"])), given, bounds, out, H)


def pool_forward(kind, x, bounds, y):
    pool("pool_forward", kind, x, bounds, y, y.shape[0])


def pool_backward(kind, dy, bounds, dx):
    pool("pool_backward", kind, dy, bounds, dx, dy.shape[0])


def rmsnorm_forward(kind, x, weight, residual, y, rstd, eps):
    M, H = x.shape
    row = find("rmsnorm_forward", kind, lambda c: c["BLOCK"] >= H, RESIDUAL=int(residual is not None))
    launch(row, (M,), x, weight, y if residual is None else residual, y, rstd, H, eps)


def rmsnorm_backward(kind, dy, x, weight, rstd, residual, dx):
    M, H = x.shape
    row = find("rmsnorm_backward", kind, lambda c: c["BLOCK"] >= H, RESIDUAL=int(residual is not None))
    launch(row, (M,), dy, x, weight, rstd, dx if residual is None else residual, dx, H)


def rope_row(kernel, kind, D, R, norm):
    fits = lambda c: c["HALF"] == D // 2 == R if c["EXACT"] else c["HALF"] >= D // 2  # noqa: E731
    return find(kernel, kind, fits, NORM=int(norm))


def rope_forward(kind, qkv, positions, cos, sin, scale, q_weight, k_weight, out, Q, C, D, eps):
    R, scales = cos.shape[1], cos if scale is None else scale
    row = rope_row("rope_forward", kind, D, R, q_weight is not None)
    touched = Q + C if out.data_ptr() == qkv.data_ptr() else Q + 2 * C
    weights = (cos, cos) if q_weight is None else (q_weight, k_weight)
    launch(row, (qkv.shape[0], cdiv(touched, row["constants"]["HEADS"])), qkv, positions, cos, sin, scales, *weights, out, Q, C, touched, D, R, int(scale is not None), eps)


def rope_backward(kind, dqkv, positions, cos, sin, scale, qkv, q_weight, k_weight, Q, C, D, eps):
    R, scales = cos.shape[1], cos if scale is None else scale
    row = rope_row("rope_backward", kind, D, R, q_weight is not None)
    optional = (dqkv, cos, cos) if q_weight is None else (qkv, q_weight, k_weight)
    launch(row, (dqkv.shape[0], cdiv(Q + C, row["constants"]["HEADS"])), dqkv, positions, cos, sin, scales, *optional, Q, C, D, R, int(scale is not None), eps)


def geglu_forward(kind, gate, up, h):
    row, (M, I) = find("geglu_forward", kind), h.shape
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), gate, up, h, I, gate.stride(0), up.stride(0))


def geglu_backward(kind, dh, gate, up, dgate, dup):
    row, (M, I) = find("geglu_backward", kind, UP=int(dup is not None)), dh.shape
    to = dgate if dup is None else dup
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), dh, gate, up, dgate, to, I, gate.stride(0), up.stride(0), dgate.stride(0), to.stride(0))


def swiglu_forward(kind, gate_up, h):
    row, (M, I) = find("swiglu_forward", kind), h.shape
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), gate_up, h, I)


def swiglu_backward(kind, dh, gate_up, dgate_up):
    row, (M, I) = find("swiglu_backward", kind), dh.shape
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), dh, gate_up, dgate_up, I)


def add_to(kind, x, y):
    row = find("add_to", kind)
    launch(row, (cdiv(y.numel(), row["constants"]["BLOCK"]),), x, y, y.numel())


def gate_forward(kind, x, gate, y):
    row = find("gate_forward", kind)
    launch(row, (cdiv(y.numel(), row["constants"]["BLOCK"]),), x, gate, y, y.numel())


def gate_backward(kind, dy, x, gate, dx, dgate):
    row = find("gate_backward", kind)
    launch(row, (cdiv(dy.numel(), row["constants"]["BLOCK"]),), dy, x, gate, dx, dgate, dy.numel())


def spans_row(name, kind, *widths):
    return find(name, kind, lambda c: c["BLOCK"] >= max(widths))


def spans_forward(kind, x, first, second, y, rstd, eps):
    (M, W), A, B = x.shape, len(first), len(second)
    launch(spans_row("spans_forward", kind, A, B, W - A - B), (M, 3), x, first, second, y, rstd, M, W, A, B, eps)


def spans_backward(kind, dy, x, first, second, rstd):
    (M, W), A, B = x.shape, len(first), len(second)
    launch(spans_row("spans_backward", kind, A, B), (M, 2), dy, x, first, second, rstd, M, W, A, B)


def xent(kind, logits, classes, targets, weights, sharpness, loss, hit, grad, scale=1.0, cap=0.0):
    row = find("xent", kind, SHAPED=int(scale != 1 or cap > 0))
    launch(row, (logits.shape[0],), logits, targets, weights, sharpness, loss, hit, logits.shape[1], classes, grad, scale, cap)


def rows_multiply(kind, x, factor, y):
    row = find("rows_multiply", kind)
    launch(row, (cdiv(x.numel(), row["constants"]["BLOCK"]),), x, factor, y, x.numel())


def grad_norm(kind, grads, tensors, squares):
    """Of one adapter. The scratch is full of NaN, to show that all of it is written."""
    row, total, S = find("grad_norm", kind), find("grad_norm_sum", kind), tensors.shape[0]
    slices = row["constants"]["SLICES"]
    part = torch.full((S, slices), float("nan"), device=DEVICE)
    launch(row, (slices, S), grads, tensors, part)
    launch(total, (cdiv(S, total["constants"]["BLOCK"]),), part, squares, S)


def adamw_step(kind, params, grads, m, v, copy, factors, table):
    """Of one adapter."""
    P = params.shape[0]
    row = find("adamw_step", kind, COPY=int(copy is not None))
    launch(row, (cdiv(P, row["constants"]["BLOCK"]),), params, grads, m, v, params if copy is None else copy, factors, table, P)


def adamw8_step(kind, params, grads, m, v, m_absmax, v_absmax, codes, copy, factors, table):
    """Of one adapter."""
    F = factors.shape[0]
    row = find("adamw8_step", kind, COPY=int(copy is not None))
    moments = m, v, m_absmax, v_absmax, codes
    launch(row, (cdiv(F, row["constants"]["BLOCKS"]),), params, grads, *moments, params if copy is None else copy, factors, table, F)


def random_fill(kind, out, seed, scale):
    row, size = find("random_fill", kind), out.numel()
    signed = seed - (1 << 32) if seed >= 1 << 31 else seed
    launch(row, (cdiv(size, row["constants"]["BLOCK"]),), out, size, signed, scale)


def dora_norm(kind, w, pool, vectors, first_column, stale):
    """`pool`: linear_pool.Pool."""
    K = w.shape[1]
    classes = [row for row in ROWS if row["kernel"] == "dora_norm" and kind in row["kinds"]]
    row = next((row for row in classes if row["constants"]["RB"] >= pool.most), classes[-1])
    strides = pool.factors.stride(0), vectors.stride(0), pool.scale.stride(0), pool.ranks.stride(0)
    for g in range(pool.G):
        first, last = first_column[g : g + 2]
        programs = min(cdiv(last - first, row["constants"]["BN"]), max(16, cdiv(2048, pool.L)))
        launch(row, (pool.L, programs), w, pool.factors, vectors, pool.scale, pool.ranks, stale, *strides, g, first, last, K)


def vera(kind, kernel, side, pool, vectors, which, projection):
    """vera_expand or vera_reduce of every linear."""
    row = find(kernel, kind, SIDE=side)
    strides = pool.factors.stride(0), vectors.stride(0), pool.ranks.stride(0)
    for g in range(pool.G):
        columns = pool.K if side == 0 else pool.columns[g]
        launch(row, (pool.L, 64), pool.factors, vectors, pool.ranks, which, projection, *strides, g, columns)


def dora_forward(kind, z, bias, residual, vectors, decomposed, y, tile_adapter):
    M, N = y.shape
    row = find("dora_forward", kind, BIAS=int(bias is not None), RESIDUAL=int(residual is not None))
    grid = (M // row["constants"]["ROWS"], cdiv(N, row["constants"]["BN"]))
    launch(row, grid, z, y if bias is None else bias, y if residual is None else residual, vectors, decomposed, y, tile_adapter, vectors.stride(0), decomposed.stride(0), N)


def dora_backward(kind, dy, z, vectors, decomposed, tile_adapter):
    M, N = dy.shape
    row = find("dora_backward", kind)
    launch(row, (cdiv(N, row["constants"]["BN"]), M // 128), dy, z, vectors, decomposed, tile_adapter, vectors.stride(0), decomposed.stride(0), M, N)


def value_norm_row(kernel, kind, D):
    return find(kernel, kind, lambda c: c["HEAD_DIM"] >= D)


def value_norm_forward(kind, x, y, Q, C, D, is_key, eps):
    heads = Q + (1 if is_key else 2) * C
    launch(value_norm_row("value_norm_forward", kind, D), (x.shape[0], Q + 2 * C), x, y, heads, Q, C, Q if is_key else Q + C, D, eps)


def value_norm_backward(kind, dy, x, dx, Q, C, D, is_key, eps):
    heads = Q + (1 if is_key else 2) * C
    launch(value_norm_row("value_norm_backward", kind, D), (x.shape[0], heads), dy, x, dx, heads, Q, C, Q if is_key else Q + C, D, eps)


def columns_copy(kind, source, to, adds):
    from32, to32 = (int(kind != "f32" and t.dtype == torch.float32) for t in (source, to))
    row, (M, W) = find("columns_copy", kind, ADDS=int(adds), FROM32=from32, TO32=to32), to.shape
    launch(row, (M, cdiv(W, row["constants"]["BLOCK"])), source, to, W, source.stride(0), to.stride(0))


def table_forward(kind, x, ids, token_row, s, low_at, factors, scale, ranks, tile_adapter):
    row, (M, H) = find("table_forward", kind), x.shape
    strides = factors.stride(0), scale.stride(0), ranks.stride(0)
    launch(row, (M, cdiv(H, row["constants"]["BLOCK"])), x, ids, token_row, s, low_at, factors, scale, ranks, tile_adapter, *strides, H)


def rows_sum(kind, from_, at, runs, factors, ranks, width):
    row = find("rows_sum", kind)
    blocks = cdiv(width, row["constants"]["BLOCK"]) if width else 1
    launch(row, (runs.shape[0], blocks), from_, at, runs, factors, ranks, width, factors.stride(0), ranks.stride(0))


def columns(kind, kernel, logits, s, low_at, tokens, ranks, tile_adapter, most):
    row, (M, V) = find(kernel, kind), logits.shape
    launch(row, (M, cdiv(most, row["constants"]["BLOCK"])), logits, s, low_at, tokens, ranks, tile_adapter, V, tokens.stride(0), ranks.stride(0))


def gradients_add(kind, x, y):
    row = find("gradients_add", kind)
    launch(row, (cdiv(x.numel(), row["constants"]["BLOCK"]),), x, y, x.numel())
