"""Compiles variants.py ahead of time, without a GPU, into kernels/build: PTX, machine code (cubins) and manifest.json.

    compile.py [--out FOLDER] [--only KERNEL] [--verify]

A file's name ends in the hash of all that it is made from, so what is there already is left as it is, whatever else has
changed. manifest.json is written last, and what belongs to nothing any more is deleted after that: an interrupted build leaves
the last manifest with all its files, and the next one continues. Builds of one folder wait for each other.

    --only     compiles one kernel; the manifest then lists what is up to date, and says so when that is not everything
    --verify   compiles nothing; says what is stale, missing, changed or left over, and ends with 1 if there is anything

The manifest: triton, format, kernels = the rows of variants.py (`name` is the kernel) with what codegen.py says of each, `ptx`
and `cubins` (by the major compute capability that they run on) as paths in the folder, source_sha256, ptx_sha256,
cubins_sha256.

Cubins spare a start the driver's compiler: sm_90a is Hopper's, sm_89 Ada's; sm_80 is for all of capability 8; what is compiled
for sm_80 and also launched on Hopper is assembled for sm_90 from the same PTX. On any other GPU the driver compiles the sm_80
PTX.
"""
import argparse
import ast
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from variants import variants  # noqa: E402

FORMAT = 1  # of the manifest: src/device/cuda/manifest.ts reads this one
TRITON = re.search(r"^triton==(\S+)$", (HERE / "requirements.txt").read_text(), re.MULTILINE).group(1)
MANIFEST = "manifest.json"
LOCK = ".lock"
SPILLS = 128  # bytes a thread that are worth a line


# What a row is made from, and the names of its files.


@functools.lru_cache(None)
def sources(module):
    """Names of a module's file and of those of this folder that it imports, at any depth."""
    names = {module}
    for node in ast.walk(ast.parse((HERE / f"{module}.py").read_bytes())):
        imported = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in imported:
            if name not in names and (HERE / f"{name}.py").exists():
                names |= sources(name)
    return frozenset(names)


@functools.lru_cache(None)
def sources_hash(module):
    files = sorted(sources(module) | {"codegen"})
    return sha256(json.dumps([[name, sha256((HERE / f"{name}.py").read_bytes())] for name in files]).encode())


def source_hash(row):
    """Of all that decides a row's files; the order of the signature is part of it."""
    return sha256(json.dumps([FORMAT, TRITON, sources_hash(row["module"]), row]).encode())


def stem(row):
    """The path in the folder that a row's files begin with."""
    return f"{row['arch']}/{row['kernel']}-{source_hash(row)[:16]}"


def machines(row):
    """ptxas's name of the machine that a cubin is for, by major compute capability."""
    if row["arch"] == "sm_90a":
        return {"9": "sm_90a"}
    if row["arch"] == "sm_89":
        return {"8": "sm_89"}
    return {"8": "sm_80"} | ({} if row["kinds"] == ["ptr"] else {"9": "sm_90"})


def record(stem):
    """Where the entry of a row is kept for later builds: a hidden file, so that it is no asset."""
    folder, name = stem.split("/")
    return f"{folder}/.{name}.json"


def assets(entry):
    """An entry's files, and their hashes."""
    return {entry["ptx"]: entry["ptx_sha256"]} | {path: entry["cubins_sha256"][major] for major, path in entry["cubins"].items()}


def title(row):
    """Of a row, or of its entry."""
    constants = " ".join(f"{name}={value}" for name, value in row["constants"].items())
    return f"{row.get('kernel') or row['name']} {row['dtype']} {row['arch']} {constants}"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# Building.


def build(row, out):
    """In a worker: compiles a row and writes its files, the record last. Returns the entry."""
    from codegen import generate

    ptx, code, made = generate(row, machines(row).values(), out)
    cubins = {major: code[machine] for major, machine in machines(row).items()}
    paths = {major: f"{stem(row)}.{machine}.cubin" for major, machine in machines(row).items()}
    entry = dict(
        name=row["kernel"],
        **{key: row[key] for key in ("kinds", "arch", "dtype", "constants", "launch")},
        **made,
        ptx=f"{stem(row)}.ptx",
        cubins=paths,
        source_sha256=source_hash(row),
        ptx_sha256=sha256(ptx.encode()),
        cubins_sha256={major: sha256(cubin) for major, cubin in cubins.items()},
    )
    write(out / entry["ptx"], ptx.encode())
    for major, cubin in cubins.items():
        write(out / paths[major], cubin)
    write(out / record(stem(row)), json.dumps(entry).encode())
    return entry


def write(path, content):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f".making-{path.name}")
    making.write_bytes(content)
    making.replace(path)


