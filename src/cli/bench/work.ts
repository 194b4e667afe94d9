// What `mlora bench` trains: a recipe of equal adapters, and random rows. Nothing is read.

import { resolve } from "node:path";
import { PRECISIONS } from "../../base/precision.ts";
import { Rng } from "../../base/rng.ts";
import { range } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { linearsOfModel } from "../../families/linears.ts";
import { PEFT_METHODS } from "../../methods/registry.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { resolveAdapter } from "../../recipe/resolve.ts";
import type { AdapterTable } from "../../recipe/schema.ts";
import type { Tokens } from "../../schedule/pack.ts";
import type { AdapterData } from "../../session/training.ts";
import { oneOf, wholeNumber } from "../flags.ts";

export type BenchOptions = {
  readonly shape?: string;
  readonly device?: string;
  readonly adapters?: number;
  readonly rows?: number;
  readonly length?: number;
  readonly rank?: number;
  readonly dropout?: number;
  readonly targets?: string;
  readonly steps?: number;
  readonly recomputation?: string;
  readonly tokens?: number;
  readonly precision?: string;
  readonly stages?: number;
  readonly link?: string;
  readonly trace?: string;
  readonly checkpoint?: number;
  readonly json?: boolean;
  readonly method?: string;
};

const TARGETS: Readonly<Record<string, (spec: ModelSpec) => readonly string[]>> = {
  qkvo: () => ["q_proj", "k_proj", "v_proj", "o_proj"],
  "all-linear": linearsOfModel,
};

/** A whole number from 1 on, or the default when the flag was not given. */
export const natural = (options: BenchOptions, flag: keyof BenchOptions, fallback: number): number =>
  wholeNumber(flag, options[flag] ?? fallback, 1);

export const precisionOf = ({ precision }: BenchOptions) => oneOf("precision", precision ?? "auto", PRECISIONS);

/** `rows` rows of `length` tokens, each with a target. */
export function randomRows(spec: ModelSpec, rows: number, length: number, seed: number): AdapterData {
  const rng = new Rng(seed, 5);
  const row = (): Tokens => ({
    ids: Int32Array.from({ length: length + 1 }, () => rng.below(spec.vocab)),
    mask: new Uint8Array(length + 1).fill(1),
  });
  return { train: range(rows).map(row), eval: [] };
}

export function recipeOf(
  options: BenchOptions,
  { shape, spec }: { readonly shape: string; readonly spec: ModelSpec },
  adapters: number,
  steps: number,
): Recipe {
  const targets = TARGETS[oneOf("targets", options.targets ?? "all-linear", Object.keys(TARGETS))]!(spec);
  const rank = natural(options, "rank", 16);
  const method = oneOf("method", options.method ?? "lora", PEFT_METHODS);
  const table: Omit<AdapterTable, "name" | "seed"> = {
    format: "text",
    chat_template: false,
    train_on: "all",
    method,
    rank,
    alpha: rank,
    dropout: options.dropout ?? 0,
    targets,
    learning_rate: 1e-4,
    weight_decay: 0.01,
    max_grad_norm: false,
    scheduler: "constant",
    warmup: 0,
    steps,
    batch_size: natural(options, "rows", 4),
    max_length: natural(options, "length", 64),
    shuffle: false,
  };
  const adapter = (i: number): AdapterRecipe =>
    resolveAdapter({ ...table, name: `bench-${i}`, seed: i }, {}, resolve("bench"), 0, "bench");
  return {
    path: "bench",
    model: { path: shape, precision: precisionOf(options) },
    run: {
      output: "",
      seed: 0,
      device: oneOf("device", options.device ?? "auto", ["auto", "cpu", "cuda"]),
      tokensPerMicrobatch: options.tokens ?? null,
      stages: natural(options, "stages", 1),
      restarts: 0,
      slots: null,
      checkpoint: null,
      recomputation: oneOf("recomputation", options.recomputation ?? "auto", ["auto", "none", "selective", "full"]),
    },
    adapters: range(adapters).map(adapter),
  };
}
