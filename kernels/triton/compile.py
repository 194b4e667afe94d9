"""Compiles variants.py ahead of time, without a GPU, into kernels/build: PTX, machine code (cubins) and manifest.json.

    compile.py [--out FOLDER] [--only KERNEL | --these] [--verify | --report | --rows]

A file's name ends in the hash of all that it is made from, so what is there already is left as it is, whatever else has
changed. manifest.json is written last, and what belongs to nothing any more is deleted after that: an interrupted build leaves
the last manifest with all its files, and the next one continues. Builds of one folder wait for each other.

    --only     compiles one kernel; what else is not up to date the manifest then lists as not compiled
    --these    compiles the rows whose source_sha256 begins a line of standard input, likewise
    --rows     prints the manifest as it is where nothing is compiled
    --verify   compiles nothing; says what is stale, missing, changed or left over, and ends with 1 if there is anything
    --report   compiles into a temporary folder, from nothing, and prints what each kernel costs

The manifest: triton, format, kernels = the rows of variants.py (`name` is the kernel) with source_sha256 and, where a row is
compiled, what codegen.py says of it, `ptx` and `cubins` (by the major compute capability that they run on) as paths in the
folder, ptx_sha256, cubins_sha256. All rows are listed in any case, so that launchers choose the same variant whatever else is
compiled.

Cubins spare a start the driver's compiler: sm_90a is Hopper's, sm_89 Ada's; sm_80 is for all of capability 8; what is compiled
for sm_80 and also launched on Hopper is assembled for sm_90 from the same PTX. On any other GPU the driver compiles the sm_80
PTX.
"""
import argparse
import ast
import ctypes
import fcntl
import functools
import gc
import hashlib
import io
import json
import os
import platform
import re
import resource
import signal
import symtable
import sys
import tempfile
import time
import tokenize
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from variants import MARK, variants  # noqa: E402

FORMAT = 2  # of the manifest: src/device/cuda/manifest.ts reads this one
RECORD = 2  # of what is kept of a row
TRITON = re.search(r"^triton==(\S+)$", (HERE / "requirements.txt").read_text(), re.MULTILINE).group(1)
MANIFEST = "manifest.json"
LOCK = ".lock"
SPILLS = 128  # bytes a thread that are worth a line


# What a row is made from, and the names of its files.


