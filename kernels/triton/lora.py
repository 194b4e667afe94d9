"""The low-rank product shared by linears with one input, and the gradients of A and B: memory-bound, one read of x or of dy
each.

    lora_down        s[m, j]     = sum_k drop(x)[m, k] a[j, k]             over all j of the tile's adapter
    lora_up_grad     ds[m, j]    = scale[l, g] sum_n dy[m, n] b[r, n]      over the columns n of linear g
                     db[r, n]   += scale[l, g] sum_m dy[m, n] s[m, j]
    lora_down_grad   da[j, k]   += sum_m ds[m, j] drop(x)[m, k]

lora_down_grad also takes what x was made of, so that x need not be kept: MADE = 1, x = weight[k] of[m, k] rstd[m] (rmsnorm.py),
of c[M, K]; 2 and 3, x = act(of[m, k]) of[m, K + k] (swiglu.py, geglu.py), of c[M, 2 K]. It has the bits of the x that those
wrote.

Shapes: x c[M, K]; dy c[M, N]; s, ds c[low_size] and the tables as adapters.py has them. s and ds are written in all columns of
an adapter's tiles, zeros beyond a rank. Needs: M a multiple of 128, K, N and firstColumn [0, first1, first2, N] (first1 =
first2 = N for one linear, first2 = N for two) multiples of 8, the tiles of an adapter side by side, 16-byte alignment.

Order of sums. An adapter's rows are cut into chunks of CHUNK tiles from its own first tile. A chunk is summed by one program
for each block of columns; the first chunk adds to da or db itself, the others go to scratch and are added in their order by the
*_sum kernel. Sums over k and n are cut at places that depend on K and N alone. So no result depends on other adapters, nor on
the blocks of ranks and columns (RB, CB) that a launch takes for the widest of them. Programs without work for a tile end at
once.

Scratch of later chunks: row `low_at[t - CHUNK] / (8 CHUNK) + j` is j of the chunk that begins at tile t, `pitch` elements long.
That is an adapter's low_at in rows of W, divided by CHUNK: as it has one later chunk less than CHUNK-ths of its tiles, its rows
end before the next adapter's begin.

Launch (T = M / 128 tiles, C = at most floor((T + min(L, T) (CHUNK - 1)) / CHUNK) chunks, D = floor(T / (CHUNK + 1)) adapters
with later chunks; CB, BN, ... the variant's constants; W and r those of the widest adapter; P as many as there are to be):
    lora_down            grid (M / BM, parts, ceil(W / CB)); parts = ceil(ceil(K / BK) / part_blocks), part_blocks by K alone;
                         scratch f32[parts, low_size], unused when parts = 1: then s is written here and lora_down_sum not
                         launched
    lora_down_sum        grid (T, P)
    lora_up_grad         grid (blocks, C, ceil(r / RB)); blocks = sum over g of ceil(columns of g / BN); ds_part f32[most blocks
                         of a g, low_size]; db_part f32[ceil(low_size / (128 CHUNK)), pitch], pitch = most columns of a g
    lora_up_grad_sum     grid (T P + D Q), P and Q passed as ds_programs and db_programs
    lora_down_grad       grid (ceil(K / BK), C, ceil(W / CB)); scratch f32[ceil(low_size / (128 CHUNK)), K]
    lora_down_grad_sum   grid (D, Q); needed only when T > CHUNK
"""
import triton
import triton.language as tl

from adapters import A, B, DA, DB, ROW_TILE, UNIT, ends_of, factor, factor_rows, linear_of, low_begin, low_step, padded, pick, ranks_of
from dropout import dropout_keep, dropout_row_key, dropout_settings
from geglu import geglu_of
from rmsnorm import normed
from swiglu import swiglu_of

TILES = tl.constexpr(32)  # looked at at once: as many as a warp has lanes, so that no warp waits for another


@triton.jit
def adapter_tiles(tile_adapter, adapter, tiles):
    """The first tile of an adapter and how many it has."""
    first, count = tiles, 0
    for t0 in range(0, tiles, TILES):
        t = t0 + tl.arange(0, TILES)
        mine = tl.load(tile_adapter + t, mask=t < tiles, other=-1) == adapter
        first = tl.minimum(first, tl.min(tl.where(mine, t, tiles)))
        count += tl.sum(mine.to(tl.int32))
    return first, count


