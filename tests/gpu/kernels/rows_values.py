"""Values of attention that are normalised, keys and values that layers share, and weights in few bits, against float64."""
import torch

import rows_launch as run
from rows_cases import elsewhere
from rows_check import Case, floats, poison, rnd
from rows_launch import DEVICE


def values(kind, small):
    case = Case(kind)
    for Q, C, D in ((4, 2, 64), (2, 1, 200)) if small else ((8, 2, 256), (32, 4, 512), (8, 1, 256), (4, 2, 64), (3, 1, 200)):
        M, eps = 3 if small else 333, 1e-6
        for is_key in (False, True):
            x, dy = rnd(kind, M, (Q + (1 if is_key else 2) * C) * D, scale=2), rnd(kind, M, (Q + 2 * C) * D)
            x64 = x.double().requires_grad_()
            heads = x64.view(M, -1, D)
            v = heads[:, Q : Q + C] if is_key else heads[:, Q + C :]
            y64 = torch.cat([heads[:, : Q + C], v * (v.square().mean(2, keepdim=True) + eps).rsqrt()], 1).reshape(M, -1)
            y64.backward(dy.double())
            y, dx = poison(kind, M, (Q + 2 * C) * D), poison(kind, *x.shape)
            run.value_norm_forward(kind, x, y, Q, C, D, is_key, eps)
            run.value_norm_backward(kind, dy, x, dx, Q, C, D, is_key, eps)
            case.near("y", y, y64.detach())
            case.same("q and k", y[:, : (Q + C) * D], x[:, : (Q + C) * D])
            case.near("dx", dx, x64.grad)
            x2, dy2 = elsewhere(x, dy)
            y2, dx2 = poison(kind, M // 2, y.shape[1]), poison(kind, M // 2, x.shape[1])
            run.value_norm_forward(kind, x2, y2, Q, C, D, is_key, eps)
            run.value_norm_backward(kind, dy2, x2, dx2, Q, C, D, is_key, eps)
            case.same("y elsewhere", y2, *elsewhere(y))
            case.same("dx elsewhere", dx2, *elsewhere(dx))
    return case


def columns(kind, small):
    case = Case(kind)
    for W, wide in ((64, 200),) if small else ((512, 2048), (2048, 6144), (64, 200)):
        M = 3 if small else 517
        source, to = rnd(kind, M, wide), poison(kind, M, wide)
        run.columns_copy(kind, source[:, 8 : 8 + W], to[:, 16 : 16 + W], False)
        case.same("copy", to[:, 16 : 16 + W], source[:, 8 : 8 + W])
        if not bool(to[:, :16].isnan().all() and to[:, 16 + W :].isnan().all()):
            case.wrong.append("other columns are written")
        total = torch.zeros_like(floats(M, W))
        for part in (source[:, :W], source[:, 8 : 8 + W], source[:, wide - W :]):  # as several layers add to one
            run.columns_copy(kind, part, total, True)
        want = source[:, :W].double() + source[:, 8 : 8 + W].double() + source[:, wide - W :].double()
        case.near("sum", total, want, 2e-6)
        first = source.clone()
        run.columns_copy(kind, total, source[:, 8 : 8 + W], True)
        case.near("added", source[:, 8 : 8 + W], first[:, 8 : 8 + W].double() + want)
    return case


MXFP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def expanded(kind, small):
    """Experts in mxfp4, every code with every scale that bf16 has a power of two for, and in fp8, every code."""
    case = Case(kind)
    book = torch.tensor(MXFP4 + [-v for v in MXFP4], device=DEVICE, dtype=torch.float64)
    for N, K, weights in ((6, 64, 2),) if small else ((6, 64, 3), (768, 2048, 5), (2880, 2880, 3)):
        size, step, out_step = N * K, -(-(N * K // 2 + N * K // 32 + 256) // 256) * 256, N * K
        room = torch.randint(0, 256, (weights, step), device=DEVICE, dtype=torch.uint8)
        begin = -(-(size // 2) // 256) * 256
        codes, scale = room[:, : size // 2], room[:, begin : begin + size // 32]
        scale.copy_(torch.randint(3, 251, scale.shape, device=DEVICE, dtype=torch.uint8))
        scale[0, 0] = 255  # NaN
        want = book[torch.stack([codes & 15, codes >> 4], 2).view(weights, -1).long()].view(weights, -1, 32) * (scale.double() - 127).exp2()[:, :, None]
        out = poison(kind, weights, size)
        run.mxfp4_expand(kind, room, room[0, begin:], out, size, step, out_step, weights)
        if not bool(out[0, :32].isnan().all()):
            case.wrong.append("a scale of 255 is a number")
        want = want.view(weights, size)
        want[0, :32], out[0, :32] = 0, 0
        case.same("mxfp4", out, want.to(out.dtype))  # powers of two times few bits: nothing is rounded
    if kind == "ptr":
        N, K, weights = (5, 264, 2) if small else (517, 2080, 3)
        step = -(-N * K // 256) * 256
        codes = torch.randint(0, 256, (weights, step), device=DEVICE, dtype=torch.uint8)
        codes[(codes & 127) == 127] = 0
        exponents = torch.randint(100, 140, (weights, step), device=DEVICE, dtype=torch.uint8)
        out = poison(kind, weights, N * K)
        run.fp8_expand(codes, exponents[0, :N], out, K, step, N * K, weights)
        values = codes[:, : N * K].contiguous().view(torch.float8_e4m3fn).double().view(weights, N, K)
        case.near("fp8", out, (values * (exponents[:, :N].double() - 127).exp2()[:, :, None]).view(weights, -1))
    return case
