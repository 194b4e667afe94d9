"""mlora compared with transformers and PEFT on full-size families with random weights, on this machine's GPU, in one call:
python3 scripts/bench/families.py [SHAPE ..] [--write]

Each shape trains adapters of rank 16 on all linears with batches of 8 x 512 and of 2 x 2048 tokens: by `mlora bench`, then by
peer.py with every layer compiled. Qwen 3.5 has batches of 4 x 2048 and of 1 x 16384; its peer is not compiled, as loops over
chunks take minutes to compile, and has its checkpointing, without which it needs more than 139 GiB. That of Mamba is not
compiled, either. --recomputation and --seconds are ours. Ratios count. The peers' layers are compiled first, on models of few
layers, all shapes at once: torch keeps what it has compiled, and the measured models find it. Needs what gpu.py needs; --write
adds each row to docs/measurements/families.md.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from gpu import ROOT, add_rows, arguments, commit_of, flags
from gpu import measure as measure_last

# name: layers of a model that has a layer of every kind
SHAPES = {"qwen3.5-4b": 4, "qwen3.5-27b": 4, "gemma3-4b": 6, "gemma4-e4b": 18, "gemma4-12b": 6, "smollm3-3b": 4, "phi4-14b": 2}
SHAPES |= {"lfm2-1.2b": 4, "granite4-h-micro": 6}
WORK = ((8, 512), (2, 2048))
LOOPS = {"qwen3.5-4b", "qwen3.5-27b"}  # peers that loop over chunks
EAGER = LOOPS | {"granite4-h-micro"}  # peers that are not compiled
LONG = ((4, 2048), (1, 16384))
ASKED = 1.3
SAME = dict(rank=16, targets="all-linear", dropout=0.0, device="cuda")
HEAD = (
    "| date (UTC) | commit | GPU | shape | tokens | mlora tokens/s | peak share | GiB (planned) | PEFT tokens/s | PEFT GiB | ratio |\n"
    "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)
TITLE = f"# Families on GPUs\n\nRows of `python3 scripts/bench/families.py --write`; asked is a ratio of {ASKED}.\n\n"


def peer(shape: str, work: list[tuple[int, int]], steps: int, *more: str) -> list[str]:
    sizes = [f"{rows}x{length}" for rows, length in work]
    how = ["--checkpointing"] if shape in LOOPS else [] if shape in EAGER else ["--compile"]
    command = [sys.executable, "-B", str(ROOT / "scripts/bench/peer.py"), *how, "--shape", shape]
    return [*command, *flags(SAME | dict(steps=steps)), *more, "--work", *sizes]


def warm(shapes: list[str], work: list[tuple[int, int]]) -> None:
    """Compiles the layers of all shapes, each size in a process of its own."""
    env = os.environ | dict(TORCHINDUCTOR_COMPILE_THREADS="4")
    started = time.monotonic()
    commands = [peer(shape, [size], 1, "--layers", str(SHAPES[shape])) for shape in shapes if shape not in EAGER for size in work]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    for command, process in zip(commands, running, strict=True):
        _, err = process.communicate()
        if process.returncode != 0:
            print(f"failed: {shlex.join(command)}\n{err.decode()[-800:]}", flush=True)
    print(f"the peers' layers are compiled: {time.monotonic() - started:.0f} s", flush=True)


def lines_of(command: list[str]) -> list[dict]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"failed: {shlex.join(command)}\n{done.stderr[-1500:]}", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    sizes = "some of: " + ", ".join(f"{rows}x{length}" for rows, length in (*WORK, *LONG))

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sizes", nargs="*", help=sizes)
        parser.add_argument("--recomputation", default="auto", choices=["auto", "none", "selective", "full"])
        parser.add_argument("--seconds", type=int, default=0, help="measure ours at least so long")
        parser.add_argument("--peer-steps", type=int, help="of PEFT, where it is slower")

    args = arguments(__doc__, SHAPES, more=more)
    shapes = args.cases or list(SHAPES)
    worked = lambda shape: [size for size in (LONG if shape in LOOPS else WORK) if not args.sizes or f"{size[0]}x{size[1]}" in args.sizes]

    commit = commit_of()
    if args.peers:
        warm(shapes, [size for size in WORK if not args.sizes or f"{size[0]}x{size[1]}" in args.sizes])
    rows = []
    for shape in shapes:
        work = worked(shape)
        theirs = lines_of(peer(shape, work, args.peer_steps or args.steps)) if args.peers else []
        for i, (count, length) in enumerate(work):
            values = SAME | dict(shape=shape, adapters=1, rows=count, length=length, steps=args.steps)
            values |= dict(recomputation=args.recomputation) | (dict(seconds=args.seconds) if args.seconds else {})
            ours = measure_last([*shlex.split(args.mlora), "bench", *flags(values), "--json"])
            found = theirs[i] if i < len(theirs) else None
            gib = lambda report, key: f"{report[key] / 2**30:.1f}"
            ratio = f"{ours['tokens_per_s'] / found['tokens_per_s']:.2f}" if found else ""
            now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
            memory = f"{gib(ours, 'device_bytes')} ({gib(ours, 'planned_bytes')})"
            theirs_now = (f"{found['tokens_per_s']:.0f}", gib(found, "device_bytes")) if found else ("", "")
            size = f"{count} x {length}" + ("" if args.recomputation == "auto" else f", {args.recomputation} recomputation")
            cells = (now, commit or "unknown", ours["device"], shape, size, ours["tokens_per_s"], ours["share_of_peak"], memory, *theirs_now, ratio)
            rows.append(f"| {' | '.join(map(str, cells))} |\n")
            kernels = ", ".join(f"{name} {ms:.1f}" for name, ms in ours["kernel_ms"].items())
            print(f"{rows[-1]}    a step of {ours['ms']} ms by kernel: {kernels}", flush=True)
            if args.write:
                add_rows("families", TITLE, HEAD, rows[-1:])
    print("\n" + HEAD + "".join(rows), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