@triton.jit
def find_chunk(tile_adapter, number, tiles, CHUNK: tl.constexpr, SECOND: tl.constexpr = False):
    """Chunk `number` of the batch, or second chunk of an adapter: its first tile (-1: there are fewer), its adapter, the
    adapter's first tile, the chunk's last row + 1."""
    found, adapter, first = -1, -1, -1
    before, run = 0, 0  # chunks so far; where the adapter of the last tile began
    for t0 in range(0, tiles, TILES):
        t = t0 + tl.arange(0, TILES)
        here = tl.load(tile_adapter + t, mask=t < tiles, other=-1)
        left = tl.load(tile_adapter + t - 1, mask=(t > 0) & (t < tiles), other=-1)
        begin = tl.maximum(tl.associative_scan(tl.where((here != left) | (t == 0), t, 0), 0, larger), run)
        if SECOND:
            starts = (here >= 0) & (t - begin == CHUNK)
        else:
            starts = (here >= 0) & ((t - begin) % CHUNK == 0)
        hit = starts & (tl.cumsum(starts.to(tl.int32), 0) + before == number + 1)
        found = tl.maximum(found, tl.max(tl.where(hit, t, -1)))
        adapter = tl.maximum(adapter, tl.max(tl.where(hit, here, -1)))
        first = tl.maximum(first, tl.max(tl.where(hit, begin, -1)))
        before += tl.sum(starts.to(tl.int32))
        run = tl.max(begin)
    t = found + tl.arange(0, CHUNK)
    mine = tl.load(tile_adapter + t, mask=(found >= 0) & (t < tiles), other=-1) == adapter
    return found, adapter, first, (found + tl.sum(mine.to(tl.int32))) * ROW_TILE


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def part_row(low_at, tile, CHUNK: tl.constexpr):
    """Row of j = 0 in the scratch of the later chunk that begins at a tile."""
    return tl.load(low_at + tile - CHUNK) // (ROW_TILE // UNIT * CHUNK)


