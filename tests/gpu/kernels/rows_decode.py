"""The kernels of generation against float64: rows alone and with others, pages in any order, places kept and left alone,
windows, grouped queries."""
import torch

import rows_launch as run
from rows_check import Case, ints, poison, rnd
from rows_launch import DEVICE

PAGE = 32
LENGTHS = (0, 1, 2, 63, 64, 65, 0, 129, 700, 5)
# Query heads, key heads, head size, window, and a cap of scores.
SHAPES = ((4, 4, 64, 0, 0.0), (9, 3, 64, 7, 0.0), (8, 1, 128, 0, 0.0), (6, 2, 40, 64, 0.0), (2, 2, 24, 2**31 - 1, 0.0), (4, 2, 128, 1, 0.0),
          (4, 2, 256, 90, 0.0), (4, 1, 512, 0, 0.0), (4, 2, 256, 0, 1.5), (2, 1, 200, 3, 0.0), (3, 3, 128, 37, 1.5), (5, 5, 128, 0, 0.0), (2, 2, 64, 21, 0.0))


def scores(q, rows, Q, C, D, window, cap):
    """f64[C, Q / C, keys that are seen] of one row and the keys of its sequence."""
    k = (rows[max(0, len(rows) - window) :] if window else rows).double().view(-1, 2, C, D)[:, 0]
    s = D**-0.5 * torch.einsum("cgd,ncd->cgn", q[: Q * D].double().view(C, Q // C, D), k)
    return cap * (s / cap).tanh() if cap else s


def in_pages(rows, pages):
    """Rows that count as if a sequence's lay next to each other, as they lie in the cache."""
    cache = torch.empty_like(rows)
    cache.view(len(pages), PAGE, -1)[pages.long()] = rows.view(len(pages), PAGE, -1)
    return cache


def sink(kind, small):
    """One more logit, in a softmax that is made."""
    case = Case(kind)
    for Q, D in ((2, 40), (3, 12)) if small else ((64, 64), (3, 200), (5, 12)):
        M = 128
        out, lse, sinks = rnd(kind, M, Q * D), torch.randn(Q, M, device=DEVICE) * 20, torch.randn(Q, device=DEVICE) * 20
        bounds = ints([[0, 100] if m < 100 else [m, m] for m in range(M)])
        first, before = out.clone(), lse.clone()
        total = torch.logaddexp(lse.double(), sinks.double()[:, None])
        share = (lse.double() - total).exp().T[:, :, None]
        run.attention_sink(kind, out, lse, sinks, bounds)
        case.near("out", out[:100], (first.double().view(M, Q, D) * share).view(M, -1)[:100])
        case.near("lse", lse[:, :100], total[:, :100], 2e-6)
        case.same("padding", out[100:], first[100:])
        case.same("lse of padding", lse[:, 100:].contiguous(), before[:, 100:].contiguous())
    return case


def decode(kind, small):
    case = Case(kind)
    lengths = (0, 1, 3, 66, 130) if small else (*LENGTHS, 4096, 8191)
    needed = [1 + n // PAGE for n in lengths]
    firsts = [PAGE * sum(needed[:i]) for i in range(len(lengths))]
    total, M = PAGE * sum(needed), len(lengths)
    pages = ints(torch.randperm(sum(needed)).tolist())
    for Q, C, D, window, cap in SHAPES:
        qkv, rows = rnd(kind, M, (Q + 2 * C) * D), rnd(kind, total, 2 * C * D)
        cache = in_pages(rows, pages)
        bounds, out = ints([[first, first + n] for first, n in zip(firsts, lengths)]), poison(kind, M, Q * D)
        run.attention_decode(kind, qkv, cache, pages, bounds, out, Q, C, D, D**-0.5, window, cap)
        k, v = rows.double().view(total, 2, C, D).unbind(1)
        for m, (first, n) in enumerate(zip(firsts, lengths)):
            if n == 0:
                case.same("padding", out[m], torch.zeros_like(out[m]))
                continue
            seen = slice(first + max(0, n - window if window else 0), first + n)
            q = qkv[m, : Q * D].double().view(C, Q // C, D)
            s = D**-0.5 * torch.einsum("cgd,ncd->cgn", q, k[seen])
            p = (cap * (s / cap).tanh() if cap else s).softmax(-1)
            case.near("out", out[m], torch.einsum("cgn,ncd->cgd", p, v[seen]).reshape(-1), 3e-6 if kind == "f32" else None)
        sinks, sunk = torch.randn(Q, device=out.device), poison(kind, M, Q * D)
        run.attention_decode(kind, qkv, cache, pages, bounds, sunk, Q, C, D, D**-0.5, window, cap, sinks)
        for m, (first, n) in enumerate(zip(firsts, lengths)):
            s = scores(qkv[m], rows[first : first + n], Q, C, D, window, cap)
            p = torch.cat([s, sinks.double().view(C, Q // C, 1)], -1).softmax(-1)[..., :-1]
            seen = rows.double()[first + n - s.shape[2] : first + n].view(-1, 2, C, D)
            want = torch.einsum("cgn,ncd->cgd", p, seen[:, 1]).reshape(-1)
            case.near("out with sinks", sunk[m], want, 3e-6 if kind == "f32" else None)
        order = torch.tensor([M - 1, 0, M // 2], device=out.device)
        few = poison(kind, 3, Q * D)
        run.attention_decode(kind, qkv[order].contiguous(), cache, pages, bounds[order].contiguous(), few, Q, C, D, D**-0.5, window, cap)
        case.same("elsewhere", few, out[order])

        places = ints([4, -1, 0, total - 1, -(2**31), *range(7, 7 + M)][:M])
        kept = cache.clone()
        run.cache_write(kind, qkv, places, pages, kept, Q, C, D)
        for m, place in enumerate(places.tolist()):
            if place >= 0:
                rows[place] = qkv[m, Q * D :]
        case.same("kept", kept, in_pages(rows, pages))
    if not small and kind == "ptr":  # places beyond 2^31 elements
        rows = 2**20 + 2 * PAGE
        pages, first = ints(range(rows // PAGE)), rows - PAGE
        cache = torch.empty(rows, 2 * 8 * 128, device="cuda", dtype=torch.bfloat16)
        qkv, out = rnd(kind, 1, 24 * 128), poison(kind, 1, 8 * 128)
        run.cache_write(kind, qkv, ints([first]), pages, cache, 8, 8, 128)
        run.attention_decode(kind, qkv, cache, pages, ints([[first, first + 1]]), out, 8, 8, 128, 1.0, 0)
        case.same("beyond 2^31", out, qkv[:, 16 * 128 :])
    return case
