"""Times the gated delta rule's kernels and those of flash-linear-attention in the same run: python3
scripts/bench/kernels/delta.py [SHAPE ..] [--work=1x16384] [--tune] [--write] [--compile PART/PARTS]

bf16, layers of Qwen3.5-4B (16 heads of q and k, 32 of v) and of the 27B (16, 48), all heads of 128, with 4 x 2048 and 1 x 16384
tokens. Ours are what a layer launches, from b and a and q, k of any length; flash-linear-attention's chunk_gated_delta_rule
makes the same of them in its kernels (the package fla-core, where Python finds it; its autotuner chooses before it is timed).
Milliseconds are those of the kernels, by CUPTI, medians of rounds that take turns: launches from Python take longer than some
of them. Backward is the gradient alone: both compute again what the forward pass has made. --tune times each of our kernels
with other warps and stages; --write adds the rows to docs/measurements/delta.md. --compile compiles a part of all
configurations into Triton's cache, so that processes side by side leave a later run nothing to wait for.

fla-core 0.6.0 refuses its backward pass on Hopper with Triton 3.4.0 to 3.7.0, which compiles it to what computes wrongly. It is
timed all the same: how long kernels take, not that they are right, which the distance of its dv from ours says.
"""
import importlib
import os
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "../../../tests/gpu/kernels")]
import deltanet_launch as run  # noqa: E402
import rows_launch  # noqa: E402
from gpu import add_rows  # noqa: E402

SHAPES = {"Qwen3.5-4B": (16, 32), "Qwen3.5-27B": (16, 48)}
WORK = ((4, 2048), (1, 16384))
D, ROUNDS = 128, 5
TUNED = {  # kernel -> constants, warps, stages
    "delta_prepare": [({}, 2, 1), ({}, 4, 1), ({}, 8, 1)],
    "delta_scan": [({"BV": columns}, *of) for columns in (32, 64) for of in ((4, 1), (4, 2), (4, 3), (8, 2))],
    "delta_out": [({}, 4, 1), ({}, 8, 1)],
    "delta_scan_backward": [({"BV": columns}, *of) for columns in (32, 64) for of in ((4, 1), (4, 2), (8, 1), (8, 2))],
    "delta_chunk_backward": [({}, 4, 1), ({}, 8, 1), ({}, 4, 2), ({}, 8, 2)],
    "delta_state_backward": [({}, 4, 1), ({}, 8, 1), ({}, 4, 2), ({}, 8, 2)],
    "delta_unit_backward": [({"BM": rows}, 4, 1) for rows in (16, 32)],
}
HEAD = "| date (UTC) | GPU | shape | tokens | forward ms | fla | ratio | backward ms | fla | ratio | both: ratio |\n| --- | --- | --- | --- | " + "---: | " * 6 + "---: |\n"
TITLE = "# The gated delta rule on GPUs\n"


class Case:
    """A layer's inputs, and runs of our kernels and of fla's."""

    def __init__(self, heads, count, length):
        H, N = heads
        self.of, self.rows = dict(H=H, heads=N, K=D, V=D), count * length
        first = torch.arange(self.rows, device="cuda") // length * length
        self.bounds = torch.stack([first, first + length], 1).int()
        rnd = lambda *shape: torch.randn(*shape, device="cuda")  # noqa: E731
        self.inputs = rnd(self.rows, (2 * H + N) * D).bfloat16(), 2 * rnd(self.rows, 2 * N).bfloat16(), rnd(N) - 3, rnd(N)
        self.dout = torch.randn(self.rows, N * D, device="cuda").bfloat16()
        self.out, self.dmixed = torch.empty_like(self.dout), torch.empty_like(self.inputs[0])
        mixed, gates, *_ = self.inputs
        q, k, v = mixed.split([H * D, H * D, N * D], 1)
        one = lambda t, heads: t.reshape(1, self.rows, heads, -1).contiguous()  # noqa: E731
        self.parts = [one(q, H), one(k, H), one(v, N), *(gates[None, :, at : at + N].contiguous() for at in (N, 0))]
        self.starts = torch.arange(0, self.rows + 1, length, device="cuda")

    def forward(self):
        run.delta_forward("tma", *self.inputs, self.bounds, self.out, **self.of)

    def backward(self):  # gradients take the place of the gates, which a next run reads as others
        run.delta_backward("tma", *self.inputs, self.bounds, self.dout, self.dmixed, **self.of)

    def peer(self):
        """fla's forward, and its forward and backward."""
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        leaves = [t.detach().requires_grad_() for t in self.parts]
        decay, bias = self.inputs[2:]
        more = dict(use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True, use_gate_in_kernel=True, A_log=decay, dt_bias=bias, cu_seqlens=self.starts)
        forward = lambda: chunk_gated_delta_rule(*leaves, **more)[0]  # noqa: E731
        dout = self.dout.reshape(1, self.rows, self.of["heads"], D)
        return forward, lambda: torch.autograd.grad(forward(), leaves, dout)


def kernel_ms(one, runs=5):
    """Milliseconds of the kernels of a run, however long their launches take."""
    one()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(runs):
            one()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / runs / 1e3 for event in found.key_averages() if event.self_device_time_total}


