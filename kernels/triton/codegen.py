"""One row of variants.py to PTX, machine code and what a launcher must know of them. Needs Triton and no GPU; writes no file.

Triton's passes are called one by one instead of through triton.compile, which would write every stage into a cache on disk and
assemble with line numbers, that is with the paths of this checkout in it. The same row gives the same bytes in every folder.

A product and a sum are one operation only where a source says tl.fma. A compiler that may fuse a b + c d fuses it in one way
here and in another there, as the rest of a kernel has it: then a row's bits depend on the variant that others in its batch
decide. So Triton fuses nothing, and PTX has the rounding of each operation (mul.rn, add.rn), which neither ptxas nor a driver
that compiles PTX may change.

Integers are not specialised: a kernel serves every value. Pointers are aligned to 16 bytes. Triton's own scratch memory is
refused, for a launch gives none: its two hidden pointers are null.

Triton 3.6 leaves products of Hopper whose left operand is in registers under way into the next turn of a loop, where these
registers get new values while the tensor cores may still read them: int8 codes that are multiplied as bf16 gave other bits for
five of eighteen shapes of tiles. So the last product of a turn is waited for (`settled`).
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
        if name == "ttgir" and row["arch"] == "sm_90a":
            module = reread(module, settled(str(module)), context)
    return module, metadata


def settled(text):
    """Triton's IR of a kernel in which the last product of a block waits for all, where its left operand is in registers."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not re.search(r"ttng\.warp_group_dot_wait .*\{pendings = [1-9]", line) or not in_registers(lines[i - 1]):
            continue
        indent = len(line) - len(line.lstrip())
        rest = lines[i + 1 :]
        end = next(j for j, other in enumerate(rest) if other.strip() and len(other) - len(other.lstrip()) < indent)
        if not any("ttng.warp_group_dot " in other for other in rest[:end]):
            lines[i] = re.sub(r"\{pendings = \d+", "{pendings = 0", line)
    return "\n".join(lines)


def in_registers(line):
    """Whether a line of IR is a product whose left operand is a tensor, not a place in shared memory."""
    return re.search(r"ttng\.warp_group_dot .* : tensor<", line) is not None


def reread(module, text, context):
    """The module of this text, which a file has to hold; the module as it is where that is its own."""
    if text == str(module):
        return module
    with tempfile.NamedTemporaryFile("w", suffix=".ttgir") as file:
        file.write(text)
        file.flush()
        made = ir.parse_mlir_module(file.name, context)
    made.context = context
    return made


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
