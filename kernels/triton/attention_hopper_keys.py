"""attention_backward_kv of attention.py for Hopper: see attention_hopper.py.

Each of two groups computes dk and dv of 64 rows. Heads of 256 leave a group no registers for both: the groups then work on the
same 64 rows, one on dk and the other on dv, with the scores made twice.
"""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from attention import LOG2E, place, seen_until
from attention_hopper import LOADER_REGISTERS, ROWS, arrived, barriers, claim, load_both, release, tile_of, tile_ring, write_rows


@gluon.jit
def load_keys(q_rows, kv_rows, do_rows, lse, delta, k_s, v_s, k_full, queries, lses, douts, deltas, n0, lo, tiles, count, first_head, k_column, v_column,
              HEAD_DIM: gl.constexpr):
    """The loading warp of attention_backward_kv."""
    mbarrier.expect(k_full.index(0), 4 * kv_rows.block_type.nbytes)
    load_both(kv_rows, n0, k_column, k_full.index(0), k_s)
    load_both(kv_rows, n0, v_column, k_full.index(0), v_s)
    load_queries_of_keys(q_rows, do_rows, lse, delta, queries, lses, douts, deltas, lo, tiles, count, first_head, HEAD_DIM)


@gluon.jit
def load_keys_once(q_rows, kv_rows, do_rows, lse, delta, k_s, v_s, k_full, queries, lses, douts, deltas, n0, lo, tiles, count, first_head, k_column, v_column,
                   HEAD_DIM: gl.constexpr):
    """The same where both groups work on the same 64 keys."""
    mbarrier.expect(k_full.index(0), 2 * kv_rows.block_type.nbytes)
    tma.async_copy_global_to_shared(kv_rows, [n0, k_column], k_full.index(0), k_s.index(0))
    tma.async_copy_global_to_shared(kv_rows, [n0, v_column], k_full.index(0), v_s.index(0))
    load_queries_of_keys(q_rows, do_rows, lse, delta, queries, lses, douts, deltas, lo, tiles, count, first_head, HEAD_DIM)


@gluon.jit
def load_queries_of_keys(q_rows, do_rows, lse, delta, queries, lses, douts, deltas, lo, tiles, count, first_head, HEAD_DIM: gl.constexpr):
    """Tiles of all rows and heads that see the keys."""
    BM: gl.constexpr = q_rows.block_shape[0]
    for i in range(count):
        head, m0 = first_head + i // tiles, lo + i % tiles * BM
        q, q_full = claim(queries, i)
        mbarrier.expect(q_full, q_rows.block_type.nbytes + lse.block_type.nbytes)
        tma.async_copy_global_to_shared(q_rows, [m0, head * HEAD_DIM], q_full, q)
        tma.async_copy_global_to_shared(lse, [head, m0], q_full, lses.index(i % lses.shape[0]))
        do, do_full = claim(douts, i)
        mbarrier.expect(do_full, do_rows.block_type.nbytes + delta.block_type.nbytes)
        tma.async_copy_global_to_shared(do_rows, [m0, head * HEAD_DIM], do_full, do)
        tma.async_copy_global_to_shared(delta, [head, m0], do_full, deltas.index(i % deltas.shape[0]))


@gluon.jit
def mask_queries(s, n, end, m0, n0, whole, BM: gl.constexpr, S: gl.constexpr):
    """Scores of keys n from n0 and rows from m0: -inf where a row does not see a key."""
    if (m0 < n0 + ROWS - 1) | (m0 + BM > whole):
        m = m0 + gl.arange(0, BM, gl.SliceLayout(0, S))
        s = gl.where((m[None, :] >= n[:, None]) & (m[None, :] < end[:, None]), s, float("-inf"))
    return s


