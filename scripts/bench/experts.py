"""Mixtures of experts: mlora compared with PEFT on transformers' grouped_mm on this machine's GPU, in one call: python3
scripts/bench/experts.py [CASE ..] [--write]

4 x 2048 tokens a step, random weights, adapters of rank 16 unless a case says otherwise; several adapters share the tokens.
Each case is one setting of `mlora bench`, a process. One adapter is compared with PEFT's (peer_experts.py, once for a shape and
targets), several with the one adapter of the same call, and 4 bits with the memory that they may take. --write adds the rows to
the first table of docs/measurements/experts.md.
"""
import json
import shlex
import subprocess
import sys
from datetime import datetime, timezone

from gpu import ROOT, arguments, commit_of, flags, measure

TOKENS, ROW = 8192, 2048
QWEN3, GPT_OSS = dict(shape="qwen3-30b-a3b"), dict(shape="gpt-oss-20b", precision="bf16")
ATTENTION, EXPERTS = dict(targets="qkvo"), dict(targets="all-linear")
FOUR_BITS = ATTENTION | dict(recomputation="full")
TO_PEFT, MANY, MORE = ("PEFT", 2.0), ("one", 0.9), ("one", 0.8)

# name: (flags, adapters, what it is compared with and what the project asks of it)
CASES = {
    "qwen3-30b-a3b, attention, 1": (QWEN3 | ATTENTION, 1, TO_PEFT),
    "qwen3-30b-a3b, attention, 8": (QWEN3 | ATTENTION, 8, MANY),
    "qwen3-30b-a3b, attention, 32": (QWEN3 | ATTENTION, 32, MORE),
    "qwen3-30b-a3b, with experts, 1": (QWEN3 | EXPERTS, 1, TO_PEFT),
    "qwen3-30b-a3b, with experts, 8": (QWEN3 | EXPERTS, 8, MANY),
    "qwen3-30b-a3b, with experts, 32 of rank 4": (QWEN3 | EXPERTS | dict(rank=4), 32, MORE),  # of rank 16 they are 107 GiB
    "qwen3-30b-a3b, with experts, each its own, 1": (QWEN3 | EXPERTS | dict(experts="per-expert"), 1, TO_PEFT),
    "qwen3-30b-a3b, nf4, attention, 1": (QWEN3 | FOUR_BITS | dict(precision="nf4"), 1, ("GiB", 24)),
    "gpt-oss-20b, attention, 1": (GPT_OSS | ATTENTION, 1, TO_PEFT),
    "gpt-oss-20b, attention, 8": (GPT_OSS | ATTENTION, 8, MANY),
    "gpt-oss-20b, attention, 32": (GPT_OSS | ATTENTION, 32, MORE),
    "gpt-oss-20b, with experts, 1": (GPT_OSS | EXPERTS, 1, TO_PEFT),
    "gpt-oss-20b, with experts, 8": (GPT_OSS | EXPERTS, 8, MANY),
    "gpt-oss-20b, with experts, 32": (GPT_OSS | EXPERTS, 32, MORE),
    "gpt-oss-20b, mxfp4, attention, 1": (GPT_OSS | FOUR_BITS | dict(precision="auto"), 1, ("GiB", 18)),
    "gpt-oss-20b, mxfp4, with experts, 1": (GPT_OSS | EXPERTS | dict(precision="auto"), 1, None),
}
HEAD = (
    "| date (UTC) | commit | GPU | case | tokens/s | GiB (planned) | recomputation | busiest expert | found (asked) | PEFT tokens/s | PEFT GiB |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: |\n"
)
NEW = "# Mixtures of experts on GPUs\n\nRows of `python3 scripts/bench/experts.py --write`.\n\n" + HEAD


def ours_of(values: dict, adapters: int, args) -> dict:
    length = min(ROW, TOKENS // adapters)
    work = dict(rank=16, adapters=adapters, rows=TOKENS // adapters // length, length=length, tokens=TOKENS, steps=args.steps, device="cuda")
    return measure([*shlex.split(args.mlora), "bench", *flags(work | values), "--json"])


def peer_of(values: dict, args) -> dict | None:
    """Null where it fails, which costs no other row."""
    same = dict(shape=values["shape"], targets=values["targets"], rows=TOKENS // ROW, length=ROW, rank=16, steps=args.steps)
    command = [sys.executable, "-B", str(ROOT / "scripts/bench/peer_experts.py"), *flags(same)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    print(f"failed: {shlex.join(command)}\n{done.stderr[-1500:]}", flush=True)
    return None


def found_of(ours: dict, asked: tuple | None, one: dict | None, peer: dict | None) -> str:
    if asked is None:
        return ""
    what, least = asked
    if what == "GiB":
        return f"{ours['device_bytes'] / 2**30:.1f} GiB ({least})"
    other = peer if what == "PEFT" else one
    return f"{ours['tokens_per_s'] / other['tokens_per_s']:.2f} of {what} ({least})" if other else ""


def insert(text: str, rows: str) -> str:
    """A page with more rows in its first table."""
    at = text.index(HEAD) + len(HEAD)
    while text.startswith("|", at):
        at = text.index("\n", at) + 1
    return text[:at] + rows + text[at:]


def main() -> None:
    args = arguments(__doc__, CASES, steps=4)
    commit = commit_of()
    rows, alone, peers = [], {}, {}
    for name in args.cases or CASES:
        values, adapters, asked = CASES[name]
        work = (values["shape"], values["targets"])
        setting = tuple((key, value) for key, value in values.items() if key != "rank")
        ours = ours_of(values, adapters, args)
        if adapters == 1:
            alone[setting] = ours
        theirs = None
        if args.peers and asked and asked[0] == "PEFT":
            if work not in peers:
                peers[work] = peer_of(values, args)
            theirs = peers[work]
        found = found_of(ours, asked, alone.get(setting), theirs)
        print(f"{name}: {ours['tokens_per_s']} tokens/s, {ours['ms']} ms, losses {ours['losses'][:2]}, kernels {ours.get('kernel_ms')}; PEFT {theirs}; {found}", flush=True)
        gib = lambda report, key: f"{report[key] / 2**30:.1f}"  # noqa: E731
        memory = f"{gib(ours, 'device_bytes')} ({gib(ours, 'planned_bytes')})"
        peer = ("", "")
        if theirs:
            peer = (f"{theirs['tokens_per_s']:.0f}", ", ".join([gib(theirs, "device_bytes"), theirs["attention"], *(["checkpointing"] if theirs["checkpointing"] else [])]))
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
        cells = (now, commit or "unknown", ours["device"], name, ours["tokens_per_s"], memory, ours["recomputation"], ours["busiest_expert"], found, *peer)
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    print("\n" + HEAD + "".join(rows), flush=True)
    if args.write:
        path = ROOT / "docs/measurements/experts.md"
        path.write_text(insert(path.read_text() if path.exists() else NEW, "".join(rows)))


if __name__ == "__main__":
    main()
