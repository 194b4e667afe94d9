"""What adapters change of the embedding and of the output head, tables [V, H].

    table_forward   x[m] = rows[token_row[m]] where that is 0 or more, else += scale[l] sum_r s[m, r] a[r], s[m] = b[ids[m]]
    rows_sum        grad[row, i] += sum over a run, in its order, of from_[at[.] + i]
    gradients_add   y += x, f32[size]
    columns_put     logits[m, id_i] = s[m, i]                     over the tokens id of the tile's adapter
    columns_take    s[m, i] = logits[m, id_i], which becomes 0;   s = 0 beyond the tokens

Shapes: x c[M, H], logits c[M, V]; ids, token_row i32[M]; s and the tables of adapters as adapters.py has them, G = 1. Of the
embedding the factors are b c[V, r] or the rows of tokens, a c[r, H], and their gradients in that order. runs i32[R, 4]: first
in `at`, end, adapter, row of the gradient; a row has `width` elements, or the adapter's rank with a width of 0. tokens
i64[L, 1, 4]: the address of i32[n] first, 0 for adapters without. Needs: H, V multiples of 8.

No result depends on another adapter: a program reads and writes what is one adapter's, and a run is one program's.

Launch: table_forward grid (M, ceil(H / BLOCK)); rows_sum grid (R, ceil(width / BLOCK)), (R, 1) with a width of 0, whose rows it
goes through in blocks; gradients_add grid (ceil(size / BLOCK)); columns_* grid (M, ceil(most tokens / BLOCK)). No scratch.
"""
import triton
import triton.language as tl

from adapters import A, B, DA, ROW_TILE, UNIT, low_begin, padded


@triton.jit
def table_of(factors, factors_stride, adapter):
    """An adapter's row of the table of factors, and the address of its first factor, 0 for none."""
    table = factors + tl.cast(adapter, tl.int64) * factors_stride
    return table, tl.load(table + A, mask=adapter >= 0, other=0)


@triton.jit
def change_row(x, ids, token_row, table, first, scale, ranks, adapter, scale_stride, ranks_stride, m, i, H, BLOCK: tl.constexpr):
    """Columns i of row m of x: a row of the adapter's own, or with what it adds. Returns its rank and its token's row of b."""
    kind: tl.constexpr = x.dtype.element_ty
    size: tl.constexpr = kind.primitive_bitwidth // 8
    inside = i < H
    at = x + m.to(tl.int64) * H + i
    row = tl.load(token_row + m)
    if row >= 0:
        rows = tl.multiple_of((first + row.to(tl.int64) * (H * size)).to(tl.pointer_type(kind)), 16)
        tl.store(at, tl.load(rows + i, mask=inside), mask=inside)
    rank = tl.load(ranks + tl.cast(adapter, tl.int64) * ranks_stride)
    b = first.to(tl.pointer_type(kind))
    if rank > 0:
        b += tl.load(ids + m).to(tl.int64) * rank
        a = tl.multiple_of(tl.load(table + B).to(tl.pointer_type(kind)), 256) + i
        total = tl.zeros((BLOCK,), tl.float32)
        for r in range(rank):
            total += tl.load(b + r).to(tl.float32) * tl.load(a, mask=inside, other=0.0).to(tl.float32)
            a += H
        total = tl.load(at, mask=inside, other=0.0).to(tl.float32) + tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride) * total
        tl.store(at, total.to(kind), mask=inside)
    return rank, b


