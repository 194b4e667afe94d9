"""What is compiled: every variant of every kernel, and with which constants. No Triton is needed to read it.

Each file of kernels lists its own, in variants() below the line MARK; the longest lists are *_variants.py. What stands below
that line is read without what stands above, and is no part of a kernel's hash.

A row: module and kernel (file and function), kinds (what launches it: "tma" is bf16 on Hopper, "ptr" bf16 from Ampere on, "f32"
any GPU), arch that it is compiled for, dtype, constants, warps, stages, signature (parameter -> Triton's type, constants left
out), launch (numbers that a launcher needs and the kernel does not). Rows of several kinds that would be compiled alike are
one. A launcher takes the row of its kernel and kind; where there are several it compares constants.
"""
from pathlib import Path

MARK = "\n# What is compiled.\n"
# Whether what a kind launches converts f32 to e4m3 by way of f16 (fp8.py).
HALVES = {"tma": 0, "ptr": 1}
KINDS = {"ptr": (["tma", "ptr"], "bf16"), "f32": (["f32"], "fp32"), None: (["tma", "ptr", "f32"], "fp32")}


def row(module, kernel, kind, parameters, warps=4, stages=1, **constants):
    """A row of a kernel that uses nothing of later chips: it is compiled for sm_80 and runs on them too. kind is ptr, f32, or
    None where no tensor has the compute type; parameters are written "name:type", with c for a pointer to that type."""
    kinds, dtype = KINDS[kind]
    signature = dict(parameter.split(":") for parameter in parameters.split())
    signature = {name: f"*{dtype}" if type == "c" else type for name, type in signature.items()}
    return dict(module=module, kernel=kernel, kinds=kinds, arch="sm_80", dtype=dtype, constants=constants, warps=warps, stages=stages, signature=signature)


def by_chip(module, kernel, parameters, hopper, ampere, **constants):
    """Rows of a kernel in bf16, with (warps, stages) for Hopper, whose tensor cores read shared memory, and for others."""
    found = row(module, kernel, "ptr", parameters, *ampere, **constants)
    yield dict(found, kinds=["ptr"])
    yield dict(found, kinds=["tma"], arch="sm_90a", warps=hopper[0], stages=hopper[1])


def overlapping(found):
    """A row whose kernel overlaps with the one before on Hopper (overlap.py), and the same for other chips."""
    kinds = [kind for kind in found["kinds"] if kind != "tma"]
    yield dict(found, kinds=kinds, constants=found["constants"] | dict(OVERLAPS=0))
    if "tma" in found["kinds"]:
        yield dict(found, kinds=["tma"], arch="sm_90a", constants=found["constants"] | dict(OVERLAPS=1))


def for_tests(rows):
    """The same, launched by tests alone: scripts/build leaves their code out of the binary."""
    for found in rows:
        yield dict(found, launch=dict(tests=1))


def listed(path):
    """The rows that a file lists; none where it has no list."""
    above, mark, below = path.read_text().partition(MARK)
    if not mark and not path.stem.endswith("_variants"):
        return
    text = "\n" * (above + mark).count("\n") + below if mark else above
    names = {"__name__": path.stem}
    exec(compile(text, path, "exec"), names)
    yield from names["variants"]()


def variants():
    """All rows, in the order of the files' names, each row once."""
    merged = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path != Path(__file__):
            for found in listed(path):
                key = (*(found[name] for name in ("module", "kernel", "arch", "dtype", "warps", "stages")), *found["constants"].items(), *found["signature"].items())
                if key in merged:
                    merged[key]["kinds"] += [kind for kind in found["kinds"] if kind not in merged[key]["kinds"]]
                else:
                    merged[key] = dict(found, kinds=list(found["kinds"]), launch=found.get("launch", {}))
    return list(merged.values())
