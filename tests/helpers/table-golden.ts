// Reader of the goldens in tests/golden/trained-tables: adapters of embedding and head, as PEFT trained them.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type FileAdapter, recipeOf, rowOf, stepOf } from "./golden.ts";
import type { Trained } from "./peft.ts";

const FOLDER = join(import.meta.dir, "..", "golden", "trained-tables");

type Adapter = Omit<FileAdapter, "spread" | "before"> & {
  readonly targets: readonly string[];
  readonly trainable_tokens: readonly number[] | Readonly<Record<string, readonly number[]>> | null;
};
type File = { readonly models: Readonly<Record<string, { readonly adapters: readonly Adapter[] }>> };

export function tableGoldens(): readonly Trained[] {
  const { models }: File = JSON.parse(readFileSync(join(FOLDER, "golden.json"), "utf8"));
  return Object.entries(models).map(([base, { adapters }]) => ({
    name: `tables-${base}`,
    model: join(FOLDER, base, "model"),
    adapters: adapters.map((adapter) => {
      const [initial, final] = ["initial", "final"].map((of) => join(FOLDER, base, adapter.name, of));
      const recipe = recipeOf({ ...adapter, rows: adapter.rows }, initial!);
      return {
        name: adapter.name,
        recipe: { ...recipe, targets: adapter.targets, trainableTokens: adapter.trainable_tokens },
        rows: adapter.rows.map(({ ids, mask }) => ({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) })),
        steps: adapter.steps.map(stepOf),
        after: adapter.after.map(rowOf),
        initial: initial!,
        final: final!,
      };
    }),
  }));
}
