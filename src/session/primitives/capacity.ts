// What stages are opened for, where the adapters and rows that will come are not known.

import { stringify } from "smol-toml";
import { range } from "../../base/shape.ts";
import type { PeftMethod } from "../../methods/registry.ts";
import { rowKindOf } from "../../objectives/registry.ts";
import type { DataSummary } from "../../plan/plan.ts";
import { parseRecipe } from "../../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";

export { PEFT_METHODS } from "../../methods/registry.ts";

/** The largest rows that an adapter may be given. */
export function largestData({ maxLength, batchSize, objective }: AdapterRecipe, positions: number): DataSummary {
  const longest = Math.max(1, Math.min(maxLength - 1, positions));
  const length = longest * (["single", "prompt"].includes(rowKindOf(objective)) ? 1 : 2);
  return { train: Array.from({ length: batchSize }, () => ({ length, longest, targets: length })), eval: [] };
}

/** The largest adapters that may come. */
export type Capacity = {
  /** Adapters that are on the stages at once. */
  readonly slots: number;
  readonly rank: number;
  readonly methods: readonly PeftMethod[];
  /** Tokens of a row. */
  readonly maxLength: number;
  /** Rows of a micro-batch. */
  readonly batchSize: number;
};

/** A recipe of as many adapters as there are slots, each as large as one may be, on all linear layers. */
export function capacityRecipe(
  { slots, rank, methods, maxLength, batchSize }: Capacity,
  { model, run, path }: { readonly model: object; readonly run: object; readonly path: string },
): Recipe {
  const adapter = range(slots).flatMap((slot) =>
    methods.map((method) => ({
      ...{ name: `${method}-${slot}`, data: "none.jsonl", method, rank, targets: "all-linear" },
      // Rows of pairs have two sequences: the larger objective.
      ...{ max_length: maxLength, batch_size: batchSize, objective: "dpo" },
    })),
  );
  return parseRecipe(stringify({ model, run: { ...run, slots }, adapter }), path);
}