@gluon.jit
def key_rows(dqkv, bounds, k_s, v_s, k_full, queries, lses, douts, deltas, M, n0, lo, tiles, count, whole, scale, window, k_column, v_column,
             GROUP: gl.constexpr, BM: gl.constexpr, HEAD_DIM: gl.constexpr):
    """dk and dv of one group's rows. Scores lie transposed: p and ds are left operands as they are."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    n0 += GROUP * ROWS
    n = n0 + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    end, real = seen_until(bounds, n, M, window)
    to_log2 = scale * LOG2E
    k, v = k_s.index(GROUP), v_s.index(GROUP)
    none = gl.zeros([ROWS, BM], gl.float32, S)
    dk = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    dv = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    mbarrier.wait(k_full.index(0), 0)
    for i in range(count):
        m0 = lo + i % tiles * BM
        q, do = tile_of(queries, i), tile_of(douts, i)
        arrived(queries, i)
        s = warpgroup_mma(k, q.permute((1, 0)), none, use_acc=False, is_async=True)
        arrived(douts, i)
        dp = warpgroup_mma(v, do.permute((1, 0)), none, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(1, [s])
        s = mask_queries(s, n, end, m0, n0, whole, BM, S)
        p = gl.exp2(gl.fma(s, to_log2, lses.index(i % lses.shape[0]).load(S) * -LOG2E))
        dv = warpgroup_mma(gl.convert_layout(p.to(gl.bfloat16), P), do, dv, is_async=True)
        dp = warpgroup_mma_wait(1, [dp])
        ds = gl.convert_layout((p * (dp - deltas.index(i % deltas.shape[0]).load(S))).to(gl.bfloat16), P)
        dk = warpgroup_mma(ds, q, dk, is_async=True)
        dk, dv = warpgroup_mma_wait(0, [dk, dv])
        release(queries, i)
        release(douts, i)
    real_O = gl.convert_layout(real.to(gl.int32), gl.SliceLayout(1, O))[:, None] != 0
    write_rows(dqkv, n0, k_column, k, gl.where(real_O, dk * scale, 0.0))
    write_rows(dqkv, n0, v_column, v, gl.where(real_O, dv, 0.0))
    tma.store_wait(0)


@gluon.jit
def wait_for_both(done):
    """Until both groups have read the keys and values."""
    mbarrier.arrive(done.index(0))
    mbarrier.wait(done.index(0), 0)


@gluon.jit
def write_sum(dqkv, parts, row0, width, column, through, value, O: gl.constexpr, HEAD_DIM: gl.constexpr, PARTS: gl.constexpr):
    """Writes f32[64, HEAD_DIM], rounded to bf16, or with PARTS as it is to a matrix f32[.., width]."""
    if PARTS:
        n = (row0 + gl.arange(0, ROWS, gl.SliceLayout(1, O))).to(gl.int64)
        d = column + gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O))
        gl.store(parts + n[:, None] * width + d[None, :], value)
    else:
        write_rows(dqkv, row0, column, through, value)
        tma.store_wait(0)


@gluon.jit
def dk_rows(dqkv, parts, part_row0, part_width, part_column, bounds, k_s, v_s, k_full, queries, lses, douts, deltas, done, M, n0, lo, tiles, count, whole, scale, window, k_column,
            BM: gl.constexpr, HEAD_DIM: gl.constexpr, PARTS: gl.constexpr):
    """dk of 64 rows, where a group has no registers for dv besides."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    n = n0 + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    end, real = seen_until(bounds, n, M, window)
    to_log2 = scale * LOG2E
    k, v = k_s.index(0), v_s.index(0)
    none = gl.zeros([ROWS, BM], gl.float32, S)
    dk = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    mbarrier.wait(k_full.index(0), 0)
    for i in range(count):
        q, do = tile_of(queries, i), tile_of(douts, i)
        arrived(queries, i)
        s = warpgroup_mma(k, q.permute((1, 0)), none, use_acc=False, is_async=True)
        arrived(douts, i)
        dp = warpgroup_mma(v, do.permute((1, 0)), none, use_acc=False, is_async=True)
        s = mask_queries(warpgroup_mma_wait(1, [s]), n, end, lo + i % tiles * BM, n0, whole, BM, S)
        p = gl.exp2(gl.fma(s, to_log2, lses.index(i % lses.shape[0]).load(S) * -LOG2E))
        dp = warpgroup_mma_wait(0, [dp])
        ds = gl.convert_layout((p * (dp - deltas.index(i % deltas.shape[0]).load(S))).to(gl.bfloat16), P)
        release(douts, i)
        dk = warpgroup_mma_wait(0, [warpgroup_mma(ds, q, dk, is_async=True)])
        release(queries, i)
    wait_for_both(done)
    real_O = gl.convert_layout(real.to(gl.int32), gl.SliceLayout(1, O))[:, None] != 0
    dk = gl.where(real_O, dk * scale, 0.0)
    if PARTS:
        write_sum(dqkv, parts, part_row0, part_width, part_column, k, dk, O, HEAD_DIM, PARTS)
    else:
        write_sum(dqkv, parts, n0, part_width, k_column, k, dk, O, HEAD_DIM, PARTS)


