// A tiny model on disk with adapters of several methods, opened for the primitives, and rows to train them on.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Precision } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import type { Recipe } from "../../src/recipe/recipe.ts";
import type { Row } from "../../src/schedule/pack.ts";
import { planPrimitives } from "../../src/session/primitives/open.ts";
import { Primitives, rowOf } from "../../src/session/primitives/primitives.ts";
import { writeTinyModel } from "./model.ts";

export const CACHE = { sequences: 16, capacity: 60 };

const ADAPTERS: Readonly<Record<string, string>> = {
  lora: "rank = 5\ndropout = 0.1\nweight_decay = 0.02\nlora_plus_ratio = 4",
  dora: 'rank = 3\nmethod = "dora"\ntargets = ["q_proj", "v_proj", "down_proj"]',
  vera: 'rank = 12\nmethod = "vera"\nlearning_rate = 0.05',
  pissa: 'rank = 2\ninit = "pissa"',
  sgd: 'rank = 4\noptimizer = "sgd"\nmomentum = 0.9\nlearning_rate = 0.05',
  eight: 'rank = 4\noptimizer = "adamw-8bit"\nmethod = "dora"\nweight_decay = 0.02\nlearning_rate = 0.01',
  tokens: `rank = 2\ntargets = ["v_proj"]\ntrainable_tokens = [${range(65).map((i) => 4 * i)}]\nlearning_rate = 0.02`,
  dpo: 'rank = 4\nobjective = { name = "dpo", beta = 0.3 }',
};
export const NAMES = Object.keys(ADAPTERS);
export const STEPS = 3;

const DEFAULTS = `[defaults]
data = "none.jsonl"
max_length = 30
batch_size = 3
accumulation = 2
steps = ${STEPS}
shuffle = false
learning_rate = 0.01
scheduler = "constant"
warmup = 0
`;
/** Of the tiny model. */
export const VOCAB = 260;

const rng = new Rng(5);
export const tokens = (length: number): number[] => range(length).map(() => rng.below(VOCAB));
const single = (): Row => rowOf(tokens(1 + rng.below(12)), tokens(1 + rng.below(14)));
/** Two steps of rows, which the third begins again. */
export const ROWS: readonly Row[] = range(12).map(single);
export const PAIRS: readonly Row[] = range(12).map(() => {
  const prompt = tokens(3);
  return { ...rowOf(prompt, tokens(1 + rng.below(9))), other: rowOf(prompt, tokens(2)) };
});
export const rowsOf = (name: string) => (name === "dpo" ? PAIRS : ROWS);
export const ofStep = (name: string, step: number) => rowsOf(name).slice(6 * (step % 2), 6 * (step % 2) + 6);
export const weighted = (rows: readonly Row[], weight: (row: number, token: number) => number): Row[] =>
  rows.map((row, i) => ({ ...row, weights: Float32Array.from(row.mask, (is, at) => (is === 1 ? weight(i, at) : 0)) }));

/** A folder with the model, made when it is first used. Disposing removes it. */
export class PrimitivesPlace implements Disposable {
  #root: string | null = null;

  constructor(
    readonly device: "cpu" | "cuda" = "cpu",
    readonly precision: Precision = "fp32",
  ) {}

  get root(): string {
    if (this.#root === null) {
      this.#root = mkdtempSync(join(tmpdir(), "mlora-primitives-"));
      writeTinyModel(this.model);
    }
    return this.#root;
  }

  get model(): string {
    return join(this.root, "model");
  }

  /** Adapters of a rank, a rate and a method of their own, that train on rows in their order. */
  recipe(
    names: readonly string[],
    { more = "", stages = 1 }: { readonly more?: string; readonly stages?: number } = {},
  ): Recipe {
    const adapters = names.map((name) => `[[adapter]]\nname = "${name}"\n${ADAPTERS[name]}`).join("\n");
    return this.recipeOf(`${DEFAULTS}${more}\n${adapters}`, `tokens_per_microbatch = 90\nstages = ${stages}`);
  }

  /** Of the model, with these tables of defaults and adapters. */
  recipeOf(tables: string, run = ""): Recipe {
    const text = `[model]\npath = "model"\nprecision = "${this.precision}"\n[run]\noutput = "out"\ndevice = "${this.device}"\n${run}\n${tables}\n`;
    return parseRecipe(text, join(this.root, "recipe.toml"));
  }

  /** Over stages of this process. */
  async open(names: readonly string[], stages = 1): Promise<Primitives> {
    const plan = planPrimitives(this.recipe(names, { stages }), CACHE);
    const bus = await openLocalStages(setupsOf(plan, { folder: this.model }));
    return Primitives.begin(bus, plan, bus);
  }

  [Symbol.dispose](): void {
    if (this.#root !== null) rmSync(this.#root, { recursive: true, force: true });
  }
}
