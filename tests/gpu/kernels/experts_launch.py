"""How the kernels of experts are launched, from Python: what src/ops does, for tests and timings of the kernels alone.

Each function is a kernel of the contract; `kind` is tma, ptr (bf16) or f32. With TRITON_INTERPRET=1 the pointer variants run
on the CPU.
"""
import os
import sys
from dataclasses import dataclass

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../kernels/triton"))
import rows_launch as run  # noqa: E402
from rows_launch import DEVICE, INTERPRET, cdiv  # noqa: E402

SMS = 4 if INTERPRET else torch.cuda.get_device_properties(0).multi_processor_count
dtype_of = lambda kind: torch.float32 if kind == "f32" else torch.bfloat16  # noqa: E731


def find(kernel, kind, accepts=lambda constants: True, **constants):
    return run.find(kernel, kind, accepts, **constants)


def launch(row, grid, **args):
    """By name, as mlora does; None is any tensor."""
    some = next(t for t in args.values() if isinstance(t, torch.Tensor))
    run.launch(row, grid, *(some if args[name] is None else args[name] for name in row["signature"]))


@dataclass
class Routes:
    k: int
    E: int
    L: int
    height: int
    experts: torch.Tensor
    weights: torch.Tensor
    place: torch.Tensor
    source: torch.Tensor
    row_expert: torch.Tensor
    row_adapter: torch.Tensor
    first_row: torch.Tensor
    counts: torch.Tensor
    starts: torch.Tensor
    blocks: torch.Tensor

    @property
    def P(self):
        return self.source.numel()

    @property
    def tiles(self):
        return cdiv(self.P, self.height) + self.E


def ints(*shape):
    return torch.full(shape, -77, dtype=torch.int32, device=DEVICE)


def block(E):
    return lambda constants: constants["BLOCK"] >= E


def route(kind, logits, correction, bounds, tile_adapter, L, k, sigmoid=0, normalise=1, groups=1, kept=1, scaling=1.0):
    """All tables of a batch."""
    M, E = logits.shape
    T, P = M // 128, cdiv(M * k, 128) * 128
    height = find("experts_forward", kind, LORA=0)["constants"]["BM"]
    routes = Routes(k, E, L, height, ints(M, k), torch.full((M, k), float("nan"), device=DEVICE), ints(M, k), ints(P), ints(P), ints(P), ints(E + 1),
                    ints(L + 1, E), ints(L + 1, E), ints(E + 1 + 2 * (cdiv(P, height) + E)))
    begin = ints(T + 1, E)
    r = dict(experts=routes.experts, begin=begin, E=E, k=k, T=T)
    launch(find("route_choose", kind, block(E)), (M,), logits=logits, correction=correction, bounds=bounds, experts=routes.experts, weights=routes.weights, place=routes.place, E=E, k=k,
           sigmoid=sigmoid, normalise=normalise, has_correction=int(correction is not None), groups=groups, kept=kept, scaling=scaling)
    count = find("route_count", kind)
    across = cdiv(E, count["constants"]["EXPERTS"])
    launch(count, (T, across), **r)
    launch(find("route_scan", kind, block(E)), (1,), **r, first_row=routes.first_row, blocks=routes.blocks, height=height)
    launch(find("route_place", kind), (T + 1, across), **r, tile_adapter=tile_adapter, place=routes.place, source=routes.source,
           row_expert=routes.row_expert, row_adapter=routes.row_adapter, P=P)
    launch(find("route_tables", kind, block(E)), (L + 2,), **r, tile_adapter=tile_adapter, first_row=routes.first_row, counts=routes.counts, starts=routes.starts,
           blocks=routes.blocks, L=L, height=height)
    return routes


def route_backward(kind, routes, logits, dweights, dlogits, sigmoid=0, normalise=1, scaling=1.0):
    M, E = logits.shape
    launch(find("route_backward", kind, block(E)), (M,), logits=logits, experts=routes.experts, weights=routes.weights, dweights=dweights, dlogits=dlogits,
           E=E, k=routes.k, sigmoid=sigmoid, normalise=normalise, scaling=scaling)


@dataclass
class Adapters:
    """Tables of one group of linears in experts."""
    factors: torch.Tensor
    strides: torch.Tensor
    scale: torch.Tensor
    ranks: torch.Tensor
    columns: list  # of each linear
    most: int

    @property
    def G(self):
        return len(self.columns)

    @property
    def tables(self):
        first = [sum(self.columns[: g + 1]) for g in range(self.G)]
        N = first[-1]
        return dict(factors=self.factors, strides=self.strides, scale=self.scale, ranks=self.ranks, factors_stride=self.factors.stride(0),
                    strides_stride=self.strides.stride(0), scale_stride=self.scale.stride(0), ranks_stride=self.ranks.stride(0),
                    first1=first[0] if self.G > 1 else N, first2=first[1] if self.G > 2 else N, G=self.G)


NONE = dict(factors=None, strides=None, scale=None, ranks=None, factors_stride=0, strides_stride=0, scale_stride=0, ranks_stride=0, first1=0, first2=0, G=0)


def described(row, w):
    """w[E, N, K] as the kernel takes it."""
    flat = w.view(-1, w.shape[2])
    c = row["constants"]
    if not c["DESC"]:
        return flat
    box = [c["BN"], c["BK"]] if row["kernel"] == "experts_forward" else [c["BK"], c["BN"]]
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), box)