@gluon.jit
def dv_rows(dqkv, parts, part_row0, part_width, part_column, bounds, k_s, v_s, k_full, queries, lses, douts, done, M, n0, lo, tiles, count, whole, scale, window, v_column,
            BM: gl.constexpr, HEAD_DIM: gl.constexpr, PARTS: gl.constexpr):
    """dv of the same 64 rows."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    n = n0 + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    end, real = seen_until(bounds, n, M, window)
    to_log2 = scale * LOG2E
    k = k_s.index(0)
    none = gl.zeros([ROWS, BM], gl.float32, S)
    dv = gl.zeros([ROWS, HEAD_DIM], gl.float32, O)
    mbarrier.wait(k_full.index(0), 0)
    for i in range(count):
        arrived(queries, i)
        s = warpgroup_mma_wait(0, [warpgroup_mma(k, tile_of(queries, i).permute((1, 0)), none, use_acc=False, is_async=True)])
        s = mask_queries(s, n, end, lo + i % tiles * BM, n0, whole, BM, S)
        p = gl.exp2(gl.fma(s, to_log2, lses.index(i % lses.shape[0]).load(S) * -LOG2E))
        release(queries, i)
        arrived(douts, i)
        dv = warpgroup_mma(gl.convert_layout(p.to(gl.bfloat16), P), tile_of(douts, i), dv, is_async=True)
        dv = warpgroup_mma_wait(0, [dv])
        release(douts, i)
    wait_for_both(done)
    real_O = gl.convert_layout(real.to(gl.int32), gl.SliceLayout(1, O))[:, None] != 0
    dv = gl.where(real_O, dv, 0.0)
    if PARTS:
        write_sum(dqkv, parts, part_row0, part_width, part_column, v_s.index(0), dv, O, HEAD_DIM, PARTS)
    else:
        write_sum(dqkv, parts, n0, part_width, v_column, v_s.index(0), dv, O, HEAD_DIM, PARTS)


@gluon.jit
def attention_backward_kv(q_rows, kv_rows, do_rows, bounds, lse, delta, dqkv, parts, M, D, heads, kv_heads, splits, scale, window, cap,
                          BM: gl.constexpr, BN: gl.constexpr, HEAD_DIM: gl.constexpr, EXACT: gl.constexpr, CAP: gl.constexpr, MAKES: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr):
    """dk and dv of one key head of BN rows: 128, 64 of each group, or 64, dk by one group and dv by the other."""
    if PARTS:
        tile, share = place(kv_heads * splits)
        k_head, split = share // splits, share % splits
        group = heads // kv_heads // splits
    else:
        tile, k_head = place(kv_heads)
        share, split, group = k_head, 0, heads // kv_heads
    n0 = tile * BN  # earlier rows are seen by more
    n = n0 + gl.arange(0, BN, gl.BlockedLayout([1], [32], [4], [0]))
    TILES: gl.constexpr = BN // ROWS
    end, real = seen_until(bounds, n, M, window)
    lo = gl.min(gl.where(real, n, M), 0) // BM * BM
    tiles = gl.cdiv(gl.maximum(gl.max(end, 0) - lo, 0), BM)
    whole = gl.min(gl.where(real, end, M), 0)  # rows from a group's last key up to here see every key of a sequence
    k_column, v_column = (heads + k_head) * HEAD_DIM, (heads + kv_heads + k_head) * HEAD_DIM
    k_s = gl.allocate_shared_memory(kv_rows.dtype, [TILES, ROWS, HEAD_DIM], kv_rows.layout)
    v_s = gl.allocate_shared_memory(kv_rows.dtype, [TILES, ROWS, HEAD_DIM], kv_rows.layout)
    k_full = barriers(1, 1)
    queries, douts = tile_ring(q_rows, STAGES, BM), tile_ring(do_rows, STAGES, BM)
    lses = gl.allocate_shared_memory(gl.float32, [STAGES, 1, BM], lse.layout)
    deltas = gl.allocate_shared_memory(gl.float32, [STAGES, 1, BM], delta.layout)
    if TILES == 2:
        gl.warp_specialize([
            (key_rows, (dqkv, bounds, k_s, v_s, k_full, queries, lses, douts, deltas, M, n0, lo, tiles, group * tiles, whole, scale, window, k_column, v_column, 0, BM, HEAD_DIM)),
            (key_rows, (dqkv, bounds, k_s, v_s, k_full, queries, lses, douts, deltas, M, n0, lo, tiles, group * tiles, whole, scale, window, k_column, v_column, 1, BM, HEAD_DIM)),
            (load_keys, (q_rows, kv_rows, do_rows, lse, delta, k_s, v_s, k_full, queries, lses, douts, deltas, n0, lo, tiles, group * tiles, share * group, k_column, v_column, HEAD_DIM)),
        ], [4, 1], [REGISTERS, LOADER_REGISTERS])
    else:
        done = barriers(1, 2)
        row0, width, column = split * M + n0, 2 * kv_heads * HEAD_DIM, k_head * HEAD_DIM
        gl.warp_specialize([
            (dk_rows, (dqkv, parts, row0, width, column, bounds, k_s, v_s, k_full, queries, lses, douts, deltas, done, M, n0, lo, tiles, group * tiles, whole, scale, window, k_column, BM, HEAD_DIM, PARTS)),
            (dv_rows, (dqkv, parts, row0, width, column + kv_heads * HEAD_DIM, bounds, k_s, v_s, k_full, queries, lses, douts, done, M, n0, lo, tiles, group * tiles, whole, scale, window, v_column, BM, HEAD_DIM, PARTS)),
            (load_keys_once, (q_rows, kv_rows, do_rows, lse, delta, k_s, v_s, k_full, queries, lses, douts, deltas, n0, lo, tiles, group * tiles, share * group, k_column, v_column, HEAD_DIM)),
        ], [4, 1], [REGISTERS, LOADER_REGISTERS])
