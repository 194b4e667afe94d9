"""How linear.py and lora.py are launched, from Python: what src/device/cuda does, for tests and timings of the kernels alone.

A Case holds the adapters' tables and the tensors of one group of linears; its methods are the contract's kernels by name.
Runs on a GPU; with TRITON_INTERPRET=1 the pointer variants also run on the CPU at small shapes.
"""
import os
import sys
from dataclasses import dataclass, field

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../kernels/triton"))
import linear as linear_kernels  # noqa: E402
import lora as lora_kernels  # noqa: E402
# noqa: E402
from linear_variants import CONFIG, SUM_BLOCK, column_block, down_grad_config, rank_block, rank_block_backward, rank_block_forward, rows_of_sum, whole_pays

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
cdiv = triton.cdiv


@dataclass
class Case:
    kind: str  # tma, ptr or f32
    columns: list  # output features of each of the G linears
    K: int
    R: int
    tile_adapter: torch.Tensor  # i32[M / 128]
    ranks: torch.Tensor  # i32[L, G]
    scale: torch.Tensor  # f32[L, G]
    row_number: torch.Tensor  # i32[M]
    dropout: torch.Tensor  # i32[L, 4]
    module: int = 7
    config: dict = field(default_factory=dict)  # replaces parts of CONFIG[kind]

    def __post_init__(self):
        self.G = len(self.columns)
        self.N = sum(self.columns)
        self.M = self.tile_adapter.numel() * 128
        self.L = self.ranks.shape[0]
        ends = [sum(self.columns[: g + 1]) for g in range(self.G)]
        self.first1, self.first2 = ends[0], ends[1] if self.G > 1 else self.N
        self.dtype = torch.float32 if self.kind == "f32" else torch.bfloat16
        self.cfg = {**CONFIG[self.kind], "down_grad": down_grad_config(self.kind, self.G, self.R), **self.config}
        self.sms = 4 if INTERPRET else torch.cuda.get_device_properties(0).multi_processor_count
        self.CB = column_block(self.G, self.R)
        self.RB = rank_block(self.R)
        self.scratch = {}

    def chunks(self, chunk):
        """The most chunks that a batch can have."""
        tiles = self.M // 128
        return (tiles + min(self.L, tiles) * (chunk - 1)) // chunk

    def empty(self, name, *shape):
        """Scratch that is kept between launches, full of NaN at first."""
        if name not in self.scratch:
            self.scratch[name] = torch.full(shape, float("nan"), device=DEVICE, dtype=torch.float32)
        return self.scratch[name]

    def matrix(self, t, block, desc):
        """A matrix or a stack of them as the kernel takes it."""
        if not desc or t is None:
            return t
        return TensorDescriptor(t, list(t.shape), list(t.stride()), block)

    def lora_down(self, x, a, s):
        cfg, GR = self.cfg["down"], self.G * self.R
        part_blocks = cdiv(self.cfg["part"], cfg["BK"])
        parts = cdiv(cdiv(self.K, cfg["BK"]), part_blocks)
        scratch = self.empty("down", parts, self.M, GR)
        lora_kernels.lora_down[(self.M // cfg["BM"], parts, cdiv(GR, self.CB))](
            x, a, s, scratch, self.ranks, self.tile_adapter, self.row_number, self.dropout, self.module, a.stride(0), self.M, self.K, part_blocks,
            G=self.G, R=self.R, CB=self.CB, **cfg)
        if parts > 1:
            lora_kernels.lora_down_sum[(cdiv(self.M * GR, SUM_BLOCK["lora_down_sum"]),)](s, scratch, parts, self.M * GR, BLOCK=SUM_BLOCK["lora_down_sum"], num_warps=4)

    def linear_forward(self, x, w, y, s=None, b=None, bias=None, residual=None):
        cfg = self.cfg["linear"]
        desc, half, BM, BN, BK = cfg["DESC"], cfg["BN"] // 2, cfg["BM"], cfg["BN"], cfg["BK"]
        lora = s is not None
        whole = self.G == 1 or whole_pays(self.kind) and all(first % half == 0 for first in (self.first1, self.first2))
        RB = rank_block_forward(self.R, whole, residual is not None)
        grid = (min(self.sms, cdiv(self.M, BM) * cdiv(self.N, BN)),)
        linear_kernels.linear_forward[grid](
            self.matrix(x, [BM, BK], desc), self.matrix(w, [BN, BK], desc), self.matrix(y, [BM, half], desc), bias, self.matrix(residual, [BM, half], desc),
            self.matrix(s, [BM, RB], desc), self.matrix(b, [1, half, RB], desc), self.scale, self.ranks, self.tile_adapter, b.stride(0) if lora else 0,
            self.M, self.N, self.K, self.first1, self.first2, G=self.G, R=self.R, RB=RB, BIAS=int(bias is not None), RESIDUAL=int(residual is not None), LORA=int(lora), WHOLE=int(whole), **cfg)

    def lora_up_grad(self, dy, s, b, ds, db):
        cfg, RB = self.cfg["up_grad"], self.RB
        BN, chunk = cfg["BN"], cfg["CHUNK"]
        tiles = self.M // 128
        blocks = sum(cdiv(n, BN) for n in self.columns)
        ds_part = self.empty("ds", blocks, self.M, self.R)
        db_part = self.empty("db", cdiv(tiles, chunk), self.N, self.R)
        lora_kernels.lora_up_grad[(blocks, self.chunks(chunk), self.R // RB)](
            dy, s, b, db, ds_part, db_part, self.scale, self.ranks, self.tile_adapter, b.stride(0), db.stride(0), self.M, self.N, self.first1, self.first2,
            G=self.G, R=self.R, RB=RB, **cfg)
        rows, block = rows_of_sum(self.R), SUM_BLOCK["lora_up_grad_sum"]
        grid = (self.M // rows * self.G * (self.R // RB) + (self.L * cdiv(self.N * self.R, block) if tiles > chunk else 0),)
        lora_kernels.lora_up_grad_sum[grid](
            ds, db, ds_part, db_part, self.scale, self.ranks, self.tile_adapter, db.stride(0), self.M, self.N, self.first1, self.first2,
            G=self.G, R=self.R, RB=RB, ROWS=rows, BN=BN, CHUNK=chunk, BLOCK=block, num_warps=4)

    def linear_backward(self, dy, w, dx, ds=None, a=None):
        cfg, GR = self.cfg["linear"], self.G * self.R
        desc, half, BM, BN, BK = cfg["DESC"], cfg["BN"] // 2, cfg["BM"], cfg["BN"], cfg["BK"]
        lora = ds is not None
        RB = rank_block_backward(self.G, self.R)
        grid = (min(self.sms, cdiv(self.M, BM) * cdiv(self.K, BN)),)
        linear_kernels.linear_backward[grid](
            self.matrix(dy, [BM, BK], desc), self.matrix(w, [BK, BN], desc), self.matrix(dx, [BM, half], desc), self.matrix(ds, [BM, RB], desc), self.matrix(a, [1, RB, half], desc),
            self.ranks, self.tile_adapter, self.row_number, self.dropout, self.module, a.stride(0) if lora else 0, self.M, self.N, self.K,
            G=self.G, R=self.R, RB=RB, LORA=int(lora), **cfg)

    def lora_down_grad(self, x, ds, da):
        cfg, GR = self.cfg["down_grad"], self.G * self.R
        chunk, tiles, block = cfg["CHUNK"], self.M // 128, SUM_BLOCK["lora_down_grad_sum"]
        scratch = self.empty("da", cdiv(tiles, chunk), GR, self.K)
        lora_kernels.lora_down_grad[(cdiv(self.K, cfg["BK"]), self.chunks(chunk), cdiv(GR, self.CB))](
            x, ds, da, scratch, self.ranks, self.tile_adapter, self.row_number, self.dropout, self.module, da.stride(0), self.M, self.K, G=self.G, R=self.R, CB=self.CB, **cfg)
        if tiles > chunk:
            lora_kernels.lora_down_grad_sum[(self.L, cdiv(GR * self.K, block))](da, scratch, self.ranks, self.tile_adapter, da.stride(0), self.M, self.K, G=self.G, R=self.R, CHUNK=chunk, BLOCK=block, num_warps=4)
