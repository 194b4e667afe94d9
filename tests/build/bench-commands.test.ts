// What the benches for GPUs ask `mlora bench` for, on a machine that has none: each command is one that this program takes.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CASES, commandOf } from "../../scripts/bench/compared/cases.ts";
import { benchmarkOptionsOf } from "../../src/cli/bench.ts";
import { generationOptionsOf } from "../../src/cli/bench-generate.ts";
import { SHAPE_NAMES } from "../../src/session/benchmark/benchmark.ts";

const ROOT = join(import.meta.dir, "..", "..");
const folder = mkdtempSync(join(tmpdir(), "mlora-bench-commands-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** All that the scripts read of a report, of training and of generation. */
const REPORT = {
  ...{ device: "a GPU", shape: "s", tokens_per_s: 5, ms: 1, pass_ms: 1, reading_ms: 2, reading_passes: 3, share_of_peak: 0.1 },
  ...{ kernel_ms: {}, reading_kernel_ms: {}, device_bytes: 1, planned_bytes: 1, recomputation: "none", losses: [1] },
  ...{ busiest_expert: 0.1, peak_rss_bytes: 1, ranks: [4], adapters: 1 },
};

/** Checks the words after `mlora bench`, as cac parses them. */
function check(words: readonly string[]): void {
  const flags: Record<string, unknown> = {};
  for (let i = 0; i < words.length; i++) {
    const name = words[i]!.replace(/^--/, "").replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
    const value = words[i + 1];
    if (value === undefined || value.startsWith("--")) flags[name] = true;
    else {
      i++;
      flags[name] = value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
    }
  }
  const { json: _, ...rest } = flags;
  const options = flags["generate"] === true ? generationOptionsOf(flags) : benchmarkOptionsOf(rest);
  expect(SHAPE_NAMES).toContain(options.shape!);
}

for (const script of ["gpu.py", "families.py", "experts.py", "generation.py"])
  test(`scripts/bench/${script} asks for what mlora bench takes, for every case`, () => {
    const [log, program] = [join(folder, `${script}.log`), join(folder, script.replace(".py", ""))];
    const report = JSON.stringify(REPORT);
    writeFileSync(program, `#!/bin/sh\necho "$@" >>${log}\necho '${report}'\n`, { mode: 0o755 });
    const command = ["python3", "-B", join(ROOT, "scripts", "bench", script), "--no-peers", "--mlora", program];
    const { exitCode, stderr } = Bun.spawnSync(command, { stdin: "ignore" });
    expect(stderr.toString()).toBe("");
    expect(exitCode).toBe(0);
    const asked = readFileSync(log, "utf8").trimEnd().split("\n");
    expect(asked.length).toBeGreaterThan(4);
    for (const line of asked) {
      const [what, ...words] = line.split(" ");
      expect(what).toBe("bench");
      check(words);
    }
  });

test("scripts/bench/peers asks for what mlora bench takes, for every case", () => {
  for (const of of CASES) {
    const command = commandOf(of, "mlora", { mlora: ["mlora"], before: null, python: ["python3"], seconds: 7 })!;
    if (command[0] === "mlora") check(command.slice(2));
  }
});
