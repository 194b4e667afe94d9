"""Cases of `mlora bench`, round by round, next to the build before and to PEFT: python3 scripts/bench/rounds.py [CASE ..]

Prints a line of JSON for this machine, then one for each measurement: {"case", "round", "program": "mlora" | "against" |
"peer", "report"}. The programs take turns, a fresh process each time, and begin with another one each round, so that what
else the machine does, and its warmth, meet all of them; the ratios of a round are what scripts/bench/history.ts compares.
Needs the standard library only. The peer needs the packages of requirements.txt: --python names an interpreter that has them;
without it they are installed into the user's cache, once, where scripts/bench/cpu has them. --no-peers leaves it out.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from gpu import BASE, COMPILED, PEER_KEYS, ROOT, flags

WANTED = ROOT / "scripts/bench/requirements.txt"
SMALL = dict(shape="smollm2-135m", adapters=1, targets="all-linear", dropout=0.0, recomputation="auto", device="cpu")
# name: (flags of mlora bench, flags of peer.py or None)
CASES = {
    "7b, attention": (BASE | dict(device="cuda"), COMPILED),
    "7b, all linears": (BASE | dict(targets="all-linear", device="cuda"), COMPILED),
    "7b, full recomputation": (BASE | dict(recomputation="full", device="cuda"), ["--checkpointing"]),
    "7b, 32 adapters": (BASE | dict(adapters=32, rows=1, device="cuda"), None),
    "135m on the processor": (SMALL | dict(rows=4, length=64, rank=16), []),
    "a few tokens on the processor": (SMALL | dict(rows=1, length=8, rank=4, targets="qkvo"), []),
}
ON_GPUS = [name for name, (values, _) in CASES.items() if values["device"] == "cuda"]


def fail(what: str) -> None:
    sys.exit(f"rounds: {what}")


def answer(command: list[str], seconds: float, env: dict | None = None) -> dict:
    """The last line of a command's output, as JSON."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        fail(f"there is no program {command[0]}")
    except subprocess.TimeoutExpired:
        fail(f"it took more than {seconds:.0f} s: {shlex.join(command)}")
    if done.returncode != 0:
        fail(f"it ended with {done.returncode}: {shlex.join(command)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peers_python(seconds: float) -> str:
    """Of an environment that is done when its stamp is there; its folder is named by what was asked for."""
    key = hashlib.sha256(WANTED.read_bytes()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlora-bench" / key
    python = folder / "bin/python"
    if not (folder / ".done").exists():
        print(f"rounds: installing PyTorch and PEFT into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(WANTED)],
        ):
            if subprocess.run(command, timeout=seconds, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode != 0:
                fail(f"this failed: {shlex.join(command)}\n  give --python an interpreter that has {WANTED.name}, or --no-peers")
        (folder / ".done").touch()
    return str(python)


def machine() -> dict:
    """What numbers depend on next to the programs."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        drivers = subprocess.run(query, capture_output=True, text=True, timeout=60)
        driver = drivers.stdout.split("\n")[0].strip() if drivers.returncode == 0 else None
    except FileNotFoundError:
        driver = None
    return dict(system=f"{platform.system()} {platform.release()}", python=platform.python_version(), driver=driver)


def version_of(mlora: str) -> str:
    try:
        done = subprocess.run([*shlex.split(mlora), "--version"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        fail(f"{mlora} does not run here: {error.strerror}")
    if done.returncode != 0:
        fail(f"{mlora} does not run here: {done.stderr.strip()}")
    return done.stdout.strip().removeprefix("mlora ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {'; '.join(CASES)} (default: those of GPUs)")
    parser.add_argument("--mlora", default=str(ROOT / "dist/mlora"), help="a command")
    parser.add_argument("--against", help="a command: the build before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=900, help="most that one measurement takes")
    parser.add_argument("--python", help="an interpreter that has requirements.txt")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}")
    if min(args.rounds, args.steps) < 1:
        parser.error("expected at least one round and one step")
    cases = {name: CASES[name] for name in args.cases or ON_GPUS}

    versions = {name: version_of(command) for name, command in dict(mlora=args.mlora, against=args.against).items() if command}
    python = None
    if args.peers and any(peer is not None for _, peer in cases.values()):
        python = args.python or peers_python(args.seconds)
        if subprocess.run([python, "-c", "import torch, transformers, peft"], stdin=subprocess.DEVNULL).returncode != 0:
            fail(f"{python} has no torch, transformers and peft\n  give --python an interpreter that has {WANTED.name}, or --no-peers")
    print(json.dumps(dict(machine=machine(), versions=versions)), flush=True)

    for name, (values, extra) in cases.items():
        ours = [*flags(values), "--steps", str(args.steps), "--json"]
        commands = {"mlora": [*shlex.split(args.mlora), "bench", *ours]}
        if args.against:
            commands["against"] = [*shlex.split(args.against), "bench", *ours]
        if python and extra is not None:  # it trains one adapter of the same number of tokens
            same = {key: values[key] for key in PEER_KEYS} | dict(rows=values["rows"] * values["adapters"])
            same |= dict(steps=args.steps, device=values["device"])
            commands["peer"] = [python, "-B", str(ROOT / "scripts/bench/peer.py"), *flags(same), *extra]
        for number in range(args.rounds):
            first = number % len(commands)
            for program in [*list(commands)[first:], *list(commands)[:first]]:
                print(f"rounds: {name}, round {number + 1} of {args.rounds}: {program}", file=sys.stderr, flush=True)
                report = answer(commands[program], args.seconds)
                print(json.dumps(dict(case=name, round=number, program=program, report=report)), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