def begin_worker():
    """Ctrl-C is the parent's to handle, and a worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def build_all(rows, out):
    """Compiles rows side by side. The first that fails ends it; what is done by then stays for the next build."""
    if not rows:
        return
    for name in [name for name in os.environ if name.startswith("TRITON_")]:
        del os.environ[name]  # what is compiled depends on the sources alone
    if version("triton") != TRITON:
        raise SystemExit(f"kernels: Triton {version('triton')} is installed, {TRITON} is wanted: run scripts/setup")
    workers, progress = os.cpu_count() or 1, Progress(len(rows))
    pool = ProcessPoolExecutor(min(workers, len(rows)), initializer=begin_worker)
    jobs = {pool.submit(build, row, out): row for row in rows}
    try:
        for job in as_completed(jobs):
            job.result()
            progress.step()
    except KeyboardInterrupt:
        abort("interrupted; what was done is kept")
    except BrokenProcessPool:
        abort("a compiling process died (out of memory?); what was done is kept, so just run it again")
    except Exception as error:
        abort(f"{title(jobs[job])}\n{type(error).__name__}: {error}")
    pool.shutdown()


def abort(message):
    """Ends this process and with it the workers, at once: to wait for a pool that was interrupted twice is to wait for ever."""
    print(f"\nkernels: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Progress:
    """On a terminal one line that counts; elsewhere a line now and then."""

    def __init__(self, total):
        self.done, self.total, self.start, self.shown = 0, total, time.monotonic(), 0.0

    def step(self):
        self.done += 1
        seconds, last = time.monotonic() - self.start, self.done == self.total
        if sys.stderr.isatty():
            print(f"\rkernels: {self.done} of {self.total}, {seconds:.0f} s", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or seconds - self.shown >= 20:
            self.shown = seconds
            print(f"kernels: {self.done} of {self.total}, {seconds:.0f} s", file=sys.stderr, flush=True)


# What is there.


def built(row, out):
    """The entry that an earlier build left, if it is this row's and all its files are whole; else None."""
    try:
        entry = json.loads((out / record(stem(row))).read_bytes())
        whole = entry["source_sha256"] == source_hash(row) and all(sha256((out / path).read_bytes()) == sha for path, sha in assets(entry).items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole else None


def manifest_of(entries):
    return dict(triton=TRITON, format=FORMAT, kernels=entries)


def strangers(out, entries):
    """Files in the folder that belong to none of the entries, sorted."""
    known = {MANIFEST, LOCK} | {path for entry in entries for path in (record(entry["ptx"].removesuffix(".ptx")), *assets(entry))}
    return sorted(path for path in out.rglob("*") if not path.is_dir() and str(path.relative_to(out)) not in known)


def faults(rows, out):
    """What is not as a build would leave it, a line each."""
    entries = [built(row, out) for row in rows]
    lines = [f"stale or missing: {title(row)}" for row, entry in zip(rows, entries) if entry is None]
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        listed = manifest["kernels"]
        lines += [f"left over: {path.relative_to(out)}" for path in strangers(out, [*filter(None, entries), *listed])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [*lines, f"missing or broken: {MANIFEST}"]
    return lines or ([] if manifest == manifest_of(entries) else [f"not what the files are: {MANIFEST}"])


def update(rows, out, only):
    """Builds what is not there, writes the manifest and removes what belongs to nothing. Says what it did, and nothing if that
    is nothing."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        todo = [row for row in rows if built(row, out) is None and only in (None, row["kernel"])]
        build_all(todo, out)
        entries = [entry for entry in (built(row, out) for row in rows) if entry]
        write(out / MANIFEST, json.dumps(manifest_of(entries), indent=1).encode())
        for path in strangers(out, entries):
            path.unlink()
    new = {source_hash(row) for row in todo}
    for entry in entries:
        if entry["source_sha256"] in new and (entry["spills"] > SPILLS or entry["warnings"]):
            print(f"kernels: {title(entry)}: spills {entry['spills']} bytes a thread", *entry["warnings"], sep="\n  ")
    if len(entries) < len(rows):
        print(f"kernels: {len(entries)} of {len(rows)} are up to date, and the manifest lists no others")
    elif todo:
        size = sum((out / path).stat().st_size for entry in entries for path in assets(entry))
        print(f"kernels: {len(entries)}, {size / 2**20:.1f} MiB, in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "build", metavar="FOLDER")
    parser.add_argument("--only", metavar="KERNEL")
    parser.add_argument("--verify", action="store_true")
    args = parser.parse_args()
    rows = variants()
    if args.verify:
        lines = faults(rows, args.out)
        for line in lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else []):
            print(f"kernels: {line}")
        sys.exit(1 if lines else 0)
    if args.only not in (None, *(row["kernel"] for row in rows)):
        sys.exit(f"kernels: no kernel is called {args.only}")
    update(rows, args.out, args.only)


if __name__ == "__main__":
    main()
