"""mlora compared with transformers and PEFT on this machine's GPU, in one call: python3 scripts/bench/gpu.py [CASE ..]
[--write]

Each case is one setting of `mlora bench` and the same of peer.py, a process each, one after the other. Ratios count. Needs a
GPU, and a Python with the packages of requirements.txt for the peers; without --peers only mlora is measured. --write adds the
rows to docs/measurements/gpu.md.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = dict(shape="llama2-7b", adapters=1, rows=8, length=512, rank=16, targets="qkvo", dropout=0.05, recomputation="none")
COMPILED = ["--compile"]

# name: (changes to BASE, flags of the peer or None, least ratio to it that the project asks for)
CASES = {
    "qkvo": ({}, COMPILED, 1.2),
    "qkvo, 4 adapters at once": (dict(adapters=4, rows=2), COMPILED, 1.2),
    "all linears": (dict(targets="all-linear"), COMPILED, 1.3),
    "full recomputation": (dict(recomputation="full"), ["--checkpointing"], 1.5),
    "llama3-8b": (dict(shape="llama3-8b"), COMPILED, 1.2),
    "32 adapters of 1 x 512": (dict(adapters=32, rows=1), None, None),
    "1 adapter of 32 x 512": (dict(adapters=1, rows=32, tokens=4096), None, None),
    "llama3-8b, 8 x 1024": (dict(shape="llama3-8b", length=1024), None, None),
    "llama3-8b, 2 x 4096": (dict(shape="llama3-8b", rows=2, length=4096), None, None),
    "llama3-8b, 1 x 8192": (dict(shape="llama3-8b", rows=1, length=8192, tokens=8192), None, None),
}
PEER_KEYS = ("shape", "rows", "length", "rank", "targets", "dropout")  # peers train one adapter of the same number of tokens
HEAD = (
    "| date (UTC) | commit | GPU | case | mlora tokens/s | peak share | GiB (planned) | PEFT tokens/s | PEFT GiB | ratio (asked) |\n"
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def flags(values: dict) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def measure(command: list[str]) -> dict:
    """The last line of a command's output, as JSON."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {shlex.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def arguments(doc: str, cases: dict, steps: int = 8, more=lambda parser: None) -> argparse.Namespace:
    """Of a bench whose cases have these names; `more` adds its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {'; '.join(cases)}")
    parser.add_argument("--mlora", default=str(ROOT / "dist/mlora"), help="a command")
    parser.add_argument("--steps", type=int, default=steps)
    more(parser)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in cases]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}")
    return args


def commit_of() -> str:
    """What is measured, as Git names it; MLORA_COMMIT says it for a copy that has no history."""
    return os.environ.get("MLORA_COMMIT") or subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def add_rows(page: str, title: str, head: str, rows: list[str]) -> None:
    """Adds rows to the table with this head on a page of docs/measurements; a new page has this title."""
    path = ROOT / f"docs/measurements/{page}.md"
    text = path.read_text() if path.exists() else title
    if head not in text:
        text += ("" if text.endswith("\n\n") else "\n") + head
    at = text.index(head) + len(head)
    while text.startswith("|", at):
        at = text.index("\n", at) + 1
    path.write_text(text[:at] + "".join(rows) + text[at:])


def peer_of(values: dict, extra: list[str], steps: int) -> list[str]:
    same = {key: values[key] for key in PEER_KEYS} | dict(rows=values["rows"] * values["adapters"], steps=steps, device="cuda")
    return [sys.executable, "-B", str(ROOT / "scripts/bench/peer.py"), *flags(same), *extra]


def main() -> None:
    args = arguments(__doc__, CASES)
    commit = commit_of()
    rows, seen = [], {}
    for name in args.cases or CASES:
        changes, extra, wanted = CASES[name]
        values = BASE | changes
        ours = measure([*shlex.split(args.mlora), "bench", *flags(values), "--steps", str(args.steps), "--device", "cuda", "--json"])
        command = peer_of(values, extra, args.steps) if extra is not None and args.peers else None
        key = shlex.join(command) if command else None
        theirs = None
        if command:
            theirs = seen[key] = seen.get(key) or measure(command)
        gib = lambda report, key: f"{report[key] / 2**30:.1f}"
        ratio = f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} ({wanted})" if theirs else ""
        print(f"{name}: {json.dumps(ours)}\n    PEFT: {json.dumps(theirs)}\n    ratio: {ratio}", flush=True)
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
        memory = f"{gib(ours, 'device_bytes')} ({gib(ours, 'planned_bytes')})"
        peer = (f"{theirs['tokens_per_s']:.0f}", gib(theirs, "device_bytes")) if theirs else ("", "")
        cells = (now, commit or "unknown", ours["device"], name, ours["tokens_per_s"], ours["share_of_peak"], memory, *peer, ratio)
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    print("\n" + HEAD + "".join(rows), flush=True)
    if args.write:
        add_rows("gpu", "# Training on GPUs\n\nRows of `python3 scripts/bench/gpu.py --write`.\n\n", HEAD, rows)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
