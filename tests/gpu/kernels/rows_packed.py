"""Weights in fewer bits: what they are taken apart to, bit for bit, computed by PyTorch from the definitions of the formats."""
import torch

import rows_launch as run
from rows_check import Case, floats, poison, rnd, stored
from rows_launch import DEVICE, INTERPRET

BOOK = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
NF4_BLOCK, NESTED_BLOCK = 64, 256


def dynamic_book():
    """The dynamic code of 8 bits (Dettmers et al. 2021): middles of equal parts of [0.1, 1] times powers of ten, 0 and 1."""
    parts = [torch.linspace(0.1, 1, 2**e + 1) for e in range(7)]
    values = torch.cat([(p[:-1] + p[1:]) / 2 * 10.0 ** (e - 6) for e, p in enumerate(parts)])
    return torch.cat([-values, values, torch.tensor([0.0, 1.0])]).sort().values.to(DEVICE)


def bytes_of(*shape):
    return torch.randint(0, 256, shape, device=DEVICE, dtype=torch.uint8)


def nf4(kind, small):
    """Sizes that end within a block and within a program's part, several weights, and every code with every code of absmax."""
    case = Case(kind)
    book, dynamic = torch.tensor(BOOK, device=DEVICE), dynamic_book()
    for size, weights in ((8, 1), (64 * 300, 1), (8200, 2)) if small else ((8, 1), (64 * 300, 1), (8200, 3), (8192 * 33 + 24, 2), (4096 * 11008, 1)):
        blocks = -(-size // NF4_BLOCK)
        begin = -(-(size // 2) // 256) * 256
        nested_at = begin + -(-blocks // 256) * 256
        mean_at = nested_at + -(-(4 * -(-blocks // NESTED_BLOCK)) // 256) * 256
        room = bytes_of(weights, mean_at + 256)
        codes, absmax = room[:, : size // 2], room[:, begin : begin + blocks]
        absmax[:, : min(blocks, 256)] = torch.arange(min(blocks, 256), device=DEVICE, dtype=torch.uint8)
        numbers = room.view(torch.float32)
        nested = numbers[:, nested_at // 4 : nested_at // 4 + -(-blocks // NESTED_BLOCK)]
        nested.uniform_(0.01, 0.1)
        mean = numbers[:, mean_at // 4 : mean_at // 4 + 1]
        mean.uniform_(-0.02, 0.2)
        out_step = size + 64
        out = poison(kind, weights, out_step)
        run.nf4_dequantise(kind, room, room[0, begin:], numbers[0, nested_at // 4 :], numbers[0, mean_at // 4 :], out, size, room.shape[1], out_step, weights)
        most = dynamic[absmax.long()] * nested.repeat_interleave(NESTED_BLOCK, 1)[:, :blocks] + mean
        value = book[torch.stack([codes >> 4, codes & 15], 2).view(weights, -1).long()] * most.repeat_interleave(NF4_BLOCK, 1)[:, :size]
        case.same("nf4", out[:, :size], stored(value, out.dtype))
        if not bool(out[:, size:].isnan().all()):
            case.wrong.append("what lies after a weight is written")
    return case


def int8(kind, small):
    """Columns that end within a program's part, several weights, every code."""
    case = Case(kind)
    for N, K, weights in ((3, 8, 1), (6, 1032, 2)) if small else ((3, 8, 1), (6, 1032, 3), (517, 2080, 2), (4096, 11008, 1)):
        begin = -(-(N * K) // 256) * 256
        room = bytes_of(weights, begin + -(-(4 * N) // 256) * 256)
        codes = room[:, : N * K].view(torch.int8)
        scale = room.view(torch.float32)[:, begin // 4 : begin // 4 + N]
        scale.uniform_(0.5, 1.5)
        out_step = N * K + 64
        out = poison(kind, weights, out_step)
        run.int8_dequantise(kind, room.view(torch.int8), room.view(torch.float32)[0, begin // 4 :], out, N, K, room.shape[1], out_step, weights)
        value = codes.float() * scale.repeat_interleave(K, 1)
        case.same("int8", out[:, : N * K], stored(value, out.dtype))
        if not bool(out[:, N * K :].isnan().all()):
            case.wrong.append("what lies after a weight is written")
    return case


def fp8_swiglu(kind, small):
    """The codes and scales of rows that SwiGLU makes, forward and backward, are those of the rows that it writes."""
    case = Case(kind)
    if kind != "ptr":
        return case
    for I in (48, 4112) if small else (48, 4096, 4112, 11008, 14336, 20480):
        M = 3 if small else 67
        both, dh, columns = rnd(kind, M, 2 * I), rnd(kind, M, I), exponents(2 * I)
        both[1] = 0
        h, d = torch.empty_like(dh), torch.empty_like(both)
        run.swiglu_forward(kind, both, h)
        run.swiglu_backward(kind, dh, both, d)
        for name, x, by in (("forward", h, None), ("backward", d, columns)):
            found = []
            for make in (lambda *to: run.fp8_quantise(x, by, *to), lambda *to: run.fp8_swiglu(both, *to) if by is None else run.fp8_swiglu_backward(dh, both, by, *to)):
                codes, scale = torch.full(x.shape, 255, device=DEVICE, dtype=torch.uint8), floats(M)
                make(codes.view(torch.float8_e4m3fn), scale)
                found.append((codes, scale))
            for what, want, made in zip(("codes", "scale"), *found):
                case.same(f"{what} {name}", made, want)
    return case


def exponents(*shape):
    return torch.randint(110, 131, shape, device=DEVICE, dtype=torch.uint8)


def power(exponents):
    return (exponents.double() - 127).exp2()


def least_exponents(most):
    """Of the least powers of two that are at least most / 448."""
    return (torch.ceil(torch.log2((most.double() / 448).float().double())) + 127).clamp(1, 253).to(torch.uint8)


def e4m3(values):
    return values.float().clamp(-448, 448).to(torch.float8_e4m3fn)


def same_codes(case, name, codes, want):
    """Of e4m3, as bytes; the interpreter rounds some to half of what they are."""
    if INTERPRET:
        case.near(name, codes.view(want.dtype).double(), want.double(), 0.2)
    else:
        case.same(name, codes.view(torch.uint8), want.view(torch.uint8))


def nf4_fp8(kind, small):
    """Scales of rows and codes of weights in nf4, plain and turned, next to what is no part of them; every code."""
    case = Case(kind)
    if kind != "ptr":
        return case
    book, dynamic = torch.tensor(BOOK, device=DEVICE), dynamic_book()
    for N, K, stride in ((48, 192, 96),) if small else ((48, 192, 96), (208, 448, 320), (4096, 11008, 4096), (22016, 4096, 22016)):
        blocks = N * K // NF4_BLOCK
        codes, absmax, mean = bytes_of(N * K // 2), bytes_of(blocks), torch.rand(1, device=DEVICE) * 0.2
        nested = torch.rand(-(-blocks // NESTED_BLOCK), device=DEVICE) * 0.1
        codes.view(-1, NF4_BLOCK // 2)[:, 0] = 0xF0  # a block's largest is its absmax
        absmax[: K // NF4_BLOCK] = 127
        most = dynamic[absmax.long()] * nested.repeat_interleave(NESTED_BLOCK)[:blocks] + mean
        value = book[torch.stack([codes >> 4, codes & 15], 1).view(-1).long()] * most.repeat_interleave(NF4_BLOCK)
        parts = (codes, absmax, nested, mean)
        found = torch.full((N,), 255, device=DEVICE, dtype=torch.uint8)
        run.nf4_exponents(*parts[1:], found, K)
        want = least_exponents(value.view(N, K).abs().amax(1))
        case.same("exponents", found, want)
        exact = e4m3(value.view(N, K) / power(want)[:, None])
        out = torch.full((N, K), 255, device=DEVICE, dtype=torch.uint8)
        run.nf4_codes(*parts, want, out.view(torch.float8_e4m3fn))
        same_codes(case, "codes", out, exact)
        turned = torch.full((K, stride), 255, device=DEVICE, dtype=torch.uint8)
        run.nf4_turned(*parts, want, turned.view(torch.float8_e4m3fn), N, K, stride)
        case.same("turned", turned[:, :N].T.contiguous(), out)
        if not bool((turned[:, N:] == 255).all()):
            case.wrong.append("what lies beside a linear is written")
    return case


def fp8(kind, small):
    """Rows of widths that each variant holds, and wider ones, with powers of columns and without; weights; zeros; a NaN."""
    case = Case(kind)
    if kind != "ptr":
        return case
    for K in (16, 4112) if small else (16, 4096, 4112, 8208, 11008, 12288, 22016, 30016):
        M = 3 if small else 301
        x = rnd(kind, M, K)
        x[1] = 0
        x[2, 3] = 0 if INTERPRET else float("nan")  # which the interpreter loses
        columns = exponents(K)
        found, codes = torch.full((M,), 255, device=DEVICE, dtype=torch.uint8), torch.full((M, K), 255, device=DEVICE, dtype=torch.uint8)
        weight = rnd(kind, M, K)
        weight[1] = 0
        run.fp8_pack(weight, found, codes.view(torch.float8_e4m3fn))
        case.same("exponents", found, least_exponents(weight.float().abs().amax(1)))
        same_codes(case, "packed", codes, e4m3(weight.double() / power(found)[:, None]))
        for by in (None, columns):
            codes = torch.full((M, K), 255, device=DEVICE, dtype=torch.uint8)
            scale = floats(M)
            run.fp8_quantise(x, by, codes.view(torch.float8_e4m3fn), scale)
            value = x.float() if by is None else x.float() * power(by).float()
            most = value.nan_to_num().abs().amax(1)
            # Through f64, which rounds a quotient once: PyTorch on GPUs multiplies by the inverse of a plain number.
            inverse = torch.where(most > 0, 448 / most.double(), 0).float()
            case.same("scale", scale, (most.double() / 448).float())
            want = value * inverse[:, None]
            if not INTERPRET and not bool(codes[2, 3] & 127 == 127):
                case.wrong.append("a NaN is a number")
            want[2, 3] = codes[2, 3] = 0
            same_codes(case, "codes", codes, e4m3(want))
    return case
