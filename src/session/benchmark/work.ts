// What a benchmark trains: a recipe of equal adapters, and random rows. Nothing is read.

import { resolve } from "node:path";
import type { Precision } from "../../base/precision.ts";
import { Rng } from "../../base/rng.ts";
import { range } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { type Linear, linearsIn } from "../../families/linears.ts";
import { PEFT_METHODS, type PeftMethod } from "../../methods/registry.ts";
import { EXPERT_SHARINGS, type ExpertSharing } from "../../methods/sharing.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { resolveAdapter } from "../../recipe/resolve.ts";
import type { AdapterTable } from "../../recipe/schema.ts";
import type { Tokens } from "../../schedule/pack.ts";
import type { AdapterData } from "../training/training.ts";

const [QKVO, LATENT] = [
  ["q_proj", "k_proj", "v_proj", "o_proj"],
  ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
] as const satisfies readonly (readonly Linear[])[];

const TARGETS = {
  /** Where q, k and v are made of latents, the linears of these, too. */
  qkvo: (spec) => (spec.latent ? linearsIn(spec).filter((linear) => LATENT.some((of) => of === linear)) : QKVO),
  "all-linear": linearsIn,
} satisfies Readonly<Record<string, (spec: ModelSpec) => readonly Linear[]>>;
export const targetsOf = (spec: ModelSpec, targets: keyof typeof TARGETS): readonly Linear[] => TARGETS[targets](spec);
export const BENCHMARK_TARGETS = Object.keys(TARGETS) as (keyof typeof TARGETS)[];
export const BENCHMARK_METHODS: readonly PeftMethod[] = PEFT_METHODS;
export const BENCHMARK_SHARINGS = EXPERT_SHARINGS;

export type BenchmarkWork = {
  readonly adapters: number;
  /** Rows in an adapter's batch, and tokens in each. */
  readonly rows: number;
  readonly length: number;
  readonly method: PeftMethod;
  /** Of all, or of each adapter in turn. */
  readonly rank: number | readonly number[];
  readonly dropout: number;
  readonly targets: keyof typeof TARGETS;
  /** Which factors experts share. */
  readonly experts: ExpertSharing;
  readonly device: Recipe["run"]["device"];
  readonly precision: Precision;
  readonly recomputation: Recipe["run"]["recomputation"];
  /** Most tokens of an adapter in a pass; null: as a run. */
  readonly tokens: number | null;
  /** A number of them, or the layers of each. */
  readonly stages: number | readonly number[];
};

export const BENCHMARK_DEFAULTS: BenchmarkWork = {
  adapters: 1,
  rows: 4,
  length: 64,
  method: "lora",
  rank: 16,
  dropout: 0,
  targets: "all-linear",
  experts: "shared-outer",
  device: "auto",
  precision: "auto",
  recomputation: "auto",
  tokens: null,
  stages: 1,
};

/** `rows` rows of `length` tokens, each with a target. */
export function randomRows(spec: ModelSpec, rows: number, length: number, seed: number): AdapterData {
  const rng = new Rng(seed, 5);
  const row = (): Tokens => ({
    ids: Int32Array.from({ length: length + 1 }, () => rng.below(spec.vocab)),
    mask: new Uint8Array(length + 1).fill(1),
  });
  return { train: range(rows).map(row), eval: [] };
}

/** The recipe of `steps` steps on a model of this shape; what `work` leaves out is as BENCHMARK_DEFAULTS have it. */
export function recipeOf(
  work: Partial<BenchmarkWork>,
  { shape, spec }: { readonly shape: string; readonly spec: ModelSpec },
  steps: number,
): Recipe {
  const { adapters, rows, length, method, rank, dropout, targets, experts, ...run } = { ...BENCHMARK_DEFAULTS, ...work };
  const ranks = typeof rank === "number" ? [rank] : rank;
  const table: Omit<AdapterTable, "name" | "seed" | "rank" | "alpha"> = {
    format: "text",
    chat_template: false,
    train_on: "all",
    method,
    dropout,
    targets: [...targetsOf(spec, targets)],
    ...(spec.experts === null ? {} : { experts }),
    learning_rate: 1e-4,
    weight_decay: 0.01,
    max_grad_norm: false,
    scheduler: "constant",
    warmup: 0,
    steps,
    batch_size: rows,
    max_length: length,
    shuffle: false,
  };
  const adapter = (i: number): AdapterRecipe => {
    const own = ranks[i % ranks.length]!;
    return resolveAdapter({ ...table, rank: own, alpha: own, name: `bench-${i}`, seed: i }, {}, resolve("bench"), 0, "bench");
  };
  return {
    path: "bench",
    model: { path: shape, precision: run.precision },
    run: {
      output: "",
      seed: 0,
      device: run.device,
      tokensPerMicrobatch: run.tokens,
      stages: typeof run.stages === "number" ? run.stages : [...run.stages],
      restarts: 0,
      tracking: [],
      notify: null,
      slots: null,
      residentAdapters: null,
      checkpoint: null,
      recomputation: run.recomputation,
    },
    adapters: range(adapters).map(adapter),
  };
}
