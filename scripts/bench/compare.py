"""The table of scripts/bench/cpu: medians of mlora's and PEFT's runs, and what one is to the other. Standard library only.

Reads one JSON object a line, {"program": "mlora" | "peft", "precision": "auto", "report": {...}}, as the two benchmarks print
their reports; the precision is mlora's, PEFT computes in fp32.
"""

import argparse
import json
import os
import platform
import statistics
from datetime import datetime, timezone
from pathlib import Path

MIB = 2**20
WIDTHS = (9, 20, 20, 5, 9, 9, 5, 20, 20, 5)
HEAD = (
    "# Measurements\n\n"
    "Rows of `scripts/bench/cpu --write`: SmolLM2-135M shape, 4 x 64 tokens an adapter, rank 16 on all linears; PEFT in fp32.\n"
    "Medians of alternating runs on one machine: tokens/s with its range over the runs, the process's peak memory in MiB, and\n"
    "the processor time of a step in ms of all cores, which on a busy machine is the one to compare, of one core each. auto holds\n"
    "the base in bf16, as the model's files are, and computes in fp32.\n\n"
    "| date (UTC) | commit | machine | adapters | precision | rounds | mlora | PEFT | speed ratio "
    "| mlora MiB | PEFT MiB | memory ratio | mlora CPU ms | PEFT CPU ms | CPU ratio | PyTorch |\n"
    "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
)


def machine() -> str:
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = " ".join(line.split(":", 1)[1].split())
            break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def line_of(adapters: object, *cells: str) -> str:
    return f"{adapters:>8}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


class Runs:
    """Of one program with one number of adapters."""

    def __init__(self, reports: list[dict]) -> None:
        speeds = sorted(report["tokens_per_s"] for report in reports)
        self.rounds = len(reports)
        self.speed = statistics.median(speeds)
        self.range = f"{self.speed:.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f})"
        times = sorted(report["cpu_ms"] for report in reports)
        self.processor = statistics.median(times)
        self.processor_range = f"{self.processor:.0f} ({times[0]:.0f} to {times[-1]:.0f})"
        self.peak = statistics.median(report["peak_rss_bytes"] for report in reports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--write", type=Path, help="a Markdown file that gets a row for each number of adapters")
    args = parser.parse_args()

    found: dict[tuple[int, str], list[dict]] = {}
    peers: dict[int, list[dict]] = {}
    for line in args.results.read_text().splitlines():
        entry = json.loads(line)
        report = entry["report"]
        of = peers.setdefault(report["adapters"], [])
        (of if entry["program"] == "peft" else found.setdefault((report["adapters"], entry["precision"]), [])).append(report)

    rows = []
    print(line_of("adapters", "precision", "mlora tokens/s", "PEFT tokens/s", "ratio", "mlora MiB", "PEFT MiB", "ratio", "mlora CPU ms", "PEFT CPU ms", "ratio"))
    for (adapters, precision), reports in sorted(found.items()):
        ours, theirs = Runs(reports), Runs(peers[adapters])
        speed, memory = ours.speed / theirs.speed, ours.peak / theirs.peak
        speeds = (ours.range, theirs.range, f"{speed:.2f}")
        peaks = (f"{ours.peak / MIB:.0f}", f"{theirs.peak / MIB:.0f}", f"{memory:.2f}")
        times = (ours.processor_range, theirs.processor_range, f"{theirs.processor / ours.processor:.2f}")
        print(line_of(adapters, precision, *speeds, *peaks, *times))
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"
        cells = (now, args.commit, machine(), adapters, precision, ours.rounds, *speeds, *peaks, *times, peers[adapters][0]["torch"])
        rows.append(f"| {' | '.join(map(str, cells))} |\n")
    if args.write:
        lines = (args.write.read_text() if args.write.exists() else HEAD).splitlines(keepends=True)
        last = max(i for i, line in enumerate(lines) if line.startswith("|") and line.endswith("|\n") and "CPU" not in line)
        args.write.write_text("".join([*lines[: last + 1], *rows, *lines[last + 1 :]]))


if __name__ == "__main__":
    main()
