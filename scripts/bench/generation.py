"""Generation by mlora and by transformers on this machine's GPU, in one call: python3 scripts/bench/generation.py [CASE ..]
[--no-peers] [--write]

Each case is one setting of `mlora bench --generate` and the same of peer_generate.py, a process each, one after the other.
transformers extends the base model's sequences, which is less work than the adapters' that mlora extends. Ratios count. Needs a
GPU, and a Python with the packages of requirements.txt for the peer. --write adds the rows to docs/measurements/generation.md.
"""
import shlex
import sys
from datetime import datetime, timezone

from experts import reports_of
from gpu import ROOT, arguments, commit_of, flags

LLAMA = {"shape": "llama2-7b", "targets": "qkvo", "adapters": 8, "prompt-tokens": 64, "new-tokens": 128, "rounds": 2}
DRAWN = {"temperature": 0.8, "top-p": 0.95}
SMALL = {"shape": "smollm2-135m", "targets": "all-linear", "prompt-tokens": 64, "new-tokens": 256, "rounds": 3}

# name: (setting, whether transformers is measured, what the project asks for: tokens/s at least, or ms a pass at most)
CASES = {
    "64": (LLAMA | {"sequences": 64}, True, "5600 tokens/s"),
    "256": (LLAMA | DRAWN | {"sequences": 256}, True, "12000 tokens/s"),
    "1, SmolLM2": (SMALL | {"sequences": 1, "adapters": 1}, False, "1.5 ms"),
    "16": (LLAMA | {"sequences": 16}, False, ""),
    "64, prompts of 512": (LLAMA | {"sequences": 64, "prompt-tokens": 512}, False, ""),
}
HEAD = (
    "| date (UTC) | commit | GPU | shape | sequences, adapters | prompt, new tokens | tokens/s (asked) | pass, ms | prompts, ms "
    "| transformers tokens/s | ratio |\n| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
)


def last_of(command: list[str]) -> dict | None:
    return next(reversed(reports_of(command)), None)


def row_of(values: dict, ours: dict, theirs: dict | None, asked: str, commit: str) -> str:
    now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
    drawn = f", temperature {values['temperature']}, top-p {values['top-p']}" if "temperature" in values else ""
    speed = f"{ours['tokens_per_s']:,}" + (f" ({asked})" if asked else "")
    peer = (f"{theirs['tokens_per_s']:,}", f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}") if theirs else ("", "")
    cells = (
        *(now, commit or "unknown", ours["device"], ours["shape"], f"{values['sequences']}, {values['adapters']}{drawn}"),
        *(f"{values['prompt-tokens']}, {values['new-tokens']}", speed, ours["pass_ms"]),
        *(f"{ours['reading_ms']:.0f} in {ours['reading_passes']}", *peer),
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> None:
    args = arguments(__doc__, CASES)
    commit = commit_of()
    failed = False
    for name in args.cases or CASES:
        values, has_peer, asked = CASES[name]
        ours = last_of([*shlex.split(args.mlora), "bench", "--generate", "--device", "cuda", "--json", *flags(values)])
        if ours is None:
            failed = True
            continue
        peer = [sys.executable, "-B", str(ROOT / "scripts/bench/peer_generate.py"), *flags(values | {"adapters": 0})]
        theirs = last_of(peer) if args.peers and has_peer else None
        row = row_of(values, ours, theirs, asked, commit)
        for what in ("reading_kernel_ms", "kernel_ms"):
            print(f"    {what}: " + ", ".join(f"{kernel} {ms:.2f}" for kernel, ms in ours[what].items()))
        print(row, flush=True)
        if args.write:
            path = ROOT / "docs/measurements/generation.md"
            text = path.read_text()
            at = text.index(HEAD) + len(HEAD)
            while text.startswith("|", at):
                at = text.index("\n", at) + 1
            path.write_text(text[:at] + row + text[at:])
    if failed:
        sys.exit("some cases failed, see above")


if __name__ == "__main__":
    main()
