// What `mlora bench` trains: a recipe of equal adapters, and random rows. Nothing is read.

import { PRECISIONS } from "../../base/precision.ts";
import { Rng } from "../../base/rng.ts";
import { range } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { linearsOfModel } from "../../families/linears.ts";
import { ownDefaults, PEFT_METHODS } from "../../methods/registry.ts";
import { shapeOf } from "../../plan/shapes.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
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

export function recipeOf(options: BenchOptions, shape: string, adapters: number, steps: number): Recipe {
  const targets = TARGETS[oneOf("targets", options.targets ?? "all-linear", Object.keys(TARGETS))]!(shapeOf(shape));
  const rank = natural(options, "rank", 16);
  const method = oneOf("method", options.method ?? "lora", PEFT_METHODS);
  const adapter = (i: number): AdapterRecipe => ({
    name: `bench-${i}`,
    train: [],
    eval: [],
    evalSplit: 0,
    format: "text",
    template: null,
    chatTemplate: false,
    chatVariables: {},
    thoughts: "as-template",
    system: null,
    trainOn: "all",
    objective: { name: "sft" },
    method,
    ...ownDefaults,
    rank,
    alpha: rank,
    dropout: options.dropout ?? 0,
    targets,
    exclude: null,
    layers: null,
    rankPattern: {},
    alphaPattern: {},
    optimizer: { name: "adamw", learningRate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01, maxGradNorm: null },
    schedule: { name: "constant", warmup: 0, minRatio: 0 },
    epochs: null,
    steps,
    batchSize: natural(options, "rows", 4),
    accumulation: 1,
    maxLength: natural(options, "length", 64),
    overlong: "truncate",
    shuffle: false,
    seed: i,
    evalEvery: null,
    priority: 0,
    patience: null,
    minDelta: 0,
    halving: null,
    initialAdapter: null,
  });
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
