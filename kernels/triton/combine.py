"""From sorted rows back to those of the batch: a row's experts are added in the order of its slots.

    combine             out[m] = start[m] + sum over j of weights[m, j] y[place[m, j]], slots without a place left out
    bias_weight_grad    dweights[m, j] += sum over h of dout[m, h] bias[experts[m, j], h]

Shapes: y c[P, H]; start (has_start = 1), out, dout c[M, H], start may be out; bias c[E, H]; place, experts i32[M, k], -1 for
none; weights (has_weights = 1, else 1), dweights f32[M, k]. Needs: H a multiple of 8.

Launch: combine grid (M, ceil(H / BLOCK)); bias_weight_grad grid (M, k). No scratch.
"""
import triton
import triton.language as tl


@triton.jit
def combine(y, place, weights, start, out, k, H, has_weights, has_start, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, h = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(start + m * H + h, mask=h < H * has_start, other=0.0).to(tl.float32)
    for j in range(k):
        p = tl.load(place + m * k + j)
        if p >= 0:
            weight = tl.load(weights + m * k + j, mask=has_weights != 0, other=1.0)
            total += weight * tl.load(y + p.to(tl.int64) * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out + m * H + h, total.to(out.dtype.element_ty), mask=h < H)


@triton.jit
def bias_weight_grad(dout, bias, experts, dweights, k, H, BLOCK: tl.constexpr):
    """One pair. See the top of the file."""
    H = H // 8 * 8
    m, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    expert = tl.load(experts + m * k + j)
    if expert < 0:
        return
    total = tl.zeros((BLOCK,), tl.float32)
    for h0 in range(0, H, BLOCK):
        h = h0 + tl.arange(0, BLOCK)
        d = tl.load(dout + m * H + h, mask=h < H, other=0.0).to(tl.float32)
        total += d * tl.load(bias + expert.to(tl.int64) * H + h, mask=h < H, other=0.0).to(tl.float32)
    at = dweights + m * k + j
    tl.store(at, tl.load(at) + tl.sum(total))


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("combine", "combine", kind, "y:c place:*i32 weights:*fp32 start:c out:c k:i32 H:i32 has_weights:i32 has_start:i32", BLOCK=1024)
        yield row("combine", "bias_weight_grad", kind, "dout:c bias:c experts:*i32 dweights:*fp32 k:i32 H:i32", BLOCK=1024)