@triton.jit
def table_forward(x, ids, token_row, s, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride, H,
                  BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    H = H // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    m, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = m // ROW_TILE
    adapter = tl.load(tile_adapter + tile)
    table, first = table_of(factors, factors_stride, adapter)
    if first == 0:
        return
    rank, b = change_row(x, ids, token_row, table, first, scale, ranks, adapter, scale_stride, ranks_stride, m, i, H, BLOCK)
    if (tl.program_id(1) == 0) & (rank > 0):
        W = padded(rank)
        kept = s + low_begin(low_at, tile, W) + (m % ROW_TILE) * W
        for r0 in range(0, W, UNIT):
            column = r0 + tl.arange(0, UNIT)
            tl.store(kept + column, tl.load(b + column, mask=column < rank, other=0.0))


@triton.jit
def rows_sum(from_, at, runs, factors, ranks, width, factors_stride, ranks_stride, BLOCK: tl.constexpr):
    """A run, in blocks of columns. See the top of the file."""
    run = runs + tl.program_id(0) * 4
    first, end, adapter, row = tl.load(run), tl.load(run + 1), tl.load(run + 2), tl.load(run + 3)
    size = tl.where(width > 0, width, tl.load(ranks + tl.cast(adapter, tl.int64) * ranks_stride))
    to = tl.load(factors + tl.cast(adapter, tl.int64) * factors_stride + DA).to(tl.pointer_type(tl.float32)) + row.to(tl.int64) * size
    for block in range(tl.program_id(1) * BLOCK, size, tl.num_programs(1) * BLOCK):
        i = block + tl.arange(0, BLOCK)
        inside = i < size
        total = tl.zeros((BLOCK,), tl.float32)
        for j in range(first, end):
            total += tl.load(from_ + tl.load(at + j).to(tl.int64) + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(to + i, tl.load(to + i, mask=inside, other=0.0) + total, mask=inside)


@triton.jit
def gradients_add(x, y, size, BLOCK: tl.constexpr):
    """BLOCK elements. See the top of the file."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(y + i, mask=i < size) + tl.load(x + i, mask=i < size), mask=i < size)


@triton.jit
def tokens_of(tokens, tokens_stride, ranks, ranks_stride, tile_adapter, tile):
    """The address of the ids of a tile's adapter, null for none, and how many there are."""
    adapter = tl.load(tile_adapter + tile)
    there = adapter >= 0
    address = tl.load(tokens + tl.cast(adapter, tl.int64) * tokens_stride, mask=there, other=0)
    count = tl.load(ranks + tl.cast(adapter, tl.int64) * ranks_stride, mask=there & (address != 0), other=0)
    return tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 256), count


@triton.jit
def columns_put(logits, s, low_at, tokens, ranks, tile_adapter, V, tokens_stride, ranks_stride, BLOCK: tl.constexpr):
    """BLOCK tokens of one row. See the top of the file."""
    m, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = m // ROW_TILE
    ids, count = tokens_of(tokens, tokens_stride, ranks, ranks_stride, tile_adapter, tile)
    W = padded(count)
    at = s + low_begin(low_at, tile, W) + (m % ROW_TILE) * W + i
    column = tl.load(ids + i, mask=i < count, other=0)
    tl.store(logits + m.to(tl.int64) * V + column, tl.load(at, mask=i < count, other=0.0), mask=i < count)


@triton.jit
def columns_take(logits, s, low_at, tokens, ranks, tile_adapter, V, tokens_stride, ranks_stride, BLOCK: tl.constexpr):
    """BLOCK tokens of one row. See the top of the file."""
    m, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = m // ROW_TILE
    ids, count = tokens_of(tokens, tokens_stride, ranks, ranks_stride, tile_adapter, tile)
    W = padded(count)
    column = tl.load(ids + i, mask=i < count, other=0)
    at = logits + m.to(tl.int64) * V + column
    values = tl.load(at, mask=i < count, other=0.0)
    tl.store(s + low_begin(low_at, tile, W) + (m % ROW_TILE) * W + i, values, mask=i < W)
    tl.debug_barrier()  # other threads than those that have read may write the zeros
    tl.store(at, tl.zeros((BLOCK,), tl.float32).to(s.dtype.element_ty), mask=i < count)


# What is compiled.

from variants import row

TABLES = "factors:*i64 scale:*fp32 ranks:*i32 tile_adapter:*i32 factors_stride:i32 scale_stride:i32 ranks_stride:i32"


def variants():
    yield row("tables", "gradients_add", None, "x:*fp32 y:*fp32 size:i32", BLOCK=1024)
    for kind in ("ptr", "f32"):
        yield row("tables", "table_forward", kind, f"x:c ids:*i32 token_row:*i32 s:c low_at:*i32 {TABLES} H:i32", BLOCK=512)
        yield row("tables", "rows_sum", kind, "from_:c at:*i32 runs:*i32 factors:*i64 ranks:*i32 width:i32 factors_stride:i32 ranks_stride:i32", BLOCK=256)
        columns = "logits:c s:c low_at:*i32 tokens:*i64 ranks:*i32 tile_adapter:*i32 V:i32 tokens_stride:i32 ranks_stride:i32"
        yield row("tables", "columns_put", kind, columns, BLOCK=256)
        yield row("tables", "columns_take", kind, columns, BLOCK=256)
