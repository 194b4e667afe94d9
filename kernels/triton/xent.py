"""Cross-entropy of rows of logits, and its gradient in their place.

    xent    loss[t] = log sum exp z - z[target],  hit[t] = 1 where the target is the first largest logit,
            with grad = 1: z becomes weights[t] (softmax(z) - onehot(target))
    All logits of a row are multiplied by sharpness[t], the inverse of a temperature, before that; the gradient is that of z.
    With SHAPED = 1 they are s = scale z before that, and with a cap above 0 cap tanh(s / cap).

Shapes: logits z c[T, V], of which the first `classes` columns count; targets, hit i32[T]; weights, sharpness, loss f32[T]. The
gradient is zero from column `classes` on, whatever stood there. Needs: V a multiple of 8, 0 <= target < classes <= V.

The row is read once for its largest logit and its sum of exponentials together (Milakov and Gimelshein 2018: a lane that meets
a larger logit rescales its sum), and once more, mostly from L2, for the gradient. Each of LANES lanes takes 8 neighbouring
logits at a time; lanes are combined last, in an order that follows from V alone.

Launch: grid (T), no scratch.
"""
import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4e38)  # finite, so that a lane without a logit makes no infinity minus infinity


@triton.jit
def shaped(z, scale, cap, SHAPED: tl.constexpr):
    """Logits of the head's outputs, f32."""
    z = z.to(tl.float32)
    if SHAPED:
        z = z * scale
        if cap > 0:
            z = cap * (2.0 * tl.sigmoid(2.0 * z / cap) - 1.0)  # tanh
    return z


@triton.jit
def xent(logits, targets, weights, sharpness, loss, hit, V, classes, grad, scale, cap, LANES: tl.constexpr, BLOCK: tl.constexpr, SHAPED: tl.constexpr):
    """One row. See the top of the file."""
    V = V // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    t = tl.program_id(0).to(tl.int64)
    z = logits + t * V
    target = tl.load(targets + t)
    sharp = tl.load(sharpness + t)
    chosen = shaped(tl.load(z + target), scale, cap, SHAPED) * sharp
    i_LE = tl.arange(0, LANES)[:, None] * 8 + tl.arange(0, 8)[None, :]
    top = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    ties = tl.zeros((LANES,), tl.int32)  # logits before the target that equal it
    for first in tl.range(0, V, LANES * 8, loop_unroll_factor=2):
        i = first + i_LE
        z_LE = tl.where(i < classes, shaped(tl.load(z + i, mask=i < V, other=0.0), scale, cap, SHAPED) * sharp, float("-inf"))
        higher = tl.maximum(top, tl.max(z_LE, axis=1))
        total = tl.fma(total, tl.exp(top - higher), tl.sum(tl.exp(z_LE - higher[:, None]), axis=1))
        ties += tl.sum(((z_LE == chosen) & (i < target)).to(tl.int32), axis=1)
        top = higher
    largest = tl.max(top)
    total_all = tl.sum(total * tl.exp(top - largest))
    tl.store(loss + t, (largest - chosen) + tl.log(total_all))
    tl.store(hit + t, ((chosen == largest) & (tl.sum(ties) == 0)).to(tl.int32))

    if grad != 0:
        weight = tl.load(weights + t)
        factor = tl.div_rn(weight, total_all)
        for first in range(0, V, BLOCK):
            i = first + tl.arange(0, BLOCK)
            logit_I = tl.where(i < classes, shaped(tl.load(z + i, mask=i < V, other=0.0), scale, cap, SHAPED), 0.0)
            z_I = tl.where(i < classes, logit_I * sharp, float("-inf"))
            dz_I = tl.fma(factor, tl.exp(z_I - largest), -tl.where(i == target, weight, 0.0)) * sharp
            if SHAPED:
                dz_I = dz_I * scale
                if cap > 0:
                    dz_I = dz_I * (1.0 - (logit_I / cap) * (logit_I / cap))
            tl.store(z + i, dz_I.to(logits.dtype.element_ty), mask=i < V)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        parameters = "logits:c targets:*i32 weights:*fp32 sharpness:*fp32 loss:*fp32 hit:*i32 V:i32 classes:i32 grad:i32 scale:fp32 cap:fp32"
        for shaped in (0, 1):
            yield row("xent", "xent", kind, parameters, warps=16, LANES=512, BLOCK=8192, SHAPED=shaped)