@functools.lru_cache(None)
def above(name):
    """The text of a source above its list of what is compiled. Nothing there may use what stands below."""
    text, _, listed = (HERE / f"{name}.py").read_text().partition(MARK)
    below = {symbol.get_name() for symbol in symtable.symtable(listed, name, "exec").get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = used_globals(symtable.symtable(text, name, "exec")) & below
    if used:
        sys.exit(f"kernels: {name}.py: {', '.join(sorted(used))} stands below the line '{MARK.strip()}' and is used above it, so that a change of it would not be compiled")
    return text


def used_globals(table):
    """Names that functions of a module take from it."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()} if table.get_type() == "function" else set()
    return own.union(*map(used_globals, table.get_children()))


@functools.lru_cache(None)
def sources(module):
    """Names of a module's file and of those of this folder that it imports, at any depth."""
    names = {module}
    for node in ast.walk(ast.parse(above(module))):
        imported = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in imported:
            if name not in names and (HERE / f"{name}.py").exists():
                names |= sources(name)
    return frozenset(names)


@functools.lru_cache(None)
def code(name):
    """The text of a source without comments, docstrings, empty lines and its list of what is compiled: none of them is in
    what is compiled, which has no line numbers."""
    text = above(name)
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            for row in range(docstring.lineno, docstring.end_lineno + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.lru_cache(None)
def sources_hash(module):
    files = sorted(sources(module) | {"codegen"})
    return sha256(json.dumps([[name, sha256(code(name).encode())] for name in files]).encode())


def source_hash(row):
    """Of all that decides a row's files; the order of the signature is part of it."""
    return sha256(json.dumps([RECORD, TRITON, sources_hash(row["module"]), row]).encode())


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


def facts(row):
    """What the manifest says of a row that is not compiled."""
    return dict(name=row["kernel"], **{key: row[key] for key in ("kinds", "arch", "dtype", "constants", "launch")}, source_sha256=source_hash(row))


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
    """In a worker: compiles a row and writes its files, the record last. Returns the entry and its seconds of CPU."""
    from codegen import generate

    began = cpu_seconds()
    ptx, code, made = generate(row, machines(row).values(), out)
    cubins = {major: code[machine] for major, machine in machines(row).items()}
    paths = {major: f"{stem(row)}.{machine}.cubin" for major, machine in machines(row).items()}
    entry = dict(
        **facts(row),
        **made,
        ptx=f"{stem(row)}.ptx",
        cubins=paths,
        ptx_sha256=sha256(ptx.encode()),
        cubins_sha256={major: sha256(cubin) for major, cubin in cubins.items()},
    )
    write(out / entry["ptx"], ptx.encode())
    for major, cubin in cubins.items():
        write(out / paths[major], cubin)
    write(out / record(stem(row)), json.dumps(entry).encode())
    return entry, cpu_seconds() - began


def cpu_seconds():
    """Of this process and of those that it has waited for (ptxas): other programs on the machine do not count."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def write(path, content):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f".making-{path.name}")
    making.write_bytes(content)
    making.replace(path)


def begin_worker():
    """Ctrl-C is the parent's to handle, and a worker ends with its parent, however that ends. Python looks for cycles seldom:
    looking through what Triton makes is some 5 % of the time."""
    gc.set_threshold(200_000, 50, 50)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def build_all(rows, out):
    """Compiles rows side by side; returns [(row, entry, seconds)]. The first that fails ends it; what is done by then stays."""
    done = []
    if not rows:
        return done
    for name in [name for name in os.environ if name.startswith("TRITON_")]:
        del os.environ[name]  # what is compiled depends on the sources alone
    if version("triton") != TRITON:
        raise SystemExit(f"kernels: Triton {version('triton')} is installed, {TRITON} is wanted: run scripts/setup")
    workers, progress = os.cpu_count() or 1, Progress(len(rows))
    pool = ProcessPoolExecutor(min(workers, len(rows)), initializer=begin_worker)
    jobs = {pool.submit(build, row, out): row for row in rows}
    try:
        for job in as_completed(jobs):
            done.append((jobs[job], *job.result()))
            progress.step()
    except KeyboardInterrupt:
        abort("interrupted; what was done is kept")
    except BrokenProcessPool:
        abort("a compiling process died (out of memory?); what was done is kept, so just run it again")
    except Exception as error:
        abort(f"{title(jobs[job])}\n{type(error).__name__}: {error}")
    pool.shutdown()
    return done


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


def manifest_of(rows, entries):
    """`entries`: of each row, or None."""
    return dict(triton=TRITON, format=FORMAT, kernels=[entry or facts(row) for row, entry in zip(rows, entries)])


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
        listed = [entry for entry in manifest["kernels"] if "ptx" in entry]
        lines += [f"left over: {path.relative_to(out)}" for path in strangers(out, [*filter(None, entries), *listed])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [*lines, f"missing or broken: {MANIFEST}"]
    return lines or ([] if manifest == manifest_of(rows, entries) else [f"not what the files are: {MANIFEST}"])


def update(rows, wanted, out):
    """Builds what of `wanted` is not there, writes the manifest and removes what belongs to nothing. Says what it did, and
    nothing if that is nothing."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        todo = [row for row in wanted if built(row, out) is None]
        build_all(todo, out)
        found = [built(row, out) for row in rows]
        entries = [entry for entry in found if entry]
        write(out / MANIFEST, json.dumps(manifest_of(rows, found), indent=1).encode())
        for path in strangers(out, entries):
            path.unlink()
    new = {source_hash(row) for row in todo}
    for entry in entries:
        if entry["source_sha256"] in new and (entry["spills"] > SPILLS or entry["warnings"]):
            print(f"kernels: {title(entry)}: spills {entry['spills']} bytes a thread", *entry["warnings"], sep="\n  ")
    if len(entries) < len(rows):
        print(f"kernels: {len(entries)} of {len(rows)} are compiled; scripts/kernels compiles the others")
    elif todo:
        size = sum((out / path).stat().st_size for entry in entries for path in assets(entry))
        print(f"kernels: {len(entries)}, {size / 2**20:.1f} MiB, in {out}")


# What it costs.


def report(rows):
    """Compiles rows from nothing and prints a Markdown table: variants, seconds of CPU, bytes raw and as xz packs them."""
    with tempfile.TemporaryDirectory(prefix="mlora-kernels-") as folder:
        began, out = time.monotonic(), Path(folder)
        built = build_all(rows, out)
        wall = time.monotonic() - began
        groups = {}
        for row, entry, seconds in built:
            groups.setdefault((row["arch"], row["kernel"]), []).append((entry, seconds))
        lines = [cost(arch, kernel, groups[arch, kernel], out) for arch, kernel in sorted(groups)]
    totals = [sum(line[column] for line in lines) for column in range(2, 7)]
    print("| for | kernel | variants | CPU s | PTX KiB | machine code KiB | both, xz KiB |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for arch, kernel, *numbers in [*lines, ("", "all", *totals)]:
        print(f"| {arch} | {kernel} | " + " | ".join(f"{number:.1f}" if isinstance(number, float) else str(number) for number in numbers) + " |")
    print(f"\n{wall:.0f} s on {os.cpu_count()} cores of {platform.machine()}, the start of the compiler in them; Triton {TRITON}")


def cost(arch, kernel, built, out):
    import lzma  # some Pythons have none, and the build needs none

    files = {kind: b"".join((out / path).read_bytes() for entry, _ in built for path in assets(entry) if path.endswith(kind)) for kind in (".ptx", ".cubin")}
    packed = sum(len(lzma.compress(content)) for content in files.values())
    kib = (len(files[".ptx"]) // 1024, len(files[".cubin"]) // 1024, packed // 1024)
    return arch, kernel, len(built), sum(seconds for _, seconds in built), *kib


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "build", metavar="FOLDER")
    parser.add_argument("--only", metavar="KERNEL")
    parser.add_argument("--these", action="store_true")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--rows", action="store_true")
    args = parser.parse_args()
    rows = variants()
    if args.rows:
        json.dump(manifest_of(rows, [None] * len(rows)), sys.stdout)
        return
    if args.verify:
        lines = faults(rows, args.out)
        for line in lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else []):
            print(f"kernels: {line}")
        sys.exit(1 if lines else 0)
    if args.only not in (None, *(row["kernel"] for row in rows)):
        sys.exit(f"kernels: no kernel is called {args.only}")
    wanted = [row for row in rows if args.only in (None, row["kernel"])]
    if args.these:
        hashes = {line.split()[0] for line in sys.stdin if line.strip()}
        wanted = [row for row in wanted if source_hash(row) in hashes]
        if len(wanted) < len(hashes):
            sys.exit("kernels: standard input names rows that variants.py has not")
    if args.report:
        report(wanted)
        return
    update(rows, wanted, args.out)


if __name__ == "__main__":
    main()