@triton.jit
def add_chunks(factors, part, low_at, ranks, tile_adapter, factors_stride, ranks_stride, number, program, programs, tiles, widths, pitch, G,
               which: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the later chunks of the `number`-th adapter that has some, in their order, to its gradient: one of several programs.
    `widths`: elements of a row of each linear."""
    second, adapter, first, end = find_chunk(tile_adapter, number, tiles, CHUNK, True)
    if second >= 0:
        unused, count = adapter_tiles(tile_adapter, adapter, tiles)
        three = ranks_of(ranks, ranks_stride, adapter, G)
        ends = ends_of(three)
        end0, end1, W = ends
        chunks = tl.cdiv(count, CHUNK)
        low0 = tl.load(low_at + first)
        step = tl.load(low_at + first + 1).to(tl.int64) - low0
        across = tl.cdiv(pitch, BLOCK)
        for block in range(program, W * across, programs):
            j = block // across
            g = (j >= end0).to(tl.int32) + (j >= end1).to(tl.int32)
            r = j - pick(g, (0, end0, end1))
            rank, width = pick(g, three), pick(g, widths)
            i = block % across * BLOCK + tl.arange(0, BLOCK)
            inside = (i < width) & (r < rank)
            at = factor(factors, factors_stride, adapter, g, rank, which, tl.float32) + r.to(tl.int64) * width + i
            total = tl.load(at, mask=inside, other=0.0)
            for chunk in tl.range(1, chunks, loop_unroll_factor=8):
                row = (low0 + (chunk - 1) * CHUNK * step) // (ROW_TILE // UNIT * CHUNK) + j  # part_row's, without a load
                total += tl.load(part + row * pitch + i, mask=inside, other=0.0)
            tl.store(at, total, mask=inside)


@triton.jit
def down_product(x, a_row, m, first, last, K, there, k0, k1, threshold, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DROP: tl.constexpr):
    """f32[BM, CB] = drop(x)[m, k] a[j, k] over blocks first .. last of BK columns, without the factor 1 / (1 - p)."""
    acc = tl.zeros((BM, CB), tl.float32)
    x_row = x + m.to(tl.int64)[:, None] * K
    for block in range(first, last):
        k = block * BK + tl.arange(0, BK)
        x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
        a_JK = tl.load(a_row + k[None, :], mask=there & (k < K)[None, :], other=0.0)
        if DROP:
            x_MK = tl.where(dropout_keep(k0[:, None], k1[:, None], k[None, :], threshold), x_MK, 0.0)
        acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
    return acc


@triton.jit
def lora_down(x, s, scratch, low_at, factors, ranks, tile_adapter, row_number, dropout, module, factors_stride, ranks_stride, M, K, low_size, part_blocks, G,
              CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """s = drop(x) a^T, or parts of it. See the top of the file."""
    K, low_size = K // 8 * 8, low_size // UNIT * UNIT  # as they are: tells the compiler that rows are aligned to 16 bytes
    m0, part, j0 = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2) * CB
    tile = m0 // ROW_TILE
    adapter = tl.load(tile_adapter + tile)
    three = ranks_of(ranks, ranks_stride, adapter, G)
    ends = ends_of(three)
    end0, end1, W = ends
    if j0 >= W:
        return
    m, j = m0 + tl.arange(0, BM), j0 + tl.arange(0, CB)
    a_row, there = factor_rows(factors, factors_stride, adapter, j[:, None], three, ends, K, A, s.dtype.element_ty)
    first = part * part_blocks
    last = min(first + part_blocks, tl.cdiv(K, BK))
    seed, step, threshold, inverse = dropout_settings(dropout, adapter)
    if threshold == 0:
        acc = down_product(x, a_row, m, first, last, K, there, m, m, threshold, CB, BM, BK, False)
    else:
        k0, k1 = dropout_row_key(seed, step, module, tl.load(row_number + m))
        acc = down_product(x, a_row, m, first, last, K, there, k0, k1, threshold, CB, BM, BK, True) * inverse
    at = low_begin(low_at, tile, W) + (m % ROW_TILE)[:, None] * W + j[None, :]
    if tl.num_programs(1) == 1:
        tl.store(s + at, acc.to(s.dtype.element_ty), mask=(j < W)[None, :])
    else:
        tl.store(scratch + part * low_size + at, acc, mask=(j < W)[None, :])


@triton.jit
def lora_down_sum(s, scratch, low_at, ranks, tile_adapter, ranks_stride, low_size, parts, G, BLOCK: tl.constexpr):
    """s = the sum over the parts of scratch, in the part of one tile."""
    low_size = low_size // UNIT * UNIT
    tile = tl.program_id(0)
    end0, end1, W = ends_of(ranks_of(ranks, ranks_stride, tl.load(tile_adapter + tile), G))
    begin = low_begin(low_at, tile, W)
    for first in range(tl.program_id(1) * BLOCK, W * ROW_TILE, tl.num_programs(1) * BLOCK):
        i = begin + first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for part in range(parts):
            total += tl.load(scratch + part * low_size + i)
        tl.store(s + i, total.to(s.dtype.element_ty))


@triton.jit
def lora_up_grad(dy, s, ds_part, db_part, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride, M, N, first1, first2, low_size, pitch, G,
                 RB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr):
    """ds by blocks of columns and db by chunks of rows, from one read of dy. See the top of the file."""
    N = N // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    first1, first2, pitch, low_size = first1 // 8 * 8, first2 // 8 * 8, pitch // 8 * 8, low_size // UNIT * UNIT
    r0 = tl.program_id(2) * RB
    tile, adapter, first_tile, m_end = find_chunk(tile_adapter, tl.program_id(1), M // ROW_TILE, CHUNK)
    if tile < 0:
        return
    before1 = tl.cdiv(first1, BN)
    before2 = before1 + tl.cdiv(first2 - first1, BN)
    block = tl.program_id(0)
    g = (block >= before1).to(tl.int32) + (block >= before2).to(tl.int32)
    block -= pick(g, (0, before1, before2))
    three = ranks_of(ranks, ranks_stride, adapter, G)
    rank = pick(g, three)
    if r0 >= rank:
        return
    ends = ends_of(three)
    end0, end1, W = ends
    first, last, column = linear_of(g, ends, first1, first2, N)
    n0 = first + block * BN
    n, r = n0 + tl.arange(0, BN), r0 + tl.arange(0, RB)
    width = last - first
    ours = (r < rank)[:, None] & (n < last)[None, :]
    in_rank = (r < padded(rank))[None, :]
    at_RN = r.to(tl.int64)[:, None] * width + (n - first)[None, :]
    b_RN = tl.load(factor(factors, factors_stride, adapter, g, rank, B, s.dtype.element_ty) + at_RN, mask=ours, other=0.0)
    db_NR = tl.zeros((BN, RB), tl.float32)
    begin = low_begin(low_at, tile, W) + column
    tile_step = low_step(low_at, tile, (tile + 1) * ROW_TILE < m_end)
    for m0 in range(tile * ROW_TILE, m_end, BM):
        m = (m0 + tl.arange(0, BM)).to(tl.int64)
        dy_MN = tl.load(dy + m[:, None] * N + n[None, :], mask=(n < last)[None, :], other=0.0)
        at = m0 - tile * ROW_TILE
        low = begin + at // ROW_TILE * tile_step + (at % ROW_TILE + tl.arange(0, BM))[:, None] * W + r[None, :]
        s_MR = tl.load(s + low, mask=in_rank, other=0.0)
        # Before ds: in the other order ptxas runs the products one by one (C7515).
        db_NR = tl.dot(dy_MN.T, s_MR, db_NR, input_precision="ieee")
        ds_MR = tl.dot(dy_MN, b_RN.T, input_precision="ieee")
        tl.store(ds_part + block * low_size + low, ds_MR, mask=in_rank)
    db_RN = db_NR.T * tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g)
    if tile == first_tile:
        db_at = factor(factors, factors_stride, adapter, g, rank, DB, tl.float32) + at_RN
        tl.store(db_at, tl.load(db_at, mask=ours, other=0.0) + db_RN, mask=ours)
    else:
        row = part_row(low_at, tile, CHUNK) + column + r
        tl.store(db_part + row.to(tl.int64)[:, None] * pitch + (n - first)[None, :], db_RN, mask=ours)


@triton.jit
def lora_up_grad_sum(ds, ds_part, db_part, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride, M, N, first1, first2, low_size, pitch, ds_programs, db_programs, G,
                     BN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, DB_BLOCK: tl.constexpr):
    """The first programs sum ds over the blocks of columns, tile by tile; the others add the later chunks of db."""
    N = N // 8 * 8
    first1, first2, pitch, low_size = first1 // 8 * 8, first2 // 8 * 8, pitch // 8 * 8, low_size // UNIT * UNIT
    tiles = M // ROW_TILE
    program = tl.program_id(0)
    if program < tiles * ds_programs:
        tile = program // ds_programs
        adapter = tl.load(tile_adapter + tile)
        three = ranks_of(ranks, ranks_stride, adapter, G)
        r0, r1, r2 = three
        end0, end1, W = ends_of(three)
        begin = low_begin(low_at, tile, W)
        blocks0, blocks1, blocks2 = tl.cdiv(first1, BN), tl.cdiv(first2 - first1, BN), tl.cdiv(N - first2, BN)
        most = tl.maximum(tl.where(r0 > 0, blocks0, 0), tl.maximum(tl.where(r1 > 0, blocks1, 0), tl.where(r2 > 0, blocks2, 0)))
        at = scale + tl.cast(adapter, tl.int64) * scale_stride
        scale0, scale1, scale2 = tl.load(at, mask=r0 > 0, other=0.0), tl.load(at + 1, mask=r1 > 0, other=0.0), tl.load(at + 2, mask=r2 > 0, other=0.0)
        for first in range(program % ds_programs * BLOCK, W * ROW_TILE, ds_programs * BLOCK):
            i = first + tl.arange(0, BLOCK)
            g = (i % W >= end0).to(tl.int32) + (i % W >= end1).to(tl.int32)
            blocks = pick(g, (blocks0, blocks1, blocks2))
            total = tl.zeros((BLOCK,), tl.float32)
            for block in tl.range(0, most, loop_unroll_factor=8):
                total += tl.load(ds_part + block * low_size + begin + i, mask=block < blocks, other=0.0)
            tl.store(ds + begin + i, (total * pick(g, (scale0, scale1, scale2))).to(ds.dtype.element_ty))
    else:
        program -= tiles * ds_programs
        add_chunks(factors, db_part, low_at, ranks, tile_adapter, factors_stride, ranks_stride, program // db_programs, program % db_programs, db_programs, tiles,
                   (first1, first2 - first1, N - first2), pitch, G, DB, CHUNK, DB_BLOCK)


@triton.jit
def input_tile(of, rstd, weight, m, k, K, MADE: tl.constexpr):
    """x[m, k] where it is made of something, or as it is."""
    m = m.to(tl.int64)[:, None]
    inside = (k < K)[None, :]
    if MADE == 0:
        return tl.load(of + m * K + k[None, :], mask=inside, other=0.0)
    elif MADE == 1:
        x = tl.load(of + m * K + k[None, :], mask=inside, other=0.0)
        return normed(x.to(tl.float32), tl.load(rstd + m), tl.load(weight + k, mask=k < K, other=0.0)[None, :]).to(x.dtype)
    else:
        gate = tl.load(of + m * 2 * K + k[None, :], mask=inside, other=0.0)
        up = tl.load(of + m * 2 * K + K + k[None, :], mask=inside, other=0.0)
        if MADE == 2:
            return swiglu_of(gate.to(tl.float32), up.to(tl.float32)).to(gate.dtype)
        else:
            return geglu_of(gate.to(tl.float32), up.to(tl.float32)).to(gate.dtype)


@triton.jit
def down_grad_product(x, rstd, weight, ds, low_at, tile, m_end, W, K, k, j, row_number, seed, step, module, threshold,
                      CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, MADE: tl.constexpr, DROP: tl.constexpr):
    """f32[BK, CB] = sum over the rows of a chunk of drop(x)[m, k] ds[m, j], without the factor 1 / (1 - p)."""
    acc = tl.zeros((BK, CB), tl.float32)
    rows = tl.arange(0, BM)
    m_begin = tile * ROW_TILE
    begin = low_begin(low_at, tile, W)
    tile_step = low_step(low_at, tile, m_begin + ROW_TILE < m_end)
    if DROP:
        number = tl.load(row_number + m_begin + rows)
    for m0 in range(m_begin, m_end, BM):
        x_MK = input_tile(x, rstd, weight, m0 + rows, k, K, MADE)
        at = m0 - m_begin
        low = begin + at // ROW_TILE * tile_step + (at % ROW_TILE + rows)[:, None] * W + j[None, :]
        ds_MJ = tl.load(ds + low, mask=(j < W)[None, :], other=0.0)
        if DROP:
            k0, k1 = dropout_row_key(seed, step, module, number)
            number = tl.load(row_number + tl.minimum(m0 + BM, m_end - BM) + rows)  # for the next block: nothing waits for it
            x_MK = tl.where(dropout_keep(k0[:, None], k1[:, None], k[None, :], threshold), x_MK, 0.0)
        acc = tl.dot(x_MK.T, ds_MJ, acc, input_precision="ieee")
    return acc


@triton.jit
def lora_down_grad(x, rstd, weight, ds, scratch, low_at, factors, ranks, tile_adapter, row_number, dropout, module, factors_stride, ranks_stride, M, K, G,
                   MADE: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr):
    """da += ds^T drop(x) by chunks of rows. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    k_at, j0 = tl.program_id(0) * BK, tl.program_id(2) * CB
    tile, adapter, first_tile, m_end = find_chunk(tile_adapter, tl.program_id(1), M // ROW_TILE, CHUNK)
    three = ranks_of(ranks, ranks_stride, adapter, G)
    ends = ends_of(three)
    end0, end1, W = ends
    if j0 >= W:  # as it is without a chunk
        return
    k, j = k_at + tl.arange(0, BK), j0 + tl.arange(0, CB)
    seed, step, threshold, inverse = dropout_settings(dropout, adapter)
    if threshold == 0:
        acc = down_grad_product(x, rstd, weight, ds, low_at, tile, m_end, W, K, k, j, row_number, seed, step, module, threshold, CB, BM, BK, MADE, False)
    else:
        acc = down_grad_product(x, rstd, weight, ds, low_at, tile, m_end, W, K, k, j, row_number, seed, step, module, threshold, CB, BM, BK, MADE, True) * inverse
    acc_JK = acc.T
    da_row, there = factor_rows(factors, factors_stride, adapter, j[:, None], three, ends, K, DA, tl.float32)
    inside = there & (k < K)[None, :]
    if tile == first_tile:
        da_at = da_row + k[None, :]
        tl.store(da_at, tl.load(da_at, mask=inside, other=0.0) + acc_JK, mask=inside)
    else:
        row = part_row(low_at, tile, CHUNK) + j
        tl.store(scratch + row.to(tl.int64)[:, None] * K + k[None, :], acc_JK, mask=inside)


@triton.jit
def lora_down_grad_sum(scratch, low_at, factors, ranks, tile_adapter, factors_stride, ranks_stride, M, K, G, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the later chunks of da."""
    K = K // 8 * 8
    add_chunks(factors, scratch, low_at, ranks, tile_adapter, factors_stride, ranks_stride, tl.program_id(0), tl.program_id(1), tl.num_programs(1), M // ROW_TILE,
               (K, K, K), K, G, DA, CHUNK, BLOCK)
