// scripts/bench/peers --ahead: peers prepare all cases at once, and are measured one after the other.

import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { measureAhead } from "../../scripts/bench/compared/ahead.ts";
import { CASES } from "../../scripts/bench/compared/cases.ts";
import type { Options } from "../../scripts/bench/compared/measure.ts";
import type { Row } from "../../scripts/bench/compared/results.ts";

/** What these peers and builds came to, with the lines that they wrote. A case is known by its linears. */
async function measured(peer: string, names: readonly string[], more: Partial<Options> = {}) {
  const folder = mkdtempSync(join(tmpdir(), "peers-ahead-"));
  try {
    const sh = (script: string) => ["sh", "-c", `log() { echo "$1" >>${folder}/log; }; ${script}`, "sh"];
    const own = 'log "own"; echo "{\\"tokens_per_s\\": 300, \\"device\\": \\"A GPU\\"}"';
    const options: Options = {
      ...{ programs: ["PEFT", "mlora"], rounds: 1, limit: 60, environment: () => ({}), hindered: () => null, versions: {} },
      ...{ about: { date: "2026-11-30 12:00", commit: "abc" }, machine: () => "A GPU", say: () => undefined },
      tools: { mlora: sh(own), before: null, python: sh(peer), seconds: 1 },
      ...more,
    };
    const rows: Row[] = [];
    const cases = CASES.filter(({ name }) => names.includes(name));
    await measureAhead(cases, options, (row) => rows.push(row));
    return { rows, lines: readFileSync(join(folder, "log"), "utf8").trim().split("\n") };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const WAITS = 'log ready; : >"$MLORA_TURN.ready"; while [ ! -e "$MLORA_TURN" ]; do sleep 0.01; done';
const GIVES = 'log begin; log end; echo "{\\"tokens_per_s\\": 100}"';

test("all are ready before the first is measured, and one is measured at a time", async () => {
  const { rows, lines } = await measured(`${WAITS}; ${GIVES}`, ["q, k, v, o", "all linears", "fp8"]);
  expect(lines).toEqual(["ready", "ready", "begin", "end", "begin", "end", "own", "own", "own"]);
  expect(rows.map(({ case: name, program, value, error }) => [name, program, value, error])).toEqual([
    ["q, k, v, o", "PEFT", 100, ""],
    ["all linears", "PEFT", 100, ""],
    ["q, k, v, o", "mlora", 300, ""],
    ["all linears", "mlora", 300, ""],
    ["fp8", "mlora", 300, ""],
  ]);
});

test("a peer that fails before its turn, or never asks for one, keeps no other from its own", async () => {
  const fails = 'case "$*" in *all-linear*) log fails; echo "no module" >&2; exit 1;; esac';
  const { rows } = await measured(`${fails}; ${WAITS}; ${GIVES}`, ["q, k, v, o", "all linears"]);
  expect(rows.map(({ value, error }) => [value, error])).toEqual([
    [100, ""],
    [null, "it ended with 1: no module"],
    [300, ""],
    [300, ""],
  ]);
  const never = await measured(GIVES, ["q, k, v, o"]);
  expect(never.rows.map(({ value }) => value)).toEqual([100, 300]);
});

test("what waits for its turn has its whole limit from then on", async () => {
  const limits = "log $(tr '\\0' ' ' </proc/$PPID/cmdline | cut -d' ' -f3)";
  const { lines } = await measured(`${limits}; ${WAITS}; ${GIVES}`, ["q, k, v, o", "all linears"]);
  expect(lines.filter((line) => /^\d+$/.test(line)).sort()).toEqual(["120", "180"]);
});

test("a program that cannot run at all is named", async () => {
  const { rows, lines } = await measured(GIVES, ["q, k, v, o"], { hindered: (of) => (of === "PEFT" ? "no wheels" : null) });
  expect(rows.map(({ program, error }) => [program, error])).toEqual([
    ["PEFT", "no wheels"],
    ["mlora", ""],
  ]);
  expect(lines).toEqual(["own"]);
});
