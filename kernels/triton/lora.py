"""The low-rank product shared by linears with one input, and the gradients of A and B: memory-bound, one read of x or of dy
each.

    lora_down        s[m, j]     = sum_k drop(x)[m, k] a[l, j, k]                 j = g R + r over all G R, l the tile's adapter
    lora_up_grad     ds[m, j]    = scale[l, g] sum_n dy[m, n] b[l, n, r]          over the columns n of linear g
                     db[l, n, r] += scale[l, g] sum_m dy[m, n] s[m, j]
    lora_down_grad   da[l, j, k] += sum_m ds[m, j] drop(x)[m, k]

Shapes: x c[M, K]; dy c[M, N]; s, ds c[M, G R]; a c[L, G R, K] and b c[L, N, R], da and db f32 alike, L strided. s and ds are
written everywhere: zeros beyond an adapter's rank and in tiles of no adapter. Needs: M a multiple of 128, K, N and firstColumn
[0, first1, first2, N] (first1 = first2 = N for one linear, first2 = N for two) multiples of 8, R 16 to 256, the tiles of an
adapter side by side, 16-byte alignment.

Order of sums. An adapter's rows are cut into chunks of CHUNK tiles from its own first tile. A chunk is summed by one program
for each block of columns; the first chunk adds to da or db itself, the others go to scratch and are added in their order by the
*_sum kernel. Sums over k and n are cut at places that depend on K and N alone. So no result depends on other adapters or on R.

Launch (T = M / 128 tiles, at most C = floor((T + min(L, T) (CHUNK - 1)) / CHUNK) chunks; CB, BN, ... the variant's constants):
    lora_down            grid (M / BM, parts, ceil(G R / CB)); parts = ceil(ceil(K / BK) / part_blocks), part_blocks by K alone;
                         scratch f32[parts, M, G R], unused when parts = 1: then s is written here and lora_down_sum not
                         launched
    lora_down_sum        grid (ceil(M G R / BLOCK))
    lora_up_grad         grid (blocks, C, R / RB); blocks = sum over g of ceil(columns of g / BN); ds_part f32[blocks, M, R];
                         db_part f32[ceil(T / CHUNK), N, R]
    lora_up_grad_sum     grid (M / ROWS * G * R / RB + L ceil(N R / BLOCK)); the second term only when T > CHUNK
    lora_down_grad       grid (ceil(K / BK), C, ceil(G R / CB)); scratch f32[ceil(T / CHUNK), G R, K]
    lora_down_grad_sum   grid (L, ceil(G R K / BLOCK)); needed only when T > CHUNK
"""
import triton
import triton.language as tl

from dropout import dropout_keep, dropout_row_key, dropout_settings

ROW_TILE = tl.constexpr(128)  # an adapter's rows begin at a multiple of this


@triton.jit
def adapter_tiles(tile_adapter, adapter, tiles):
    """The first tile of an adapter and how many it has."""
    first, count = tiles, 0
    for t0 in range(0, tiles, 128):
        t = t0 + tl.arange(0, 128)
        mine = tl.load(tile_adapter + t, mask=t < tiles, other=-1) == adapter
        first = tl.minimum(first, tl.min(tl.where(mine, t, tiles)))
        count += tl.sum(mine.to(tl.int32))
    return first, count


@triton.jit
def find_chunk(tile_adapter, number, tiles, CHUNK: tl.constexpr):
    """Chunk `number` of the batch: its first tile (-1: there are fewer), its adapter, the adapter's first tile, the chunk's
    last row + 1."""
    found, adapter, first = -1, -1, -1
    before, run = 0, 0  # chunks so far; where the adapter of the last tile began
    for t0 in range(0, tiles, 128):
        t = t0 + tl.arange(0, 128)
        here = tl.load(tile_adapter + t, mask=t < tiles, other=-1)
        left = tl.load(tile_adapter + t - 1, mask=(t > 0) & (t < tiles), other=-1)
        begin = tl.maximum(tl.associative_scan(tl.where((here != left) | (t == 0), t, 0), 0, larger), run)
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
def block_in_use(ranks, adapter, j0, G: tl.constexpr, R: tl.constexpr, CB: tl.constexpr):
    """Whether an adapter has a rank among columns j0 .. j0 + CB of G R."""
    use = False
    if adapter >= 0:
        for g in tl.static_range(G):
            rank = tl.load(ranks + adapter * G + g)
            use = use | ((rank > 0) & (g * R < j0 + CB) & (g * R + rank > j0))
    return use


