// The table of docs/measurements/generation.md that says which way a generated token takes on a GPU, for each base, precision
// and method: what the code decides, so that the page stays true.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { WeightFormat } from "../../src/base/precision.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { readingOf } from "../../src/device/fewrows.ts";
import { extendsByRow, isByRow } from "../../src/engine/generation/row-pass.ts";
import { programOf } from "../../src/engine/layers/program.ts";
import { wholeModel } from "../../src/engine/weights/weights.ts";
import { groupShapes, groupsOfModel } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { PEFT_METHODS } from "../../src/methods/registry.ts";
import { checkFormat } from "../../src/plan/format.ts";
import { SHAPES } from "../../src/plan/shapes.ts";

const PAGE = readFileSync(join(import.meta.dir, "../../docs/measurements/generation.md"), "utf8");
const FORMATS = ["dense", "int8", "nf4", "fp8"] as const;

const WAYS = { dense: "rows", int8: "rows, codes", nf4: "rows, codes", fp8: "rows, codes", apart: "rows, taken apart" };

function isHeld(format: WeightFormat, spec: ModelSpec): boolean {
  try {
    checkFormat(format, spec);
    return true;
  } catch {
    return false;
  }
}

/** How its linears' weights are read, or that tiles are what extends sequences. */
function wayOf(spec: ModelSpec, compute: "bf16" | "f32", format: WeightFormat): string {
  if (!isHeld(format, spec)) return "";
  const expertFormat = spec.experts?.isMxfp4 && format !== "dense" ? ("mxfp4" as const) : format;
  if (!extendsByRow(programOf(spec, wholeModel(spec)), { compute }, { format, expertFormat })) return "tiles";
  const widths = groupsOfModel(spec).flatMap((group) => groupShapes(spec, group).map((shape) => shape.in));
  return [...new Set(widths.map((K) => WAYS[readingOf(compute, format, K)]))].join("; ");
}

const line = (cells: readonly string[]) =>
  `| ${cells.map((cell) => (cell === "" ? " " : cell)).join(" | ")} |`.replaceAll(/ {2,}/g, " ");

test("the page says which way each base takes in each precision", () => {
  const rows = Object.entries(SHAPES).map(([name, spec]) =>
    line([
      name,
      wayOf(spec, "bf16", "dense"),
      ...FORMATS.slice(1).map((format) => wayOf(spec, "bf16", format)),
      ...(["int8", "nf4"] as const).map((format) => wayOf(spec, "f32", format)),
    ]),
  );
  const head = [
    "| base | bf16, fp32 | int8 | nf4 | fp8 | fp32 over int8 | fp32 over nf4 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ];
  expect(PAGE).toContain([...head, ...rows].join("\n"));
});

test("and each kind of adapter", () => {
  const of: PoolAdapter = { rank: 4, scale: 1, targets: ["q_proj"] };
  const kinds: readonly (readonly [string, PoolAdapter])[] = [
    ...PEFT_METHODS.map((method) => [`\`${method}\``, { ...of, method }] as const),
    ["rows of tokens, or a LoRA, of embedding or head", { ...of, tables: { head: { rank: 4, scale: 1 } } }],
  ];
  const rows = kinds.map(([name, adapter]) => line([name, isByRow(adapter) ? "rows" : "tiles"]));
  expect(PAGE).toContain(["| adapter | way |", "| --- | --- |", ...rows].join("\n"));
});
