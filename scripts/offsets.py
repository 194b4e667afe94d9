"""Finds sums and products of 32 bits in addresses of GPU kernels that come to 2^31 in a launch: rows times columns pass it long
before the memory of a GPU is full, and what is read and written then is somewhere else, without a word.

    offsets.py < LAUNCHES      a line for each launch: {"row": place in variants.py, "grid": [x, y, z], "args": {name: number}}
    offsets.py --file FILE     checks kernels of a file by their own LAUNCHES: {kernel: (signature, constants, grid, args)}

Works on Triton's IR of each variant. Every integer of it gets an interval: arguments and program numbers by the launch, loads
by what tables hold, all else by what it is computed from. Says which operations are too large, and ends with 1 if there are
any. Needs Triton and no GPU. tests/cpu/offsets.test.ts plays launches of large passes.
"""
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "kernels" / "triton"
sys.path.insert(0, str(HERE))
import codegen  # noqa: E402
from triton._C.libtriton import ir  # noqa: E402
from variants import variants  # noqa: E402

LIMIT = 2**31
UNKNOWN = (-LIMIT, LIMIT - 1)
WIDE = (-(2**62), 2**62)  # of 64 bits
# What is loaded, by the argument that it is loaded through: rows, tiles and places of a pass are below 2^24, the most tokens
# that a recipe may ask for.
TABLE = (-1, 2**24)
TABLES = {"low_at": (0, LIMIT - 1), "ranks": (0, 1024), "tile_adapter": (-1, 4096), "tile_expert": (-1, 4096)}

# What a loop carries and adds to: tiles, and blocks of columns.
COUNTED = (-1, 2**22)
# Products that nothing here bounds, by kernel and what one factor is: a row of a weight, at which an expert's begin.
PRODUCTS = {("experts_forward", "pitch"): 2**30, ("experts_backward", "pitch"): 2**30}

LINE = re.compile(r'^\s*(?:(%[\w$.\-]+)(?::\d+)? = )?"?([a-z_]+\.[\w.]+)"?(.*)$')
NAME = re.compile(r"%[\w$.\-]+(?:#\d+)?")
LOCATION = re.compile(r' loc\((?:#\w+|unknown|"[^"]*"(?:\([^()]*\))?)\)')
SAME = re.compile(r"tt\.(splat|expand_dims|broadcast|reshape|trans|bitcast|reduce|gather|unsplat|split)|ttg\.convert_layout|arith\.(ext[su]i|index_cast|bitcast|trunci)")
ADDRESS = re.compile(r"tt\.addptr|tt\.descriptor_|ttng\.async_tma")


def made_ir(row):
    """The IR of a row after Triton's first stage, in which its functions are one."""
    function = getattr(importlib.import_module(row["module"]), row["kernel"])
    signature = {name: row["signature"].get(name, "constexpr") for name in function.arg_names}
    source = (codegen.GluonASTSource if function.is_gluon() else codegen.ASTSource)(fn=function, signature=signature, constexprs=row["constants"])
    target = codegen.GPUTarget("cuda", codegen.CAPABILITY[row["arch"]], 32)
    backend = codegen.make_backend(target)
    options = backend.parse_options(dict(num_warps=row["warps"], num_stages=row["stages"]))
    stages = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    return next(iter(stages.values()))(module, {})


def unique(lines):
    """The same with a name of its own for each value: regions next to each other use the same ones."""
    scopes, made, count = [{}], [], 0

    def define(names, scope):
        nonlocal count
        for name in names:
            count += 1
            scope[name] = f"{name}.v{count}"

    def used(match):
        name, _, part = match.group(0).partition("#")
        found = next((scope[name] for scope in reversed(scopes) if name in scope), name)
        return f"{found}#{part}" if part else found

    for line in lines:
        inner = {}
        own = re.match(r"\s*(%[\w$.\-]+)(?::\d+)? = ", line)
        if "tt.func" in line:
            for name in re.findall(r"(%[\w$.\-]+):", line):
                inner[name] = name
        elif re.match(r"\s*(\^bb|(\} )?partition\d+\()", line):
            define(re.findall(r"(%[\w$.\-]+):", line), inner)
            if line.lstrip().startswith("^"):
                scopes[-1].update(inner)
        elif "scf.for" in line or "scf.while" in line:
            define([name for name in re.findall(r"(%[\w$.\-]+) = ", line) if not own or name != own.group(1)], inner)
        if re.match(r"\s*\}", line):
            scopes.pop()
        begin = own.end() if own else 0
        replaced = re.sub(NAME.pattern, lambda match: inner.get(match.group(0)) or used(match), line[begin:])
        head = ""
        if own:
            define([own.group(1)], scopes[-1])
            head = line[:begin].replace(own.group(1), scopes[-1][own.group(1)], 1)
        made.append(head + replaced)
        if line.rstrip().endswith("{") or re.search(r"\(\{\s*$", line):
            scopes.append(inner)
    return made


