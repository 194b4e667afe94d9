"""What the checks of the memory-bound kernels share: random and poisoned tensors, relative errors, and a case's findings."""
import torch

from rows_launch import DEVICE, DTYPE, INTERPRET

FEW = 1000  # elements; of more, roundings average out: 1.7e-3 to bf16


def limit_of(kind, elements):
    """Of f32 arithmetic, or of one rounding to bf16, which is never more than 2^-8 (the interpreter cuts off: twice that)."""
    if kind == "f32":
        return 2e-6
    return 2**-7 if INTERPRET else 2e-3 if elements > FEW else 2**-8


def rnd(kind, *shape, scale=1.0):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE[kind]).mul_(scale)


def poison(kind, *shape):
    return torch.full(shape, float("nan"), device=DEVICE, dtype=DTYPE[kind])


def floats(*shape):
    """f32, full of NaN."""
    return torch.full(shape, float("nan"), device=DEVICE)


def ints(values):
    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def same_bits(a, b):
    as_int = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(as_int), b.contiguous().view(as_int))


def stored(t, dtype):
    """f32 as a kernel stores it: rounded to nearest even, but the interpreter cuts bf16 off."""
    if INTERPRET and dtype == torch.bfloat16:
        return (t.view(torch.int32) & -65536).view(torch.float32).to(dtype)
    return t.to(dtype)


class Case:
    """The findings of one case: relative errors against float64, and what is wrong."""

    def __init__(self, kind):
        self.kind, self.errors, self.wrong = kind, {}, []
        self.found = []  # every error in its order: the same bits give the same list

    def near(self, name, out, reference, limit=None):
        """The error of the whole, || out - reference || / || reference ||; NaN is never near."""
        error = float((out.double() - reference).norm() / reference.norm().clamp_min(1e-30))
        self.found.append(error)
        self.errors[name] = max(error, self.errors.get(name, 0.0)) if error == error else error
        if not error < (limit or limit_of(self.kind, out.numel())):
            self.wrong.append(f"{name} {list(out.shape)}: {error:.1e}")

    def same(self, name, a, b):
        if not same_bits(a, b):
            self.wrong.append(f"{name} {list(a.shape)}: other bits")
