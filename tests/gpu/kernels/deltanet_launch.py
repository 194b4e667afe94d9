"""How the kernels of layers with the gated delta rule are launched, from Python: what src/ops does, for tests and timings.

`kind` is tma (bf16 on Hopper), ptr (bf16) or f32. With TRITON_INTERPRET=1 all run on the CPU."""
import torch

from rows_launch import cdiv, find, launch


def convolution_forward(kind, x, weight, bounds, y, bias=None):
    row, (M, C) = find("convolution_forward", kind), x.shape
    launch(row, (cdiv(M, row["constants"]["BM"]), cdiv(C, row["constants"]["BC"])), x, weight, weight if bias is None else bias, bounds, y, M, C, x.stride(0), int(bias is not None))


def convolution_backward(kind, dy, x, weight, bounds, dx, bias=None):
    row, (M, C) = find("convolution_backward", kind), x.shape
    launch(row, (cdiv(M, row["constants"]["BM"]), cdiv(C, row["constants"]["BC"])), dy, x, weight, weight if bias is None else bias, bounds, dx, M, C, x.stride(0), int(bias is not None))


def convolution_keep(kind, x, bounds, places, window, capacity):
    row, (M, C) = find("convolution_keep", kind), x.shape
    launch(row, (M, cdiv(C, row["constants"]["BC"])), x, bounds, places, window, C, x.stride(0), capacity)


def convolution_decode(kind, x, weight, places, window, y, capacity, bias=None):
    row, (M, C) = find("convolution_decode", kind), x.shape
    launch(row, (M, cdiv(C, row["constants"]["BC"])), x, weight, weight if bias is None else bias, places, window, y, C, x.stride(0), capacity, int(bias is not None))


def _gatednorm(name, kind, x, D, *args):
    row, M = find(name, kind, lambda constants: D == 128 or constants["EXACT"] == 0), x.shape[0]
    tensors = [t for t in args if isinstance(t, torch.Tensor)]
    launch(row, (cdiv(M, row["constants"]["BM"]), x.shape[1] // D), *tensors, M, x.shape[1] // D, D, *args[len(tensors) :])


def gatednorm_forward(kind, x, gate, weight, y, eps):
    _gatednorm("gatednorm_forward", kind, x, weight.shape[0], x, gate, weight, y, gate.stride(0), eps)


def gatednorm_backward(kind, dy, x, gate, weight, dx, dgate, eps):
    _gatednorm("gatednorm_backward", kind, x, weight.shape[0], dy, x, gate, weight, dx, dgate, gate.stride(0), dgate.stride(0), eps)


def _heads(name, kind, columns, *args, heads, kv_heads, D):
    row = find(name, kind)
    launch(row, (args[0].shape[0], cdiv(columns, row["constants"]["BLOCK"])), *args, heads, kv_heads, D)


def heads_split(kind, gated, y, **of):
    _heads("heads_split", kind, y.shape[1], gated, y, **of)


def heads_join(kind, dy, dgated, **of):
    _heads("heads_join", kind, dy.shape[1], dy, dgated, **of)


def heads_gate(kind, x, gated, y, **of):
    _heads("heads_gate", kind, y.shape[1], x, gated, y, **of)


def heads_gate_backward(kind, dy, x, gated, dx, **of):
    _heads("heads_gate_backward", kind, dx.shape[1], dy, x, gated, dx, **of)


def _find(name, kind, K, V, **constants):
    """The exact row for heads of this size, else the one that masks what a head has not."""
    exact = {"EXACT": 1} if kind != "f32" and (K, V) == (128, 128) else {"EXACT": 0}
    return find(name, kind, lambda constants: constants["KD"] >= max(K, V), **constants, **exact)


def poisoned(*shape, **of):
    return torch.full(shape, float("nan"), **of)


fresh = poisoned  # makes scratch; timings put torch.empty here


def _scanned(kind, mixed, gates, decay, bias, bounds, H, heads, K, V, kept=None):
    """What goes from chunk to chunk: vectors, T, P, N and the states before chunks."""
    M, like = mixed.shape[0], dict(device=mixed.device, dtype=mixed.dtype)
    vectors = fresh(12, heads, M, device=mixed.device, dtype=torch.float32)
    t, p, n, states = (fresh(*shape, **like) for shape in ((M, heads, 64), (M, heads, 64), (M, heads, V), (cdiv(M, 64), heads, V, K)))
    launch(_find("delta_prepare", kind, K, V), (cdiv(M, 64), heads, 2), mixed, gates, decay, bias, bounds, vectors, t, p, M, H, heads, K, V)
    row = _find("delta_scan", kind, K, V)
    places, state, capacity = kept or (bounds, vectors, 0)
    launch(row, (cdiv(V, row["constants"]["BV"]), heads, cdiv(M, 64)), mixed, bounds, vectors, t, n, states, places, state, M, H, heads, K, V, capacity)
    return vectors, t, p, n, states


def delta_forward(kind, mixed, gates, decay, bias, bounds, out, H, heads, K, V, kept=None):
    """`kept`: places, state and capacity."""
    M = mixed.shape[0]
    vectors, _, p, n, states = _scanned(kind, mixed, gates, decay, bias, bounds, H, heads, K, V, kept)
    launch(_find("delta_out", kind, K, V), (cdiv(M, 64), heads), mixed, bounds, vectors, p, n, states, out, M, H, heads, K, V)


def delta_backward(kind, mixed, gates, decay, bias, bounds, dout, dmixed, H, heads, K, V):
    M = mixed.shape[0]
    vectors, t, p, n, before = _scanned(kind, mixed, gates, decay, bias, bounds, H, heads, K, V)
    like = dict(device=mixed.device, dtype=mixed.dtype)
    after, dqk = fresh(*before.shape, **like), fresh(2, M, heads, K, **like)
    row = _find("delta_scan_backward", kind, K, V)
    launch(row, (cdiv(V, row["constants"]["BV"]), heads, cdiv(M, 64)), mixed, bounds, vectors, t, p, dout, dmixed, after, M, H, heads, K, V)
    made = bounds, vectors, t, p, n, dout, dmixed
    launch(_find("delta_chunk_backward", kind, K, V), (cdiv(M, 64), heads, 2), mixed, *made, M, H, heads, K, V)
    row = _find("delta_state_backward", kind, K, V)
    parts = row["constants"]["KD"] // row["constants"]["BK"]
    launch(row, (parts * cdiv(M, 64), heads, 2), mixed, *made, before, after, dqk, M, H, heads, K, V)
    row = find("delta_gates_backward", kind, PARTS=parts)
    launch(row, (cdiv(M, 64), cdiv(heads, row["constants"]["BH"])), gates, decay, bias, bounds, vectors, M, heads)
    row = _find("delta_unit_backward", kind, K, V)
    launch(row, (cdiv(M, row["constants"]["BM"]), H, 2), mixed, bounds, dqk, dmixed, M, H, heads, K, V)


def delta_decode(kind, mixed, gates, decay, bias, places, state, out, capacity, H, heads, K, V):
    row = _find("delta_decode", kind, K, V)
    launch(row, (mixed.shape[0], heads, cdiv(V, row["constants"]["BV"])), mixed, gates, decay, bias, places, state, out, H, heads, K, V, capacity)
