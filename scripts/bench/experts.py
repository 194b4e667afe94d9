"""Mixtures of experts: mlora compared with PEFT on transformers' grouped_mm on this machine's GPU, in one call: python3
scripts/bench/experts.py [CASE ..] [--write]

8,192 tokens a step, random weights, adapters of rank 16 unless a case says otherwise. Each case is one setting of `mlora
bench`, a process. One adapter of 4 x 2048 tokens is compared with PEFT's (peer_experts.py, once for a shape),
several with one of the same rows in the same call, and 4 bits with the memory that they may take. --write adds each row to
the first table of docs/measurements/experts.md as it is found.
"""
import json
import shlex
import subprocess
import sys
from datetime import datetime, timezone

from gpu import ROOT, arguments, commit_of, flags

TOKENS = 8192
QWEN3, GPT_OSS, GLM = dict(shape="qwen3-30b-a3b"), dict(shape="gpt-oss-20b", precision="bf16"), dict(shape="glm4.7-flash")
ATTENTION, EXPERTS = dict(targets="qkvo"), dict(targets="all-linear")
FULL = dict(recomputation="full")
ONE, FEW, MANY = dict(adapters=1, rows=4, length=2048), dict(adapters=8, rows=4, length=256), dict(adapters=32, rows=1, length=256)
ALONE = dict(adapters=1, rows=32, length=256)
TO_PEFT, SHARE_OF_8, SHARE_OF_32 = ("PEFT", 2.0), ("one", 0.9), ("one", 0.8)


def cases_of(name: str, shape: dict, targets: dict, many: dict) -> dict:
    return {
        name: (shape | targets | ONE, TO_PEFT),
        f"{name}, 1 of 32 x 256": (shape | targets | ALONE, None),
        f"{name}, 8 of 4 x 256": (shape | targets | FEW, SHARE_OF_8),
        f"{name}, 32 of 1 x 256" + "".join(f", {key} {value}" for key, value in many.items()): (shape | targets | MANY | many, SHARE_OF_32),
    }


# name: (flags, what it is compared with and what the project asks of that)
CASES = {
    **cases_of("qwen3-30b-a3b, attention", QWEN3, ATTENTION, {}),
    **cases_of("qwen3-30b-a3b, with experts", QWEN3, EXPERTS, dict(rank=4)),  # of rank 16 they are 107 GiB
    "qwen3-30b-a3b, with experts, each its own": (QWEN3 | EXPERTS | ONE | dict(experts="per-expert"), TO_PEFT),
    "qwen3-30b-a3b, attention, nf4": (QWEN3 | ATTENTION | ONE | FULL | dict(precision="nf4"), ("GiB", 24)),
    "qwen3-30b-a3b, with experts, nf4": (QWEN3 | EXPERTS | ONE | FULL | dict(precision="nf4"), ("GiB", 24)),
    **cases_of("gpt-oss-20b, attention", GPT_OSS, ATTENTION, {}),
    **cases_of("gpt-oss-20b, with experts", GPT_OSS, EXPERTS, {}),
    **cases_of("glm4.7-flash, attention", GLM, ATTENTION, {}),
    "glm4.7-flash, with experts": (GLM | EXPERTS | ONE, TO_PEFT),
    "gpt-oss-20b, attention, mxfp4": (GPT_OSS | ATTENTION | ONE | FULL | dict(precision="auto"), ("GiB", 18)),
    "gpt-oss-20b, with experts, mxfp4": (GPT_OSS | EXPERTS | ONE | FULL | dict(precision="auto"), ("GiB", 18)),
}
HEAD = (
    "| date (UTC) | commit | GPU | case | tokens/s | GiB (planned) | recomputation | busiest expert | found (asked) | PEFT tokens/s | PEFT GiB |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: |\n"
)
NEW = "# Mixtures of experts on GPUs\n\nRows of `python3 scripts/bench/experts.py --write`.\n\n" + HEAD


def reports_of(command: list[str]) -> list[dict]:
    """The lines of JSON that a command prints; those before a failure where it fails, which costs no other row."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"failed: {shlex.join(command)}\n{done.stderr[-1500:]}", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ours_of(values: dict, args) -> dict | None:
    work = dict(rank=16, tokens=TOKENS, steps=args.steps, device="cuda")
    return next(iter(reports_of([*shlex.split(args.mlora), "bench", *flags(work | values), "--json"])), None)


def peers_of(values: dict, args) -> dict:
    """Of the shape of a case, by the targets of all cases that are compared with PEFT."""
    asked = [CASES[name] for name in args.cases or CASES]
    targets = dict.fromkeys(of["targets"] for of, goal in asked if goal == TO_PEFT and of["shape"] == values["shape"])
    same = {key: values[key] for key in ("shape", "rows", "length")} | dict(rank=16, steps=args.peer_steps)
    found = reports_of([sys.executable, "-B", str(ROOT / "scripts/bench/peer_experts.py"), *flags(same), "--targets", *targets])
    return {of["targets"]: of for of in found}


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


def row_of(name: str, ours: dict, theirs: dict | None, found: str, commit: str) -> str:
    gib = lambda report, key: f"{report[key] / 2**30:.1f}"  # noqa: E731
    memory = f"{gib(ours, 'device_bytes')} ({gib(ours, 'planned_bytes')})"
    peer = ("", "")
    if theirs:
        how = [gib(theirs, "device_bytes"), theirs["attention"], *(["checkpointing"] if theirs["checkpointing"] else [])]
        peer = (f"{theirs['tokens_per_s']:.0f}", ", ".join(how))
    now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
    cells = (now, commit or "unknown", ours["device"], name, ours["tokens_per_s"], memory, ours["recomputation"], ours["busiest_expert"], found, *peer)
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> None:
    args = arguments(__doc__, CASES, steps=4, more=lambda parser: parser.add_argument("--peer-steps", type=int, default=4, help="of PEFT, which is slower"))
    commit = commit_of()
    rows, alone, peers = [], {}, {}
    for name in args.cases or CASES:
        values, asked = CASES[name]
        setting = (values["shape"], values["targets"], values["length"])
        ours = ours_of(values, args)
        if ours is None:
            continue
        if values["adapters"] == 1:
            alone[setting] = ours
        theirs = None
        if args.peers and asked == TO_PEFT:
            if values["shape"] not in peers:
                peers[values["shape"]] = peers_of(values, args)
            theirs = peers[values["shape"]].get(values["targets"])
        found = found_of(ours, asked, alone.get(setting), theirs)
        rows.append(row_of(name, ours, theirs, found, commit))
        kernels = ", ".join(f"{kernel} {ms:.1f}" for kernel, ms in ours["kernel_ms"].items())
        print(f"{rows[-1]}    a step of {ours['ms']} ms, losses {ours['losses'][:2]}; by kernel: {kernels}\n    PEFT: {json.dumps(theirs)}", flush=True)
        if args.write:
            path = ROOT / "docs/measurements/experts.md"
            path.write_text(insert(path.read_text() if path.exists() else NEW, rows[-1]))
    print("\n" + HEAD + "".join(rows), flush=True)
    if len(rows) < len(args.cases or CASES):
        sys.exit("some cases failed, see above")


if __name__ == "__main__":
    main()
