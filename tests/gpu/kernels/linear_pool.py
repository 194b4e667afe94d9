"""Adapters in memory of their own, and the tables that kernels find them by, with NaN wherever nothing may be read."""
import os

import torch

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
NAN = float("nan")
UNIT, ROW_TILE = 16, 128


def padded(rank):
    return -(-rank // UNIT) * UNIT


def placed(shapes, dtype):
    """Random matrices at multiples of 256 bytes of one allocation full of NaN, which continues after the last."""
    sizes = [-(-rows * columns // 128) * 128 + 128 for rows, columns in shapes]
    region = torch.full((sum(sizes) + 64 * max(columns for _, columns in shapes),), NAN, device=DEVICE, dtype=dtype)
    out, at = [], 0
    for (rows, columns), size in zip(shapes, sizes):
        out.append(region[at : at + rows * columns].view(rows, columns))
        out[-1].copy_(torch.randn(rows, columns, device=DEVICE))
        at += size
    return out


def table(rows, dtype, gap):
    """[L, ...] with `gap` elements between the rows, which hold what no kernel should take for an address or a rank."""
    inner = torch.tensor(rows, dtype=dtype, device=DEVICE)
    flat = torch.full((len(rows), inner[0].numel() + gap), -7, dtype=dtype, device=DEVICE)
    view = flat.as_strided(inner.shape, (flat.shape[1], *inner.stride()[1:]))
    view.copy_(inner)
    return view


class Pool:
    """The adapters of one group of linears: `ranks` [L][G], `columns` the outputs of each linear."""

    def __init__(self, dtype, columns, K, ranks):
        self.dtype, self.columns, self.K, self.rank_list = dtype, columns, K, ranks
        self.L, self.G = len(ranks), len(columns)
        targets = [(l, g) for l in range(self.L) for g in range(self.G) if ranks[l][g] > 0]
        # What is computed in and its gradient lie apart, as in the pool; each adapter's in its own allocation.
        self.a, self.b, self.da, self.db = {}, {}, {}, {}
        for l in range(self.L):
            mine = [at for at in targets if at[0] == l]
            shapes = [shape for _, g in mine for shape in ((ranks[l][g], K), (ranks[l][g], columns[g]))]
            if mine:
                for out, dt in (((self.a, self.b), dtype), ((self.da, self.db), torch.float32)):
                    made = placed(shapes, dt)
                    for i, at in enumerate(mine):
                        out[0][at], out[1][at] = made[2 * i], made[2 * i + 1]
        address = lambda of, at: of[at].data_ptr() if at in of else 0
        self.factors = table([[[address(of, (l, g)) for of in (self.a, self.b, self.da, self.db)] for g in range(self.G)] for l in range(self.L)], torch.int64, 5)
        self.ranks = table(ranks, torch.int32, 3)
        self.scale = table((torch.rand(self.L, self.G) + 0.5).tolist(), torch.float32, 3)
        some = [rank for row in ranks for rank in row if rank > 0]
        self.least, self.most = min(some, default=16), max(some, default=16)

    def width(self, l):
        return sum(padded(rank) for rank in self.rank_list[l]) if l >= 0 else 0

    def column(self, l, g):
        """Where linear g begins in s."""
        return sum(padded(rank) for rank in self.rank_list[l][:g])

    def place(self, tiles, wider):
        """low_at of these tiles, and the elements of s. `wider`: units of each row of an adapter that it does not need."""
        at, low_at = 0, []
        for l in tiles:
            low_at.append(at)
            if l >= 0:
                at += ROW_TILE // UNIT * (self.width(l) + UNIT * wider[l])
        return torch.tensor(low_at, dtype=torch.int32, device=DEVICE), at * UNIT


def vectors(rows):
    """The table of an adapter's own vectors: of [L][G][4] tensors or None."""
    return table([[[0 if t is None else t.data_ptr() for t in linear] for linear in row] for row in rows], torch.int64, 3)


def vector(values):
    """f32 with NaN after it, at a multiple of 256 bytes."""
    region = torch.full((-(-values.numel() // 64) * 64 + 512,), NAN, device=DEVICE)
    out = region[: values.numel()]
    out.copy_(values)
    return out


def is_untouched_after(t):
    """Whether what follows a tensor in its allocation is still NaN."""
    return bool(t.as_strided((64,), (1,), t.storage_offset() + t.numel()).isnan().all())
