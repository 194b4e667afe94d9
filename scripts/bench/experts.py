"""Mixtures of experts: mlora compared with PEFT on transformers' grouped_mm on this machine's GPU, in one call: python3
scripts/bench/experts.py [CASE ..] [--write]

4 x 2048 tokens a step, rank 16, random weights. Each case is one setting of `mlora bench`, and where it has one adapter that of
peer_experts.py, a process each, one after the other; several adapters share the tokens. --write adds the rows to
docs/measurements/experts.md.
"""
import shlex
import sys
from datetime import datetime, timezone

from gpu import ROOT, arguments, commit_of, flags, measure

# name: (shape, targets, adapters, least share of one adapter's speed, or ratio to the peer, that the project asks for)
CASES = {
    f"{shape}, {'attention' if targets == 'qkvo' else 'with experts'}, {adapters}": (shape, targets, adapters, asked)
    for shape in ("qwen3-30b-a3b", "gpt-oss-20b")
    for targets in ("qkvo", "all-linear")
    for adapters, asked in ((1, 2.0), (8, 0.9), (32, 0.8))
    if (targets, adapters) != ("all-linear", 32)  # the adapters alone would take 130 GB
}
TOKENS, ROW = 8192, 2048
HEAD = (
    "| date (UTC) | commit | GPU | case | tokens/s | GiB (planned) | recomputation | ratio (asked) | PEFT tokens/s | PEFT GiB |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |\n"
)


def settings(shape: str, targets: str, adapters: int) -> dict:
    length = min(ROW, TOKENS // adapters)
    return dict(shape=shape, targets=targets, adapters=adapters, rows=TOKENS // adapters // length, length=length, rank=16, tokens=TOKENS)


def main() -> None:
    args = arguments(__doc__, CASES, steps=4)
    commit = commit_of()
    rows, alone = [], {}
    for name in args.cases or CASES:
        shape, targets, adapters, asked = CASES[name]
        ours = measure([*shlex.split(args.mlora), "bench", *flags(settings(shape, targets, adapters)), "--steps", str(args.steps), "--device", "cuda", "--json"])
        theirs, ratio = None, ""
        if adapters == 1:
            alone[shape, targets] = ours["tokens_per_s"]
            if args.peers:
                same = flags(dict(shape=shape, targets=targets, rows=TOKENS // ROW, length=ROW, rank=16, steps=args.steps))
                theirs = measure([sys.executable, "-B", str(ROOT / "scripts/bench/peer_experts.py"), *same])
                ratio = f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} ({asked})"
        elif (shape, targets) in alone:
            ratio = f"{ours['tokens_per_s'] / alone[shape, targets]:.2f} ({asked})"
        print(f"{name}: {ours['tokens_per_s']} tokens/s, {ours['ms']} ms, kernels {ours.get('kernel_ms')}; PEFT {theirs}; ratio {ratio}", flush=True)
        gib = lambda report, key: f"{report[key] / 2**30:.1f}"  # noqa: E731
        memory = f"{gib(ours, 'device_bytes')} ({gib(ours, 'planned_bytes')})"
        peer = (f"{theirs['tokens_per_s']:.0f}", gib(theirs, "device_bytes") + (", checkpointing" if theirs["checkpointing"] else "")) if theirs else ("", "")
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
        cells = (now, commit or "unknown", ours["device"], name, ours["tokens_per_s"], memory, ours["recomputation"], ratio, *peer)
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    print("\n" + HEAD + "".join(rows), flush=True)
    if args.write:
        path = ROOT / "docs/measurements/experts.md"
        new = not path.exists()
        with path.open("a") as file:
            file.write(("# Mixtures of experts on GPUs\n\nRows of `python3 scripts/bench/experts.py --write`.\n\n" + HEAD if new else "") + "".join(rows))


if __name__ == "__main__":
    main()
