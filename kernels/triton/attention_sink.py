"""One more logit of each head, without a value, in the softmax of attention.py that was made without it (gpt-oss).

    with = log(exp(lse[h, m]) + exp(sinks[h]));  out[m, h] *= exp(lse[h, m] - with);  lse[h, m] = with

The gradients of scores are then those that attention.py computes from out and lse. Rows whose bounds are equal stay as they
are.

Shapes: out c[M, Q D]; lse f32[Q, M]; sinks f32[Q]; bounds i32[M, 2]. Needs: M a multiple of 128.

Launch: grid (M / ROWS, Q), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def scale_rows(out, m, head, heads, D, share, BLOCK: tl.constexpr):
    """Multiplies a head's part of rows by a number each."""
    row = out + m.to(tl.int64)[:, None] * (heads * D) + head * D
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        value = tl.load(row + d[None, :], mask=(d < D)[None, :], other=0.0).to(tl.float32)
        tl.store(row + d[None, :], (value * share[:, None]).to(out.dtype.element_ty), mask=(d < D)[None, :])


@triton.jit
def attention_sink(out, lse, sinks, bounds, M, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS rows of a head. See the top of the file."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    attends = tl.load(bounds + 2 * m) < tl.load(bounds + 2 * m + 1)
    at = lse + head.to(tl.int64) * M + m
    own, sink = tl.load(at), tl.load(sinks + head)
    most = tl.maximum(own, sink)
    total = most + tl.log(tl.exp(own - most) + tl.exp(sink - most))
    share = tl.where(attends, tl.exp(own - total), 1.0)
    tl.store(at, total, mask=attends)
    if D % 8 == 0:
        scale_rows(out, m, head, heads, D // 8 * 8, share, BLOCK)  # as it is: tells the compiler that rows are aligned
    else:
        scale_rows(out, m, head, heads, D, share, BLOCK)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        yield row("attention_sink", "attention_sink", kind, "out:c lse:*fp32 sinks:*fp32 bounds:*i32 M:i32 D:i32", ROWS=16, BLOCK=64)
