// The golden of transformers' generate (tests/golden/generate), and the adapter that it was made with: a function of a counter.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { mix } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import { writePeftAdapter } from "../../src/files/peft.ts";

export const SMOLLM = join(import.meta.dir, "..", "..", "models", "SmolLM2-135M-Instruct");

type GoldenRow = {
  readonly prompt: string;
  readonly ids: readonly number[];
  readonly base: readonly number[];
  readonly adapted: readonly number[];
  readonly base_margin: number;
  readonly adapted_margin: number;
};
type Greedy = {
  readonly rank: number;
  readonly alpha: number;
  readonly targets: readonly Linear[];
  readonly size: { readonly A: number; readonly B: number };
  readonly new: number;
  readonly rows: readonly GoldenRow[];
};

export const greedy: Greedy = JSON.parse(
  readFileSync(join(import.meta.dir, "..", "golden", "generate", "greedy.json"), "utf8"),
);

/** Writes the golden's adapter as PEFT would. */
export function writeGoldenAdapter(folder: string, spec: ModelSpec): void {
  const { rank, alpha, targets, size } = greedy;
  const factors = Array.from({ length: spec.layers }, (_, layer) =>
    targets.flatMap((linear, t) =>
      (["A", "B"] as const).map((factor) => {
        const key = Math.imul((layer * 8 + t) * 2 + (factor === "B" ? 1 : 0), 0x01000193) >>> 0;
        const length = rank * linearShape(spec, linear)[factor === "A" ? "in" : "out"];
        const values = Float32Array.from({ length }, (_, i) => ((mix((i + key) >>> 0) >>> 8) / 2 ** 23 - 1) * size[factor]);
        return { layer, linear, factor, values };
      }),
    ),
  ).flat();
  writePeftAdapter(folder, spec, { rank, alpha, dropout: 0, targets, rslora: false, baseModel: SMOLLM }, factors);
}
