"""How the kernels of Mamba 2's layers are launched, from Python: what src/ops does, for tests and timings.

`kind` is ptr (bf16) or f32. With TRITON_INTERPRET=1 all run on the CPU."""
import torch

from rows_launch import cdiv, find, launch


def groupnorm_row(name, kind, D):
    return find(name, kind, lambda constants: constants["BLOCK"] >= D)


def groupnorm_forward(kind, x, gate, weight, y, groups, eps):
    D = x.shape[1] // groups
    launch(groupnorm_row("groupnorm_forward", kind, D), (x.shape[0], groups), x, gate, weight, y, groups, D, gate.stride(0), eps)


def groupnorm_backward(kind, dy, x, gate, weight, dx, dgate, groups, eps):
    D = x.shape[1] // groups
    row = groupnorm_row("groupnorm_backward", kind, D)
    launch(row, (x.shape[0], groups), dy, x, gate, weight, dx, dgate, groups, D, gate.stride(0), dgate.stride(0), eps)


def squaredrelu_forward(kind, x, y):
    row, (M, I) = find("squaredrelu_forward", kind), x.shape
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), x, y, I)


def squaredrelu_backward(kind, dy, x, dx):
    row, (M, I) = find("squaredrelu_backward", kind), x.shape
    launch(row, (M, cdiv(I, row["constants"]["BLOCK"])), dy, x, dx, I)


def expert_square_forward(kind, x, act, source):
    row, (P, I) = find("expert_square_forward", kind), x.shape
    launch(row, (P, cdiv(I, row["constants"]["BLOCK"])), x, act, source, I)


def expert_square_backward(kind, dact, x, source, weights, place, dx, dweights):
    row, (P, I) = find("expert_square_backward", kind), x.shape
    launch(row, (P,), dact, x, source, weights, place, dx, dweights, place.numel(), I)


def _find(name, kind, P, S):
    """The exact row for heads of this size, else the first that masks what they have not."""
    exact = int(kind == "ptr" and (P, S) == (64, 128))
    small = lambda constants: max(P, S) > 32 or constants["PD"] == 32  # noqa: E731
    return find(name, kind, lambda constants: constants["PD"] >= P and constants["SD"] >= S and small(constants), EXACT=exact)


def _blocks(row, P, S):
    return cdiv(P, row["constants"]["BP"]) * cdiv(S, row["constants"]["BS"])


def _scanned(kind, mixed, steps, vectors, bounds, limits, N, G, P, S, kept=None):
    """What the steps come to, the products of B and C, and the states before chunks."""
    M, like = mixed.shape[0], dict(device=mixed.device)
    nan = lambda *shape, dtype=torch.float32: torch.full(shape, float("nan"), dtype=dtype, **like)  # noqa: E731
    made, scores, states = nan(2, N, M), nan(M, G, 64), nan(cdiv(M, 64), N, P, S, dtype=mixed.dtype)
    row = find("space_steps", kind)
    launch(row, (cdiv(M, 64), cdiv(N, row["constants"]["BH"])), steps, vectors["decay"], vectors["bias"], bounds, made, M, N, steps.stride(0), *limits)
    launch(_find("space_scores", kind, P, S), (cdiv(M, 64), G), mixed, bounds, scores, M, N, G, P, S)
    places, state, capacity = kept or (bounds, made, 0)
    row = _find("space_scan", kind, P, S)
    launch(row, (cdiv(M, 64), N, _blocks(row, P, S)), mixed, bounds, made, states, places, state, M, N, G, P, S, capacity)
    return made, scores, states


def forward(kind, mixed, steps, vectors, bounds, out, limits, N, G, P, S, kept=None):
    """`vectors`: decay, bias and skip; `limits`: of steps; `kept`: places, state and capacity."""
    M = mixed.shape[0]
    made, scores, states = _scanned(kind, mixed, steps, vectors, bounds, limits, N, G, P, S, kept)
    launch(_find("space_out", kind, P, S), (cdiv(M, 64), N), mixed, bounds, made, vectors["skip"], scores, states, out, M, N, G, P, S)


def backward(kind, mixed, steps, vectors, bounds, dout, dmixed, dsteps, limits, N, G, P, S):
    M = mixed.shape[0]
    made, scores, before = _scanned(kind, mixed, steps, vectors, bounds, limits, N, G, P, S)
    after = torch.full_like(before, float("nan"))
    row = _find("space_scan_backward", kind, P, S)
    launch(row, (cdiv(M, 64), N, _blocks(row, P, S)), mixed, bounds, made, dout, after, M, N, G, P, S)
    given = (mixed, steps, *vectors.values(), bounds, made, scores, before, after, dout, dmixed, dsteps)
    launch(_find("space_values_backward", kind, P, S), (cdiv(M, 64), N), *given, M, N, G, P, S, steps.stride(0), dsteps.stride(0), *limits)
    row = _find("space_keys_backward", kind, P, S)
    parts = cdiv(N // G, row["constants"]["HEADS"])
    sums = torch.full((parts, M, 2, G, S), float("nan"), device=mixed.device)
    launch(row, (cdiv(M, 64), G * parts, cdiv(S, row["constants"]["BS"])), mixed, bounds, made, before, after, dout, sums, M, N, G, P, S)
    row, size = find("space_sum_backward", kind), 2 * G * S
    launch(row, (cdiv(M, row["constants"]["BM"]), cdiv(size, row["constants"]["BLOCK"])), bounds, sums, dmixed, M, parts, N * P, N * P + size)


def decode(kind, mixed, steps, vectors, places, state, out, capacity, limits, N, G, P, S):
    row = _find("space_decode", kind, P, S)
    launch(row, (mixed.shape[0], N, cdiv(P, row["constants"]["BP"])), mixed, steps, *vectors.values(), places, state, out, N, G, P, S, steps.stride(0), capacity, *limits)