def product(kernel, kind, routes, gather, w, adapters, low, across, tensors):
    row = find(kernel, kind, LORA=int(adapters is not None))
    c, (E, N, K) = row["constants"], w.shape
    grid = min(SMS, routes.tiles * cdiv(across, c["BN"]))
    launch(row, (grid,), **tensors, w=described(row, w), source=routes.source, row_adapter=routes.row_adapter, blocks=routes.blocks, first_expert=0, last_expert=E,
           pitch=N, E=E, gathers=routes.k if gather else 0, W=low.shape[1] if low is not None else 0, N=N, K=K, **(adapters.tables if adapters else NONE))


def experts_forward(kind, routes, x, gather, w, bias, y, adapters=None, s=None):
    product("experts_forward", kind, routes, gather, w, adapters, s, w.shape[1], dict(x=x, y=y, bias=bias, has_bias=int(bias is not None), s=s))


def experts_backward(kind, routes, dy, gather, w, dx, adapters=None, ds=None):
    product("experts_backward", kind, routes, gather, w, adapters, ds, w.shape[2], dict(dy=dy, dx=dx, ds=ds))


def expert_low(kind, routes, x, gather, low, adapters, side):
    row = find("expert_low", kind)
    c = row["constants"]
    grid = (cdiv(routes.height, c["ROWS"]) * routes.tiles, adapters.G, cdiv(adapters.most, c["CB"]))
    launch(row, grid, x=x, low=low, source=routes.source, row_adapter=routes.row_adapter, blocks=routes.blocks, E=routes.E, height=routes.height,
           gathers=routes.k if gather else 0, side=side, W=low.shape[1], width=x.shape[1], **adapters.tables)


def expert_gram(kind, routes, x, gather, low, adapters, side, row_scale=None):
    row = find("expert_gram", kind)
    c = row["constants"]
    pitch = max(adapters.columns) if side else x.shape[1]
    if row_scale is not None:
        weigh, out = find("expert_weigh", kind), torch.full_like(low, float("nan"))
        launch(weigh, (cdiv(low.numel(), weigh["constants"]["BLOCK"]),), s=low, weights=row_scale, source=routes.source, out=out, P=low.shape[0], W=low.shape[1])
        low = out
    launch(row, (cdiv(pitch, c["BN"]) * cdiv(adapters.most, c["RB"]), routes.L * adapters.G, routes.E), x=x, low=low, source=routes.source, counts=routes.counts,
           starts=routes.starts, gathers=routes.k if gather else 0, E=routes.E, side=side, W=low.shape[1], width=x.shape[1], pitch=pitch, **adapters.tables)


@dataclass
class Shared:
    """Rows of the batch of adapters with a factor that all experts share."""
    tile_adapter: torch.Tensor
    low_at: torch.Tensor
    elements: int
    columns: int  # of the widest
    adapters: Adapters

    @property
    def tables(self):
        return dict(low_at=self.low_at, tile_adapter=self.tile_adapter, **self.adapters.tables)


def rows(name, kind, routes, shared, s, low, **more):
    row = find(name, kind)
    c, M = row["constants"], routes.place.shape[0]
    launch(row, (M // c["BM"], cdiv(shared.columns, c["CB"])), s=s, place=routes.place, low=low, W=s.shape[1], k=routes.k, **shared.tables, **more)


def low_gather(kind, routes, shared, s, low, weighs):
    rows("low_gather", kind, routes, shared, s, low, weights=routes.weights, weighs=int(weighs))


def low_spread(kind, routes, shared, low, s):
    rows("low_spread", kind, routes, shared, s, low)


def expert_act_forward(kind, routes, gate_up, act, interleaved=0, limit=0.0, alpha=1.0):
    row, (P, I) = find("expert_act_forward", kind, INTERLEAVED=interleaved), act.shape
    launch(row, (P, cdiv(I, row["constants"]["BLOCK"])), gate_up=gate_up, act=act, source=routes.source, I=I, limit=limit, alpha=alpha)


def expert_act_backward(kind, routes, dact, gate_up, dgate_up, dweights, interleaved=0, limit=0.0, alpha=1.0):
    row, (P, I) = find("expert_act_backward", kind, INTERLEAVED=interleaved), dact.shape
    launch(row, (P,), dact=dact, gate_up=gate_up, source=routes.source, weights=routes.weights, place=routes.place, dgate_up=dgate_up, dweights=dweights,
           pairs=routes.place.numel(), I=I, limit=limit, alpha=alpha)


def combine(kind, routes, y, weighs, start, out, shared=None, low=None, side=0):
    row, (M, H) = find("combine" if shared is None else "combine_adapted", kind), out.shape
    c, args = row["constants"], dict(y=y, place=routes.place, weights=routes.weights, start=start, out=out, k=routes.k, H=H, has_weights=int(weighs), has_start=int(start is not None))
    if shared is None:
        launch(row, (M, cdiv(H, c["BLOCK"])), **args)
    else:
        launch(row, (cdiv(H, c["BN"]), M // c["BM"]), **args, low=low, side=side, **shared.tables)


def bias_weight_grad(kind, routes, dout, bias, dweights):
    row, (M, H) = find("bias_weight_grad", kind), dout.shape
    launch(row, (M, routes.k), dout=dout, bias=bias, experts=routes.experts, dweights=dweights, k=routes.k, H=H)