@triton.jit
def add_chunks(out, part, first, count, size, i, inside, CHUNK: tl.constexpr):
    """out[i] += the later chunks of an adapter, in their order; part: f32[chunks, size]. Outside, no part was written."""
    total = tl.load(out + i, mask=inside, other=0.0)
    for tile in range(first + CHUNK, first + count, CHUNK):
        total += tl.load(part + tl.cast(tile // CHUNK, tl.int64) * size + i, mask=inside, other=0.0)
    tl.store(out + i, total, mask=inside)


@triton.jit
def down_product(x, a_row, m, first, last, K, in_use, k0, k1, threshold, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DROP: tl.constexpr):
    """f32[BM, CB] = drop(x)[m, k] a[j, k] over blocks first .. last of BK columns, without the factor 1 / (1 - p)."""
    acc = tl.zeros((BM, CB), tl.float32)
    x_row = x + m.to(tl.int64)[:, None] * K
    for block in range(first, last):
        k = block * BK + tl.arange(0, BK)
        x_MK = tl.load(x_row + k[None, :], mask=(k < K)[None, :], other=0.0)
        a_JK = tl.load(a_row + k[None, :], mask=in_use[:, None] & (k < K)[None, :], other=0.0)
        if DROP:
            x_MK = tl.where(dropout_keep(k0[:, None], k1[:, None], k[None, :], threshold), x_MK, 0.0)
        acc = tl.dot(x_MK, a_JK.T, acc, input_precision="ieee")
    return acc


@triton.jit
def lora_down(x, a, s, scratch, ranks, tile_adapter, row_number, dropout, module, a_stride, M, K, part_blocks,
              G: tl.constexpr, R: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """s = drop(x) a^T, or parts of it. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    a_stride = a_stride // 8 * 8
    GR: tl.constexpr = G * R
    m0, part, j0 = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2) * CB
    m, j = m0 + tl.arange(0, BM), j0 + tl.arange(0, CB)
    adapter = tl.load(tile_adapter + m0 // ROW_TILE)
    acc = tl.zeros((BM, CB), tl.float32)
    if block_in_use(ranks, adapter, j0, G, R, CB):
        a_row = a + adapter.to(tl.int64) * a_stride + j.to(tl.int64)[:, None] * K
        in_use = (j < GR) & (j % R < tl.load(ranks + adapter * G + j // R, mask=j < GR, other=0))
        first = part * part_blocks
        last = min(first + part_blocks, tl.cdiv(K, BK))
        seed, step, threshold, inverse = dropout_settings(dropout, adapter)
        if threshold == 0:
            acc = down_product(x, a_row, m, first, last, K, in_use, m, m, threshold, CB, BM, BK, False)
        else:
            k0, k1 = dropout_row_key(seed, step, module, tl.load(row_number + m))
            acc = down_product(x, a_row, m, first, last, K, in_use, k0, k1, threshold, CB, BM, BK, True) * inverse
    at = m.to(tl.int64)[:, None] * GR + j[None, :]
    if tl.num_programs(1) == 1:
        tl.store(s + at, acc.to(s.dtype.element_ty), mask=(j < GR)[None, :])
    else:
        tl.store(scratch + part.to(tl.int64) * M * GR + at, acc, mask=(j < GR)[None, :])


@triton.jit
def lora_down_sum(s, scratch, parts, size, BLOCK: tl.constexpr):
    """s[i] = sum over the parts of scratch[part, i], i < size = M G R."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(scratch + tl.cast(part, tl.int64) * size + i, mask=i < size, other=0.0)
    tl.store(s + i, total.to(s.dtype.element_ty), mask=i < size)


@triton.jit
def lora_up_grad(dy, s, b, db, ds_part, db_part, scale, ranks, tile_adapter, b_stride, db_stride, M, N, first1, first2,
                 G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr):
    """ds by blocks of columns and db by chunks of rows, from one read of dy. See the top of the file."""
    N = N // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    first1, first2 = first1 // 8 * 8, first2 // 8 * 8
    b_stride = b_stride // 8 * 8
    db_stride = db_stride // 8 * 8
    block, r0 = tl.program_id(0), tl.program_id(2) * RB
    tile, adapter, first, m_end = find_chunk(tile_adapter, tl.program_id(1), M // ROW_TILE, CHUNK)
    if tile < 0:
        return
    g, n0, last = 0, block * BN, first1
    if G > 1:
        before = tl.cdiv(first1, BN)
        if block >= before:
            g, n0, last = 1, first1 + (block - before) * BN, first2
        if G > 2:
            before += tl.cdiv(first2 - first1, BN)
            if block >= before:
                g, n0, last = 2, first2 + (block - before) * BN, N
    rank = tl.load(ranks + adapter * G + g)
    if r0 >= rank:
        return

    n, r = n0 + tl.arange(0, BN), r0 + tl.arange(0, RB)
    factor = tl.load(scale + adapter * G + g)
    ours = (n < last)[:, None] & (r < rank)[None, :]
    b_NR = tl.load(b + adapter.to(tl.int64) * b_stride + n.to(tl.int64)[:, None] * R + r[None, :], mask=ours, other=0.0)
    db_NR = tl.zeros((BN, RB), tl.float32)
    for m0 in range(tile * ROW_TILE, m_end, BM):
        m = (m0 + tl.arange(0, BM)).to(tl.int64)
        dy_MN = tl.load(dy + m[:, None] * N + n[None, :], mask=(n < last)[None, :], other=0.0)
        s_MR = tl.load(s + m[:, None] * (G * R) + (g * R + r)[None, :])
        ds_MR = tl.dot(dy_MN, b_NR, input_precision="ieee")
        tl.store(ds_part + (block.to(tl.int64) * M + m)[:, None] * R + r[None, :], ds_MR)
        db_NR = tl.dot(dy_MN.T, s_MR, db_NR, input_precision="ieee")
    if tile == first:
        db_at = db + adapter.to(tl.int64) * db_stride + n.to(tl.int64)[:, None] * R + r[None, :]
        tl.store(db_at, tl.load(db_at, mask=ours, other=0.0) + db_NR * factor, mask=ours)
    else:
        part_at = db_part + ((tile // CHUNK).to(tl.int64) * N + n)[:, None] * R + r[None, :]
        tl.store(part_at, db_NR * factor, mask=(n < last)[:, None])


@triton.jit
def lora_up_grad_sum(ds, db, ds_part, db_part, scale, ranks, tile_adapter, db_stride, M, N, first1, first2,
                     G: tl.constexpr, R: tl.constexpr, RB: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """The first programs sum ds over the blocks of columns, the others add the later chunks of db."""
    db_stride = db_stride // 8 * 8
    program = tl.program_id(0)
    blocks_r: tl.constexpr = R // RB
    ds_programs = M // ROWS * (G * blocks_r)
    if program < ds_programs:
        m0, part = program // (G * blocks_r) * ROWS, program % (G * blocks_r)
        g, r0 = part // blocks_r, part % blocks_r * RB
        begin, end = 0, tl.cdiv(first1, BN)
        if g > 0:
            begin, end = end, end + tl.cdiv(first2 - first1, BN)
        if g > 1:
            begin, end = end, end + tl.cdiv(N - first2, BN)
        m, r = (m0 + tl.arange(0, ROWS)).to(tl.int64), r0 + tl.arange(0, RB)
        total = tl.zeros((ROWS, RB), tl.float32)
        adapter = tl.load(tile_adapter + m0 // ROW_TILE)
        if adapter >= 0:
            rank = tl.load(ranks + adapter * G + g)
            if r0 < rank:
                at = ds_part + m[:, None] * R + r[None, :]
                for block in tl.range(begin, end, loop_unroll_factor=8):
                    total += tl.load(at + tl.cast(block, tl.int64) * M * R)
                total = tl.where((r < rank)[None, :], total * tl.load(scale + adapter * G + g), 0.0)
        tl.store(ds + m[:, None] * (G * R) + (g * R + r)[None, :], total.to(ds.dtype.element_ty))
    else:
        blocks = tl.cdiv(N * R, BLOCK)
        adapter, block = (program - ds_programs) // blocks, (program - ds_programs) % blocks
        first, count = adapter_tiles(tile_adapter, adapter, M // ROW_TILE)
        if count > CHUNK:
            i = block * BLOCK + tl.arange(0, BLOCK)
            n = i // R
            g = tl.minimum((n >= first1).to(tl.int32) + (n >= first2).to(tl.int32), G - 1)
            inside = i < N * R
            inside = inside & (i % R < tl.load(ranks + adapter * G + g, mask=inside, other=0))
            add_chunks(db + adapter.to(tl.int64) * db_stride, db_part, first, count, N * R, i, inside, CHUNK)


@triton.jit
def down_grad_product(x, ds, m_begin, m_end, K, k, j, in_use, row_number, seed, step, module, threshold,
                      GR: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, DROP: tl.constexpr):
    """f32[BK, CB] = sum over rows m_begin .. m_end of drop(x)[m, k] ds[m, j], without the factor 1 / (1 - p)."""
    acc = tl.zeros((BK, CB), tl.float32)
    rows = tl.arange(0, BM)
    if DROP:
        number = tl.load(row_number + m_begin + rows)
    for m0 in range(m_begin, m_end, BM):
        m = m0 + rows
        x_MK = tl.load(x + m.to(tl.int64)[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
        ds_MJ = tl.load(ds + m.to(tl.int64)[:, None] * GR + j[None, :], mask=in_use[None, :], other=0.0)
        if DROP:
            k0, k1 = dropout_row_key(seed, step, module, number)
            number = tl.load(row_number + tl.minimum(m0 + BM, m_end - BM) + rows)  # for the next block: nothing waits for it
            x_MK = tl.where(dropout_keep(k0[:, None], k1[:, None], k[None, :], threshold), x_MK, 0.0)
        acc = tl.dot(x_MK.T, ds_MJ, acc, input_precision="ieee")
    return acc


@triton.jit
def lora_down_grad(x, ds, da, scratch, ranks, tile_adapter, row_number, dropout, module, da_stride, M, K,
                   G: tl.constexpr, R: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr):
    """da += ds^T drop(x) by chunks of rows. See the top of the file."""
    K = K // 8 * 8  # as it is: tells the compiler that rows are aligned to 16 bytes
    da_stride = da_stride // 8 * 8
    GR: tl.constexpr = G * R
    k_at, j0 = tl.program_id(0) * BK, tl.program_id(2) * CB
    tile, adapter, first, m_end = find_chunk(tile_adapter, tl.program_id(1), M // ROW_TILE, CHUNK)
    if not block_in_use(ranks, adapter, j0, G, R, CB):
        return

    k, j = k_at + tl.arange(0, BK), j0 + tl.arange(0, CB)
    in_use = (j < GR) & (j % R < tl.load(ranks + adapter * G + j // R, mask=j < GR, other=0))
    m_begin = tile * ROW_TILE
    seed, step, threshold, inverse = dropout_settings(dropout, adapter)
    if threshold == 0:
        acc = down_grad_product(x, ds, m_begin, m_end, K, k, j, in_use, row_number, seed, step, module, threshold, GR, CB, BM, BK, False)
    else:
        acc = down_grad_product(x, ds, m_begin, m_end, K, k, j, in_use, row_number, seed, step, module, threshold, GR, CB, BM, BK, True) * inverse
    acc_JK = acc.T
    inside = in_use[:, None] & (k < K)[None, :]
    at = j.to(tl.int64)[:, None] * K + k[None, :]
    if tile == first:
        da_at = da + adapter.to(tl.int64) * da_stride + at
        tl.store(da_at, tl.load(da_at, mask=inside, other=0.0) + acc_JK, mask=inside)
    else:
        tl.store(scratch + (tile // CHUNK).to(tl.int64) * GR * K + at, acc_JK, mask=inside)


@triton.jit
def lora_down_grad_sum(da, scratch, ranks, tile_adapter, da_stride, M, K, G: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the later chunks of da, only where the adapter has the rank: elsewhere no part was written."""
    K = K // 8 * 8
    da_stride = da_stride // 8 * 8
    adapter, block = tl.program_id(0), tl.program_id(1)
    first, count = adapter_tiles(tile_adapter, adapter, M // ROW_TILE)
    if count <= CHUNK:
        return
    i = block * BLOCK + tl.arange(0, BLOCK)
    j = i // K
    inside = i < G * R * K
    inside = inside & (j % R < tl.load(ranks + adapter * G + j // R, mask=inside, other=0))
    add_chunks(da + adapter.to(tl.int64) * da_stride, scratch, first, count, G * R * K, i, inside, CHUNK)