def turns(runs):
    """Median milliseconds of each, of rounds that take turns; prints those of each kernel."""
    found = {name: [] for name in runs}
    for turn in range(ROUNDS):
        for name, one in runs.items():
            by = kernel_ms(one)
            found[name].append(sum(by.values()))
            if turn == 1:
                print(f"  {name}: " + ", ".join(f"{kernel[:48]} {ms:.3f}" for kernel, ms in sorted(by.items(), key=lambda of: -of[1])[:16]), flush=True)
    return {name: statistics.median(ms) for name, ms in found.items()}


def launches(case):
    """kernel -> its row, grid and arguments in a forward and a backward run."""
    found, plain = {}, rows_launch.launch

    def launch(row, grid, *args):
        found[row["kernel"]] = row, grid, args
        plain(row, grid, *args)

    run.launch = launch
    case.forward()
    case.backward()
    run.launch = plain
    return found


def gridded(grid, row, constants):
    """The grid with other columns or rows of a program."""
    name = "BV" if "BV" in row["constants"] else "BM"
    return (grid[0] * row["constants"][name] // constants[name], *grid[1:]) if name in constants else grid


def tune(part, parts):
    """Times each kernel alone; of several parts one is only compiled."""
    order = 0
    for work in WORK:
        found = launches(Case(SHAPES["Qwen3.5-4B"], *work))
        for kernel, choices in TUNED.items():
            row, grid, args = found[kernel]
            function = getattr(importlib.import_module(row["module"]), kernel)
            for constants, warps, stages in choices:
                all_, now = {**row["constants"], **constants}, gridded(grid, row, constants)
                one = lambda: function[now](*args, **all_, num_warps=warps, num_stages=stages)  # noqa: B023, E731
                if parts > 1:
                    order += 1
                    if order % parts == part:
                        one()
                    continue
                ms = do_bench(one, warmup=3, rep=15, return_mode="median")
                own = " (as it is)" if (all_, warps, stages) == (row["constants"], row["warps"], row["stages"]) else ""
                print(f"{work[0]} x {work[1]} {kernel} {constants or ''} {warps} warps {stages} stages: {ms:.3f} ms{own}", flush=True)
        if parts > 1:
            return


def only(part, parts):
    """Of the configurations of each kernel of fla, those of a part, each measured shortly."""
    from triton.runtime.autotuner import Autotuner

    plain = Autotuner.__init__

    def init(self, fn, names, configs, *args, **more):
        chosen = configs[part % len(configs) :: parts] if parts > 1 and configs else configs
        plain(self, fn, names, chosen, *args, **{**more, "do_bench": lambda call, quantiles: do_bench(call, 2, 10, quantiles=quantiles)})

    Autotuner.__init__ = init


def has_fla():
    """Its version, or None; its backward pass is let through."""
    try:
        import fla as package
        from fla.ops.common import chunk_o
    except ImportError:
        return None
    chunk_o.IS_NVIDIA_HOPPER = False  # what its refusal asks
    return package.__version__


def compile_part(part, parts):
    if "--fla-alone" not in sys.argv:
        tune(part, parts)
    for heads in shapes().values() if has_fla() else ():
        forward, both = Case(heads, *WORK[0]).peer()
        forward()
        both()


def shapes():
    """Those that are named, or all."""
    return {name: SHAPES[name] for name in sys.argv if name in SHAPES} or SHAPES


def apart(name, a, b):
    return f"{name} {((a.float() - b.float()).norm() / b.float().norm()).item():.1e}"


def main():
    gpu, now = torch.cuda.get_device_name().replace("NVIDIA ", ""), f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
    rows, fla = [], has_fla()
    if not fla:
        print("no flash-linear-attention here: ours alone", flush=True)
    asked = [of for of in WORK if f"--work={of[0]}x{of[1]}" in sys.argv] or WORK
    for shape, heads in shapes().items():
        for work in asked:
            case = Case(heads, *work)
            runs = {"forward": case.forward, "backward": case.backward}
            if fla:
                runs["fla forward"], runs["fla both"] = case.peer()
                theirs, grads = runs["fla forward"]().reshape(case.out.shape), runs["fla both"]()
                case.forward()
                case.backward()
                dv = case.dmixed[:, 2 * heads[0] * D :]
                print("apart: " + ", ".join([apart("out", theirs, case.out), apart("dv", grads[2].reshape(dv.shape), dv)]), flush=True)
            ms = turns(runs)
            if fla:
                ms["fla backward"] = ms.pop("fla both") - ms["fla forward"]
            total = lambda of, whose="": sum(ms[f"{whose}{name}"] for name in of)  # noqa: B023, E731
            ratio = lambda *of: f"{total(of, 'fla ') / total(of):.2f}" if fla else ""  # noqa: B023, E731
            theirs = lambda of: f"{ms[f'fla {of}']:.2f}" if fla else ""  # noqa: B023, E731
            cells = [now, gpu, shape, f"{work[0]} x {work[1]}", f"{ms['forward']:.2f}", theirs("forward"), ratio("forward")]
            rows.append("| " + " | ".join([*cells, f"{ms['backward']:.2f}", theirs("backward"), ratio("backward"), ratio("forward", "backward")]) + " |\n")
            print(rows[-1], end="", flush=True)
        if "--write" in sys.argv:
            add_rows("delta", TITLE, HEAD, rows[-len(asked) :])


if __name__ == "__main__":
    run.fresh = torch.empty
    part, parts = map(int, sys.argv[sys.argv.index("--compile") + 1].split("/")) if "--compile" in sys.argv else (0, 1)
    only(part, parts)
    if parts > 1:
        compile_part(part, parts)
    elif "--tune" in sys.argv:
        tune(part, parts)
    else:
        main()
