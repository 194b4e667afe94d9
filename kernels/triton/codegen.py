"""One row of variants.py to PTX, machine code and what a launcher must know of them. Needs Triton and no GPU; writes no file.

Triton's passes are called one by one instead of through triton.compile, which would write every stage into a cache on disk and
assemble with line numbers, that is with the paths of this checkout in it. The same row gives the same bytes in every folder.

A product and a sum are one operation only where a source says tl.fma. A compiler that may fuse a b + c d fuses it in one way
here and in another there, as the rest of a kernel has it: then a row's bits depend on the variant that others in its batch
decide. So Triton fuses nothing, and PTX has the rounding of each operation (mul.rn, add.rn), which neither ptxas nor a driver
that compiles PTX may change.

Integers are not specialised: a kernel serves every value. Pointers are aligned to 16 bytes. Triton's own scratch memory is
refused, for a launch gives none: its two hidden pointers are null.
"""
import importlib
import re
import subprocess
import tempfile
from pathlib import Path

from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource

knobs.compilation.disable_line_info = True

CAPABILITY = {"sm_80": 80, "sm_89": 89, "sm_90a": 90}
HIDDEN = ["global_scratch", "profile_scratch"]
SCALARS = {"i32": ("i32", 4), "i64": ("i64", 8), "fp32": ("f32", 4)}  # the launcher's name and bytes, by Triton's


class Unfit(Exception):
    """A row that cannot be compiled, or that could not be launched."""


def generate(row, machines, folder):
    """PTX, {machine: cubin} and a description for the manifest. `machines` are ptxas's names; `folder` is for its files."""
    ptx, metadata = lower(row)
    sizes = [metadata[f"{name}_size"] for name in HIDDEN]
    if any(sizes):
        raise Unfit(f"needs {sizes} bytes of Triton's own scratch memory, which a launch does not give")
    params = parameters(row["signature"], metadata["tensordesc_meta"])
    expected = layout(params) + [(8, 8)] * len(HIDDEN)
    found = entry_layout(ptx, metadata["name"])
    if found != expected:
        raise Unfit(f"the PTX takes parameters of (bytes, alignment) {found}, a launcher would give {expected}")
    cubins, reports = {}, []
    for machine in machines:
        cubins[machine], report = assemble(ptx, machine, folder)
        reports.append(report)
    return ptx, cubins, dict(
        entry=metadata["name"],
        params=params,
        hidden=HIDDEN,
        warps=metadata["num_warps"],
        threads=32 * metadata["num_warps"],
        shared=metadata["shared"],
        registers=max(report["registers"] for report in reports),
        spills=max(report["spills"] for report in reports),
        warnings=sorted({warning for report in reports for warning in report["warnings"]}),
    )


def lower(row):
    """PTX and Triton's metadata of a row."""
    function = getattr(importlib.import_module(row["module"]), row["kernel"])
    signature = {name: row["signature"].get(name, "constexpr") for name in function.arg_names}
    constants = {name for name, type in signature.items() if type == "constexpr"}
    if constants != set(row["constants"]) or [name for name in signature if name not in constants] != list(row["signature"]):
        raise Unfit(f"the kernel takes {list(signature)}; its row has signature {list(row['signature'])} and constants {list(row['constants'])}")
    aligned = {(i,): [["tt.divisibility", 16]] for i, type in enumerate(signature.values()) if type.startswith("*")}
    source = (GluonASTSource if function.is_gluon() else ASTSource)(fn=function, signature=signature, constexprs=row["constants"], attrs=aligned)

    target = GPUTarget("cuda", CAPABILITY[row["arch"]], 32)
    backend = make_backend(target)
    options = backend.parse_options(dict(num_warps=row["warps"], num_stages=row["stages"], enable_fp_fusion=False))
    stages, metadata = {}, {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    for name, stage in stages.items():
        if name != "cubin":
            module = stage(module, metadata)
    return module, metadata


def parameters(signature, descriptors):
    """The entry's parameters for the manifest; `descriptors`: what the compiler decided of each tensor descriptor, in order."""
    left = list(descriptors or [])
    params = []
    for name, type in signature.items():
        if type.startswith("tensordesc"):
            made = left.pop(0)
            if made["fp4_padded"]:
                raise Unfit(f"{name} is a descriptor of 4-bit elements")
            dtype = re.match(r"tensordesc<(\w+)\[", type).group(1)
            elem = TMA_DTYPE_DEVICE_TO_HOST[made["elem_type"]]
            params.append(dict(name=name, type="desc", dtype=dtype, block=list(made["block_size"]), swizzle=made["swizzle"], elem=elem))
        else:
            params.append(dict(name=name, type="ptr" if type.startswith("*") else SCALARS[type][0]))
    if left:
        raise Unfit(f"{len(left)} more descriptors than in its signature")
    return params


def layout(params):
    """(bytes, alignment) of what a launcher passes: a descriptor is a CUtensorMap, then its shape, then its strides."""
    scalars = {"ptr": 8, **dict(SCALARS.values())}
    parts = []
    for param in params:
        if param["type"] == "desc":
            rank = len(param["block"])
            parts += [(128, 64)] + [(4, 4)] * rank + [(8, 8)] * rank
        else:
            parts.append((scalars[param["type"]],) * 2)
    return parts


def entry_layout(ptx, entry):
    """(bytes, alignment) of the parameters that a PTX entry declares."""
    declared = re.search(rf"\.entry {re.escape(entry)}\((.*?)\)", ptx, re.DOTALL).group(1)
    parts = []
    for line in declared.strip().split(",\n"):
        match = re.fullmatch(r"\s*\.param (?:\.align (\d+) )?\.[bsuf](\d+) .*?(?:\[(\d+)\])?\s*", line)
        if match is None:
            raise Unfit(f"a parameter of the PTX that is not understood: {line.strip()}")
        alignment, bits, count = (int(group or 0) for group in match.groups())
        parts.append((bits // 8 * (count or 1), alignment or bits // 8))
    return parts


def assemble(ptx, machine, folder):
    """Machine code for ptxas's `machine`, and {registers, spills (bytes a thread), warnings}."""
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as made:
        source, target = Path(made, "kernel.ptx"), Path(made, "kernel.cubin")
        source.write_text(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={machine}", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unfit(f"ptxas for {machine} ended with {done.returncode}: {done.stderr.strip()}")
        lines = done.stderr.splitlines()
        number = lambda pattern: sum(map(int, re.findall(pattern, done.stderr)))
        warnings = [line.strip() for line in lines if "Performance Loss" in line or "warning" in line]
        report = dict(registers=number(r"Used (\d+) registers"), spills=number(r"(\d+) bytes spill stores"), warnings=warnings)
        return target.read_bytes(), report
