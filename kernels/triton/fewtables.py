"""What adapters change of embedding and head, tables [V, H], for few rows, each with its own adapter: tables.py otherwise.

    fewtables_embed   x[m] = rows[token_row[m]] where that is 0 or more, else += scale[l] sum_r b[ids[m], r] a[r]
    fewtables_put     logits[m, id_i] = sum_q low[q, m, i]      over the tokens id of the row's adapter, low of fewrows.py

l = row_adapter[m], -1 for none. Shapes: x c[M, H], logits c[M, V]; ids, token_row i32[M]; low f32[Q, M, W]; factors, ranks,
scale and tokens as tables.py has them. Needs: H, V multiples of 8. No row depends on another.

Launch: embed grid (M, ceil(H / BLOCK)); put grid (M, ceil(most tokens / BLOCK)). No scratch.
"""
import triton
import triton.language as tl

from tables import change_row, table_of


@triton.jit
def fewtables_embed(x, ids, token_row, factors, scale, ranks, row_adapter, factors_stride, scale_stride, ranks_stride, H, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    adapter = tl.load(row_adapter + m)
    table, first = table_of(factors, factors_stride, adapter)
    if first == 0:
        return
    change_row(x, ids, token_row, table, first, scale, ranks, adapter, scale_stride, ranks_stride, m, i, H, BLOCK)


@triton.jit
def fewtables_put(low, logits, tokens, ranks, row_adapter, tokens_stride, ranks_stride, M, V, W, low_pieces, BLOCK: tl.constexpr):
    """BLOCK tokens of one row. See the top of the file."""
    m, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    adapter = tl.load(row_adapter + m)
    address = tl.load(tokens + tl.cast(adapter, tl.int64) * tokens_stride, mask=adapter >= 0, other=0)
    count = tl.load(ranks + tl.cast(adapter, tl.int64) * ranks_stride, mask=address != 0, other=0)
    ids = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 256)
    logit = tl.zeros((BLOCK,), tl.float32)
    for q in range(low_pieces):
        logit += tl.load(low + (q * M + m).to(tl.int64) * W + i, mask=i < count, other=0.0)
    column = tl.load(ids + i, mask=i < count, other=0)
    tl.store(logits + m.to(tl.int64) * V + column, logit.to(logits.dtype.element_ty), mask=i < count)


# What is compiled.

from variants import row

STRIDES = "factors_stride:i32 scale_stride:i32 ranks_stride:i32"


def variants():
    for kind in ("ptr", "f32"):
        yield row("fewtables", "fewtables_embed", kind, f"x:c ids:*i32 token_row:*i32 factors:*i64 scale:*fp32 ranks:*i32 row_adapter:*i32 {STRIDES} H:i32", BLOCK=512)
        yield row("fewtables", "fewtables_put", kind, "low:*fp32 logits:c tokens:*i64 ranks:*i32 row_adapter:*i32 tokens_stride:i32 ranks_stride:i32 M:i32 V:i32 W:i32 low_pieces:i32", BLOCK=256)
