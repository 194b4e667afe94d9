"""How linear.py and lora.py are launched, from Python: what src/ops does, for tests and timings of the kernels alone.

A Case holds the adapters and the tables of one micro-batch for one group of linears; its methods are the contract's kernels by
name. Runs on a GPU; with TRITON_INTERPRET=1 the pointer variants also run on the CPU at small shapes.
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
from linear_pool import DEVICE, INTERPRET, Pool, padded  # noqa: E402
from linear_variants import (  # noqa: E402
    ACTIVATION_BLOCKS, ADD_BLOCK, COLUMN_BLOCKS, CONFIG, DIVIDED, PART, RANK_BLOCKS, RANKS_BACKWARD, RANKS_FORWARD, SUM_BLOCK, down_grad_config)

triton.knobs.language.default_fp_fusion = False  # as codegen.py compiles
MOST_PROGRAMS = 32  # of a *_sum kernel for a tile, or for an adapter's later chunks
cdiv = triton.cdiv


def first_that(blocks, size):
    """The first block that is at least that large, or the last."""
    return next((block for block in blocks if block >= size), blocks[-1])


def rank_class(classes, size):
    """RB and WIDE: the first that holds this many ranks."""
    return next((RB, wide) for RB, wide in classes if wide or RB >= size)


@dataclass
class Case:
    kind: str  # tma, ptr or f32
    pool: Pool
    tile_adapter: torch.Tensor  # i32[M / 128]
    low_at: torch.Tensor  # i32[M / 128]
    low_size: int
    row_number: torch.Tensor  # i32[M]
    dropout: torch.Tensor  # i32[L, 4]
    module: int = 7
    config: dict = field(default_factory=dict)  # replaces parts of CONFIG[kind]
    part: int = PART

    def __post_init__(self):
        pool = self.pool
        self.G, self.K, self.L, self.N = pool.G, pool.K, pool.L, sum(pool.columns)
        self.M = self.tile_adapter.numel() * 128
        self.tiles = self.M // 128
        ends = [sum(pool.columns[: g + 1]) for g in range(self.G)]
        self.first1, self.first2 = ends[0], ends[1] if self.G > 1 else self.N
        self.dtype = torch.float32 if self.kind == "f32" else torch.bfloat16
        self.cfg = {**CONFIG[self.kind], **self.config}
        self.sms = 4 if INTERPRET else torch.cuda.get_device_properties(0).multi_processor_count
        self.scratch = {}
        # As src/ops/linear/low-rank.ts chooses.
        self.width = self.G * padded(pool.most)
        self.CB = first_that(COLUMN_BLOCKS[self.kind], min(self.width, 128 if pool.least == pool.most else 64))
        self.RB = first_that(RANK_BLOCKS[self.kind], 32 if pool.least <= 16 < pool.most else pool.most)

    def chunks(self, chunk):
        """The most chunks that a batch can have."""
        return (self.tiles + min(self.L, self.tiles) * (chunk - 1)) // chunk

    def empty(self, name, *shape):
        """Scratch that is kept between launches, full of NaN at first."""
        if name not in self.scratch:
            self.scratch[name] = torch.full(shape, float("nan"), device=DEVICE, dtype=torch.float32)
        return self.scratch[name]

    def matrix(self, t, block, desc):
        """A matrix as the kernel takes it."""
        return TensorDescriptor(t, list(t.shape), list(t.stride()), block) if desc and t is not None else t

    @property
    def strides(self):
        return self.pool.factors.stride(0), self.pool.ranks.stride(0)

    @property
    def three_strides(self):
        return self.pool.factors.stride(0), self.pool.scale.stride(0), self.pool.ranks.stride(0)

    def later_rows(self, chunk):
        """Rows of the scratch of later chunks."""
        return max(1, cdiv(self.low_size, 128 * chunk))

    def adders(self, chunk, pitch):
        """Adapters that may have later chunks, and programs for each."""
        return self.tiles // (chunk + 1), min(MOST_PROGRAMS, self.width * cdiv(pitch, ADD_BLOCK))

    def lora_down(self, x, s):
        cfg, pool = self.cfg["down"], self.pool
        part_blocks = cdiv(self.part, cfg["BK"])
        parts = cdiv(cdiv(self.K, cfg["BK"]), part_blocks)
        scratch = self.empty("down", parts * max(1, self.low_size))
        lora_kernels.lora_down[(self.M // cfg["BM"], parts, cdiv(self.width, self.CB))](
            x, s, scratch, self.low_at, pool.factors, pool.ranks, self.tile_adapter, self.row_number, self.dropout, self.module, *self.strides, self.M, self.K, self.low_size, part_blocks, self.G,
            CB=self.CB, **cfg)
        if parts > 1:
            lora_kernels.lora_down_sum[(self.tiles, min(MOST_PROGRAMS, cdiv(128 * self.width, SUM_BLOCK)))](
                s, scratch, self.low_at, pool.ranks, self.tile_adapter, pool.ranks.stride(0), self.low_size, parts, self.G, BLOCK=SUM_BLOCK, num_warps=4)

    def linear_forward(self, x, w, y, s=None, bias=None, residual=None):
        cfg, pool = self.cfg["linear"], self.pool
        desc, half, BM, BN, BK = cfg["DESC"], cfg["BN"] // 2, cfg["BM"], cfg["BN"], cfg["BK"]
        lora = s is not None
        whole = all(first % half == 0 or first == self.N for first in (self.first1, self.first2))
        RB, wide = (16, 0) if not lora else rank_class(RANKS_FORWARD[self.kind], pool.most) if whole else (DIVIDED[self.kind], 1)
        grid = (min(self.sms, cdiv(self.M, BM) * cdiv(self.N, BN)),)
        linear_kernels.linear_forward[grid](
            self.matrix(x, [BM, BK], desc), self.matrix(w, [BN, BK], desc), self.matrix(y, [BM, half], desc), bias, self.matrix(residual, [BM, half], desc),
            s, self.low_at, pool.factors, pool.scale, pool.ranks, self.tile_adapter, *self.three_strides, self.M, self.N, self.K, self.first1, self.first2, self.G,
            BIAS=int(bias is not None), RESIDUAL=int(residual is not None), LORA=int(lora), RB=RB, WIDE=wide, WHOLE=int(whole), FLAT=desc & ~wide, **cfg)

    def lora_up_grad(self, dy, s, ds):
        cfg, pool = self.cfg["up_grad"], self.pool
        BN, chunk, pitch = cfg["BN"], cfg["CHUNK"], max(pool.columns)
        blocks = [cdiv(n, BN) for n in pool.columns]
        ds_part = self.empty("ds", max(blocks) * max(1, self.low_size))
        db_part = self.empty("db", self.later_rows(chunk), pitch)
        shared = (self.low_at, pool.factors, pool.scale, pool.ranks, self.tile_adapter, *self.three_strides, self.M, self.N, self.first1, self.first2, self.low_size, pitch)
        lora_kernels.lora_up_grad[(sum(blocks), self.chunks(chunk), cdiv(pool.most, self.RB))](dy, s, ds_part, db_part, *shared, self.G, RB=self.RB, **cfg)
        adapters, programs = self.adders(chunk, pitch)
        of_tile = min(MOST_PROGRAMS, cdiv(128 * self.width, SUM_BLOCK))
        lora_kernels.lora_up_grad_sum[(self.tiles * of_tile + adapters * programs,)](
            ds, ds_part, db_part, *shared, of_tile, programs, self.G, BN=BN, CHUNK=chunk, BLOCK=SUM_BLOCK, DB_BLOCK=ADD_BLOCK, num_warps=4)

    def linear_backward(self, dy, w, dx, ds=None):
        cfg, pool = self.cfg["linear"], self.pool
        desc, half, BM, BN, BK = cfg["DESC"], cfg["BN"] // 2, cfg["BM"], cfg["BN"], cfg["BK"]
        lora = ds is not None
        RB, wide = rank_class(RANKS_BACKWARD[self.kind], self.width) if lora else (16, 0)
        grid = (min(self.sms, cdiv(self.M, BM) * cdiv(self.K, BN)),)
        linear_kernels.linear_backward[grid](
            self.matrix(dy, [BM, BK], desc), self.matrix(w, [BK, BN], desc), self.matrix(dx, [BM, half], desc), ds, self.low_at, pool.factors,
            pool.ranks, self.tile_adapter, self.row_number, self.dropout, self.module, *self.strides, self.M, self.N, self.K, self.G,
            LORA=int(lora), RB=RB, WIDE=wide, FLAT=desc & ~wide, **cfg)

    def lora_down_grad(self, x, ds, made=0, rstd=None, weight=None):
        """x is what x was made of where made > 0."""
        pool = self.pool
        CB = self.CB if made < 2 else first_that(ACTIVATION_BLOCKS[self.kind], self.CB)
        cfg = self.config.get("down_grad") or down_grad_config(self.kind, CB, made)
        chunk = cfg["CHUNK"]
        scratch = self.empty("da", self.later_rows(chunk), self.K)
        tables = (self.low_at, pool.factors, pool.ranks, self.tile_adapter)
        lora_kernels.lora_down_grad[(cdiv(self.K, cfg["BK"]), self.chunks(chunk), cdiv(self.width, CB))](
            x, rstd, weight, ds, scratch, *tables, self.row_number, self.dropout, self.module, *self.strides, self.M, self.K, self.G, MADE=made, CB=CB, **cfg)
        adapters, programs = self.adders(chunk, self.K)
        if adapters > 0:
            lora_kernels.lora_down_grad_sum[(adapters, programs)](scratch, *tables, *self.strides, self.M, self.K, self.G, CHUNK=chunk, BLOCK=ADD_BLOCK, num_warps=4)