class Kernel:
    """The text of a kernel's IR, read once, and played for one launch after the other."""

    def __init__(self, text):
        self.name = re.search(r"tt\.func public @(\w+)", text).group(1)
        self.lines = unique([line for line in LOCATION.sub("", text).splitlines() if not line.startswith("#")])

    def faults(self, grids, args):
        """Lines for people, each with an operation; none where all addresses are within bounds. `args`: the least and the
        largest of each."""
        self.grid = {axis: (min(sizes), max(sizes)) for axis, sizes in zip("xyz", zip(*([*grid, 1, 1][:3] for grid in grids)))}
        self.args = args
        self.interval, self.operands, self.line, self.base, self.addressed = {}, {}, {}, {}, set()
        for turn in range(4):  # what a loop carries grows from turn to turn, to as far as it may at the third
            self.read(widen=turn == 2)
        seen, left = set(), list(self.addressed)
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += self.operands.get(name, ())
        wrong = {name for name in seen if name in self.line and not self.fits(self.interval[name])}
        first = [name for name in wrong if not wrong & set(self.operands[name])]  # what follows is large because of it
        return sorted(f"{self.interval[name][0]} .. {self.interval[name][1]}: {self.line[name].strip()}" for name in first)

    @staticmethod
    def fits(interval):
        return -LIMIT <= interval[0] and interval[1] < LIMIT

    def put(self, name, interval, operands=()):
        self.interval[name] = interval
        self.operands[name] = (*dict.fromkeys((*self.operands.get(name, ()), *operands)),)

    def of(self, name):
        return self.interval.get(name, UNKNOWN)

    def join(self, name, interval, operands=()):
        low, high = self.interval.get(name, interval)
        self.put(name, (min(low, interval[0]), max(high, interval[1])), operands)

    def read(self, widen):
        regions = []
        self.last = ""
        for line in self.lines:
            opened = None
            if "tt.func" in line:
                for name, type in re.findall(r"(%[\w$.\-]+): (!tt\.ptr<\w+>|!tt\.tensordesc|i\d+)", line):
                    value = self.args.get(name[1:])
                    self.put(name, value or (UNKNOWN if type == "i32" else WIDE))
                    self.base[name] = name[1:]
            elif re.match(r"\s*\^bb", line) and "tt.reduce" not in self.last and "tt.scan" not in self.last:
                for name in re.findall(r"(%[\w$.\-]+): i32", line):
                    self.put(name, TABLE)  # rows or tiles, of several branches
            elif match := LINE.match(line):
                opened = self.operation(line, *match.groups(), regions, widen)
            if "ttg.warp_specialize(" in line:
                self.captured = NAME.findall(re.search(r"warp_specialize\(([^)]*)\)", line).group(1))
            if re.match(r"\s*(\} )?partition\d+\(", line):
                for name, given in zip(re.findall(r"(%[\w$.\-]+):", line), self.captured):
                    self.put(name, self.of(given), (given,))
                    self.base[name] = self.base.get(given)
            if re.match(r"\s*\} (else|do|partition)", line):
                continue
            self.last = line
            depth = line.count("{") - line.count("}")
            regions += [opened] * depth
            del regions[len(regions) + min(0, depth):]

    def operation(self, line, name, op, rest, regions, widen):
        """Intervals of what a line computes; of one that opens a region, what its yields give values to."""
        body, _, types = rest.rpartition(" : ")
        names = NAME.findall(body or rest)
        if op in ("scf.for", "scf.while"):
            pairs = re.findall(r"(%[\w$.\-]+) = (%[\w$.\-#]+)", rest)
            if op == "scf.for":
                own, begin, end = re.match(r" (%[\w$.\-]+) = (%[\w$.\-#]+) to (%[\w$.\-#]+)", rest).groups()
                low, high = self.of(begin)[0], self.of(end)[1] - 1
                self.put(own, (low, max(low, high)), (begin, end))
                pairs = [pair for pair in pairs if pair[0] != own]
            results = self.results(name, len(pairs))
            for (carried, first), result in zip(pairs, results):
                self.join(carried, self.of(first), (first,))
                self.join(result, self.of(carried), (carried,))
                self.base[carried] = self.base[result] = self.base.get(first)
            return results, [carried for carried, _ in pairs]
        if op == "scf.if":
            count = len(re.findall(r"[(,] ?(?:tensor|!|[if]\d)", rest.partition("->")[2])) or 1
            return (self.results(name, count) if name else []), []
        if op in ("scf.yield", "scf.condition"):
            results, carried = next((region for region in reversed(regions) if region), ([], []))
            for i, value in enumerate(names[1:] if op == "scf.condition" else names):
                for into in [*results[i:i + 1], *carried[i:i + 1]]:
                    before = self.interval.get(into)
                    self.join(into, self.of(value), (value,))
                    self.base.setdefault(into, self.base.get(value))
                    if widen and before is not None and self.interval[into] != before:
                        low, high = before
                        self.put(into, (min(low, COUNTED[0]), max(high, COUNTED[1])))
            return None
        if ADDRESS.match(op):
            places = NAME.findall("".join(re.findall(r"\[([^\]]*)\]", body)))
            self.addressed.update(names[1:2] if op == "tt.addptr" else places)
        if name is None:
            return None
        type = types.split("->")[-1].split(" to ")[-1]
        if op == "tt.load":
            self.base[name] = self.base.get(names[0])
            self.put(name, TABLES.get(self.base[name], TABLE) if "ptr<i32>" in types else WIDE)
        elif "tt.ptr" in type:
            self.base[name] = self.base.get(names[0]) if names else None
            self.put(name, WIDE)
        else:
            self.put(name, self.found(op, rest, names), names)
            if re.search(r"(^|<|x|\s)i32\b", type) and op in ("arith.muli", "arith.addi", "arith.subi", "arith.shli", "arith.trunci"):
                self.line[name] = line
        return None

    @staticmethod
    def results(name, count):
        return [] if name is None else [name] if count == 1 else [f"{name}#{i}" for i in range(count)]

    def found(self, op, rest, names):
        if op == "arith.constant":
            value = re.match(r" (?:dense<)?(-?\d+|true|false)\b(?!\.)", rest)
            number = {"true": 1, "false": 0}.get(value.group(1), value.group(1)) if value else 0
            return int(number), int(number)
        if op == "tt.get_program_id":
            return 0, self.grid[rest.split()[0]][1] - 1
        if op == "tt.get_num_programs":
            return self.grid[rest.split()[0]]
        if op == "tt.make_range":
            return 0, int(re.search(r"end = (\d+)", rest).group(1)) - 1
        if op == "tt.scan":
            return TABLE  # numbers of rows or tiles, counted
        values = [self.of(name) for name in names]
        if SAME.match(op):
            return values[0]
        if op in ("arith.cmpi", "arith.cmpf"):
            return 0, 1
        if op == "arith.select":
            return min(values[1][0], values[2][0]), max(values[1][1], values[2][1])
        if len(values) != 2:
            return UNKNOWN
        (a, b), (c, d) = values
        if op == "arith.addi":
            return a + c, b + d
        if op == "arith.subi":
            return a - d, b - c
        if op == "arith.muli" and (most := next((most for (kernel, source), most in PRODUCTS.items() if kernel == self.name and source in map(self.base.get, names)), None)):
            return 0, most
        if op == "arith.muli":
            return min(a * c, a * d, b * c, b * d), max(a * c, a * d, b * c, b * d)
        if op == "arith.minsi":
            return min(a, c), min(b, d)
        if op == "arith.maxsi":
            return max(a, c), max(b, d)
        if op in ("arith.divsi", "arith.divui"):
            low, high = max(1, c), max(1, d)
            return min(a // high, a // low) if a >= 0 else -(-a // low), max(b // low, 0) if b >= 0 else 0
        if op in ("arith.remsi", "arith.remui"):
            most = max(0, min(b, max(1, d) - 1))
            return (0 if a >= 0 else -most), most
        if op == "arith.andi":
            return (0, min(b, d)) if a >= 0 and c >= 0 else UNKNOWN
        if op in ("arith.ori", "arith.xori"):
            return (0, b + d) if a >= 0 and c >= 0 else UNKNOWN
        if op == "arith.shli" and 0 <= c == d < 32:
            return a << c, b << c
        if op in ("arith.shrsi", "arith.shrui") and a >= 0 and 0 <= c == d:
            return a >> c, b >> c
        return UNKNOWN


def played(launches, rows):
    """Lines of all faults. Launches of a row are one, with the least and the largest of each argument."""
    of_row = {}
    for launch in launches:
        of_row.setdefault(launch["row"], []).append(launch)
    for number, own in of_row.items():
        row = rows[number]
        names = {name for launch in own for name in launch["args"]}
        numbers = {name: [launch["args"][name] for launch in own if name in launch["args"]] for name in names}
        kernel = Kernel(str(made_ir(row)))
        for fault in kernel.faults([launch["grid"] for launch in own], {name: (min(of), max(of)) for name, of in numbers.items()}):
            yield f"{row['kernel']} {row['arch']} {row['dtype']} {row['constants']}: {fault}"


def of_file(path):
    """The same of kernels that no list has."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for kernel, (signature, constants, grid, args) in module.LAUNCHES.items():
        row = dict(module=spec.name, kernel=kernel, arch="sm_80", dtype="fp32", constants=constants, warps=4, stages=1, signature=signature)
        yield from played([dict(row=0, grid=grid, args=args)], [row])


def main():
    if sys.argv[1:2] == ["--file"]:
        lines = set(of_file(sys.argv[2]))
    else:
        lines = set(played(map(json.loads, sys.stdin), variants()))
    print(*sorted(lines), sep="\n")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
