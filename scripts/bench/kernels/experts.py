"""Times the kernels of mixture-of-experts layers, and PyTorch's grouped product in the same run: python3
scripts/bench/kernels/experts.py [--tune]

Shapes of released models, 8192 rows, random routing, adapters of rank 16 that share A of gate and up, and B of down. Each
kernel by itself: milliseconds, and what it would take at the tensor cores' or the memory's speed. --tune times other tiles of
the products.
"""
import os
import sys

import torch
from triton.testing import do_bench

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tests/gpu/kernels"))
import experts_launch as run  # noqa: E402
from experts_problem import A, B, Group  # noqa: E402

SHAPES = {"Qwen3-30B-A3B": (128, 8, 2048, 768), "gpt-oss-20b": (32, 4, 2880, 2880)}
ROWS = 8192
KIND = "tma"
FLOPS, BYTES = 700e12, 4.3e12  # of one H200, sustained
TUNED = [(128, 128, 64, 4, 4), (128, 128, 64, 8, 3), (128, 256, 64, 8, 4)]


class Layer:
    def __init__(self, E, k, H, I, adapters):
        torch.manual_seed(1)
        rnd = lambda *shape, by=1.0: (torch.randn(*shape, device="cuda") * by).bfloat16()  # noqa: E731
        self.sizes = E, k, H, I
        self.x, self.dy = rnd(ROWS, H), rnd(ROWS, H)
        self.w_up = torch.cat([rnd(1, 2 * I, H, by=H**-0.5) for _ in range(E)])
        self.w_down = torch.cat([rnd(1, H, I, by=I**-0.5) for _ in range(E)])
        self.logits = rnd(ROWS, E)
        self.tiles = torch.tensor([i * adapters // (ROWS // 128) for i in range(ROWS // 128)], dtype=torch.int32, device="cuda")
        m = torch.arange(ROWS, dtype=torch.int32, device="cuda") // 2048 * 2048
        self.bounds = torch.stack([m, m + 2048], 1).contiguous()
        self.L = adapters
        self.up = Group(torch.bfloat16, E, [2 * I], H, [[16]] * adapters, A, [True] * adapters)
        self.down = Group(torch.bfloat16, E, [H], I, [[16]] * adapters, B, [True] * adapters)
        self.up_rows, self.down_rows = (of.rows(self.tiles.tolist()) for of in (self.up, self.down))
        self.low = torch.zeros(self.down_rows.elements, device="cuda", dtype=torch.bfloat16)
        r = self.r = self.route()
        new = lambda *shape: torch.zeros(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        self.gu, self.h, self.y, self.s, self.z = new(r.P, 2 * I), new(r.P, I), new(r.P, H), new(r.P, 16), new(r.P, 16)
        self.dgu, self.dh, self.out = new(r.P, 2 * I), new(r.P, I), new(ROWS, H)
        self.dweights, self.dlogits = torch.zeros(ROWS, k, device="cuda"), new(ROWS, E)

    def route(self):
        return run.route(KIND, self.logits, None, self.bounds, self.tiles, self.L, self.sizes[1])

    def kernels(self):
        """name -> (call, FLOP, bytes)."""
        E, k, H, I = self.sizes
        r, P = self.r, self.r.P
        gate = 2 * P * H * 2 * I
        weights = 2 * E * H * 2 * I
        low = lambda width: 2 * P * (width + 16)  # noqa: E731
        return {
            "route": (self.route, 0, 2 * ROWS * E),
            "gate and up": (lambda: run.experts_forward(KIND, r, self.x, True, self.w_up, None, self.gu), gate, weights + 2 * (ROWS * H + P * 2 * I)),
            "gate and up, adapted": (lambda: run.experts_forward(KIND, r, self.x, True, self.w_up, None, self.gu, self.up.tables, self.s), gate, weights + 2 * (ROWS * H + P * 2 * I)),
            "act": (lambda: run.expert_act_forward(KIND, r, self.gu, self.h), 0, 2 * P * 3 * I),
            "down": (lambda: run.experts_forward(KIND, r, self.h, False, self.w_down, None, self.y), gate // 2, weights // 2 + 2 * P * (H + I)),
            "combine": (lambda: run.combine(KIND, r, self.y, True, self.x, self.out), 0, 2 * (P + 2 * ROWS) * H),
            "down backward": (lambda: run.experts_backward(KIND, r, self.dy, True, self.w_down, self.dh), gate // 2, weights // 2 + 2 * (ROWS * H + P * I)),
            "down backward, adapted": (lambda: run.experts_backward(KIND, r, self.dy, True, self.w_down, self.dh, self.down.tables, self.z), gate // 2, weights // 2 + 2 * (ROWS * H + P * I)),
            "act backward": (lambda: run.expert_act_backward(KIND, r, self.dh, self.gu, self.dgu, self.dweights), 0, 2 * P * 6 * I),
            "gate and up backward": (lambda: run.experts_backward(KIND, r, self.gu, False, self.w_up, self.y), gate, weights + 2 * P * (H + 2 * I)),
            "combine backward": (lambda: run.combine(KIND, r, self.y, False, None, self.out), 0, 2 * (P + ROWS) * H),
            "combine, shared B": (lambda: run.combine(KIND, r, self.y, True, self.x, self.out, self.down_rows, self.low, B), 0, 2 * (P + 2 * ROWS) * H),
            "combine backward, shared A": (lambda: run.combine(KIND, r, self.y, False, None, self.out, self.up_rows, self.low, A), 0, 2 * (P + ROWS) * H),
            "rows of s gathered": (lambda: run.low_gather(KIND, r, self.down_rows, self.z, self.low, True), 0, 2 * (P + ROWS) * 16),
            "rows of s spread": (lambda: run.low_spread(KIND, r, self.down_rows, self.low, self.z), 0, 2 * (P + ROWS) * 16),
            "route backward": (lambda: run.route_backward(KIND, r, self.logits, self.dweights, self.dlogits), 0, 4 * ROWS * E),
            "s of act": (lambda: run.expert_low(KIND, r, self.h, False, self.z, self.down.tables, 0), 0, low(I)),
            "ds of dgate": (lambda: run.expert_low(KIND, r, self.gu, False, self.s, self.up.tables, 1), 0, low(2 * I)),
            "dA of down": (lambda: run.expert_gram(KIND, r, self.h, False, self.z, self.down.tables, 0), 0, low(I) + 8 * self.L * E * 16 * I),
            "dB of gate": (lambda: run.expert_gram(KIND, r, self.gu, False, self.s, self.up.tables, 1), 0, low(2 * I) + 8 * self.L * E * 16 * 2 * I),
        }

    def grouped_mm(self):
        """PyTorch's products of gate and up, and of down, on rows that are sorted already."""
        ends = self.r.first_row[1:].contiguous()
        x = self.x[(self.r.source.long() // self.sizes[1])].contiguous()
        return {
            "torch gate and up": lambda: torch._grouped_mm(x, self.w_up.transpose(1, 2), offs=ends),
            "torch down": lambda: torch._grouped_mm(self.h, self.w_down.transpose(1, 2), offs=ends),
            "torch gate and up backward": lambda: torch._grouped_mm(self.gu, self.w_up, offs=ends),
        }


def time_of(call):
    return do_bench(call, warmup=15, rep=60, return_mode="median")


def report(name, ms, flop=0, size=0):
    least = 1e3 * max(flop / FLOPS, size / BYTES)
    print(f"  {name:32s} {ms:7.3f} ms" + (f"  {flop / ms / 1e9:5.0f} TFLOP/s" if flop else f"  {size / ms / 1e9:5.2f} TB/s" if size else "") + (f"  least {least:.3f}" if least else ""), flush=True)


def tune(name):
    layer = Layer(*SHAPES[name], 1)
    found = run.find
    for BM, BN, BK, warps, stages in TUNED:
        def other(kernel, kind, accepts=lambda constants: True, **constants):
            row = found(kernel, kind, accepts, **constants)
            return {**row, "constants": {**row["constants"], "BM": BM, "BN": BN, "BK": BK}, "warps": warps, "stages": stages} if kernel.startswith("experts_") else row
        run.find = other
        for kernel, (call, flop, size) in layer.kernels().items():
            if flop:
                try:
                    report(f"{BM} {BN} {BK} {warps} {stages} {kernel}", time_of(call), flop, size)
                except Exception as error:
                    print(f"  {BM} {BN} {BK} {warps} {stages} {kernel}: {str(error)[:80]}")
    run.find = found


def main():
    for name, shape in SHAPES.items():
        if "--tune" in sys.argv:
            print(name)
            tune(name)
            continue
        for adapters in (1, 8, 32):
            print(f"{name}, {adapters} adapters")
            layer = Layer(*shape, adapters)
            for kernel, (call, flop, size) in layer.kernels().items():
                report(kernel, time_of(call), flop, size)
            if adapters == 1:
                for kernel, call in layer.grouped_mm().items():
                    report(kernel, time_of(call), 2 * layer.r.P * shape[2] * shape[3] * (1 if "down" in kernel else 2))
            del layer


if __name__ == "__main__":
    main()
