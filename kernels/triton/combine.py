"""From sorted rows back to those of the batch: a row's experts are added in the order of its slots.

    combine             out[m] = start[m] + sum over j of weights[m, j] y[place[m, j]], slots without a place left out
    combine_adapted     the same + sum over g of scale[l, g] sum_r low[m, r] f_g[r], f_g the A or B that all experts of a row's
                        adapter share
    bias_weight_grad    dweights[m, j] += sum over h of dout[m, h] bias[experts[m, j], h]

Shapes: y c[P, H]; start (has_start = 1), out, dout c[M, H], start may be out; bias c[E, H]; place, experts i32[M, k], -1 for
none; weights (has_weights = 1, else 1), dweights f32[M, k]; low c[low_size], the factors c[r, H] and the tables of adapters
as adapters.py has them, `side`: of A, without a scale, or B. Needs: H a multiple of 8.

Launch: combine grid (M, ceil(H / BLOCK)); combine_adapted grid (ceil(H / BN), M / BM); bias_weight_grad grid (M, k). No
scratch.
"""
import triton
import triton.language as tl

from adapters import B, ROW_TILE, UNIT, ends_of, low_begin, padded, pick, ranks_of


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
            total = tl.fma(weight, tl.load(y + p.to(tl.int64) * H + h, mask=h < H, other=0.0).to(tl.float32), total)
    tl.store(out + m * H + h, total.to(out.dtype.element_ty), mask=h < H)


@triton.jit
def combine_adapted(y, place, weights, start, out, low, low_at, factors, scale, ranks, tile_adapter, factors_stride, scale_stride, ranks_stride,
                    k, H, side, G, has_weights, has_start, BM: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr):
    """BM rows and BN columns. See the top of the file."""
    H = H // 8 * 8
    m, h = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64), tl.program_id(0) * BN + tl.arange(0, BN)
    inside = (h < H)[None, :]
    at = m[:, None] * H + h[None, :]
    total = tl.load(start + at, mask=inside & (has_start != 0), other=0.0).to(tl.float32)
    for j in range(k):
        p = tl.load(place + m * k + j)
        weight = tl.load(weights + m * k + j, mask=(p >= 0) & (has_weights != 0), other=1.0)
        total = tl.fma(weight[:, None], tl.load(y + p.to(tl.int64)[:, None] * H + h[None, :], mask=(p >= 0)[:, None] & inside, other=0.0).to(tl.float32), total)
    tile = tl.program_id(1) * BM // ROW_TILE
    adapter = tl.load(tile_adapter + tile)
    three = ranks_of(ranks, ranks_stride, adapter, G)
    ends = ends_of(three)
    end0, end1, W = ends
    begin = low + low_begin(low_at, tile, W) + (m % ROW_TILE)[:, None] * W
    for g in range(G):
        rank, column = pick(g, three), pick(g, (0, end0, end1))
        address = tl.load(factors + tl.cast(adapter, tl.int64) * factors_stride + g * 4 + side, mask=rank > 0, other=0)
        factor = tl.multiple_of(address.to(tl.pointer_type(low.dtype.element_ty)), 256)
        times = tl.load(scale + tl.cast(adapter, tl.int64) * scale_stride + g, mask=(side == B) & (rank > 0), other=1.0)
        for r0 in range(0, rank, RB):
            r = r0 + tl.arange(0, RB)
            low_MR = tl.load(begin + (column + r)[None, :], mask=(r < padded(rank))[None, :], other=0.0)
            f_RN = tl.load(factor + r[:, None].to(tl.int64) * H + h[None, :], mask=(r < rank)[:, None] & inside, other=0.0)
            total = tl.fma(tl.dot(low_MR, f_RN, input_precision="ieee"), times, total)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


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
        tables = "low_at:*i32 factors:*i64 scale:*fp32 ranks:*i32 tile_adapter:*i32 factors_stride:i32 scale_stride:i32 ranks_stride:i32"
        numbers = "k:i32 H:i32 side:i32 G:i32 has_weights:i32 has_start:i32"
        yield row("combine", "combine_adapted", kind, f"y:c place:*i32 weights:*fp32 start:c out:c low:c {tables} {numbers}", BM=32, BN=64 if kind == "f32" else 256, RB=16)
        yield row("combine", "bias_weight_grad", kind, "dout:c bias:c experts:*i32 dweights:*fp32 k:i32 H:i32", BLOCK=1024)
