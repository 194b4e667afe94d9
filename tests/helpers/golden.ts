// Reader of the goldens in tests/golden/peft: what PEFT trained, in our types. What the numbers mean is in make.py there.
//
// Trusts the files, which are ours; a tensor that is not there is an error, for a comparison with nothing would pass.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Linear, modulePath } from "../../src/families/linears.ts";
import { toF32 } from "../../src/files/convert.ts";
import { openSafetensors } from "../../src/files/safetensors.ts";
import { type Init, isSvdInit } from "../../src/methods/init.ts";
import { ownDefaults } from "../../src/methods/registry.ts";
import type { AdapterRecipe, Recipe } from "../../src/recipe/recipe.ts";
import type { Tokens } from "../../src/schedule/pack.ts";
import { LINEARS } from "./tiny.ts";

export const GOLDEN_MODELS = ["llama", "mistral", "qwen2", "qwen3"] as const;
/** Of tests/golden/gemma. */
export const GEMMA_MODELS = ["gemma3", "gemma4", "gemma4-k-eq-v"] as const;
/** Adapters of the other kinds, and of other beginnings. */
export const ON_LLAMA = ["kinds", "vera", "principal", "places"] as const;
export type GoldenModel = (typeof GOLDEN_MODELS | typeof GEMMA_MODELS | typeof ON_LLAMA)[number];
/** What the comparison with PEFT's training needs of an adapter. */
export type TrainedGolden = Pick<GoldenAdapter, "name" | "recipe" | "rows" | "steps" | "after" | "initial" | "final">;

export type GoldenStep = {
  /** Rows of the data, in order, as PEFT was given them. */
  readonly microBatches: readonly (readonly number[])[];
  readonly targets: number;
  /** Mean cross-entropy over the mini-batch's targets; the norm of its gradient before clipping. In fp32, and in float64. */
  readonly loss: number;
  readonly gradNorm: number;
  readonly loss64: number;
  readonly gradNorm64: number;
  readonly learningRate: number;
};

/** Of a row alone: the sum of its targets' losses, how many they are, how many greedy decoding hits. */
export type GoldenRow = { readonly lossSum: number; readonly targets: number; readonly correct: number };

/** Relative distances of two runs of PEFT: losses and gradient norms in the worst step, the others over all tensors. */
export type Spread = {
  readonly losses: number;
  readonly gradNorms: number;
  readonly gradients: number;
  readonly weights: number;
  readonly update: number;
};

export type GoldenAdapter = {
  readonly name: string;
  readonly recipe: AdapterRecipe;
  readonly rows: readonly Tokens[];
  readonly steps: readonly GoldenStep[];
  /** The base model alone on each row, and the base model with the trained adapter. */
  readonly before: readonly GoldenRow[];
  readonly after: readonly GoldenRow[];
  /** How far the golden run lies from the same in float64, and how far one with other micro-batches lies from it. */
  readonly spread: { readonly float64: Spread; readonly oneByOne: Spread };
  /** PEFT folders. */
  readonly initial: string;
  readonly final: string;
  /** Of the first step, before clipping: A [rank, in] and B [out, rank]. Of Gemma there is no file of them. */
  readonly gradients: (layer: number, linear: Linear, factor: "A" | "B") => Float32Array;
  /** f32[probe.length, vocab] of the base model with the trained adapter. */
  readonly logits: Float32Array;
};

export type Golden = {
  readonly name: GoldenModel;
  /** A Hugging Face folder. */
  readonly model: string;
  readonly adapters: readonly GoldenAdapter[];
  /** A row of token ids, and the base model's logits for it, f32[probe.length, vocab]. */
  readonly probe: Int32Array;
  readonly logits: Float32Array;
};

/** golden.json as make.py writes it. */
type File = { readonly probe: readonly number[]; readonly adapters: readonly FileAdapter[] };
type FileRow = { readonly loss_sum: number; readonly targets: number; readonly hits: number };
type FileStep = {
  readonly micro_batches: readonly (readonly number[])[];
  readonly targets: number;
  readonly loss: number;
  readonly grad_norm: number;
  readonly loss64: number;
  readonly grad_norm64: number;
  readonly learning_rate: number;
};
type FileSpread = Omit<Spread, "gradNorms"> & { readonly grad_norms: number };
export type FileAdapter = {
  readonly name: string;
  readonly rank: number;
  readonly alpha: number;
  readonly rslora: boolean;
  readonly method?: AdapterRecipe["method"];
  readonly lora_plus_ratio?: number;
  readonly projection_seed?: number;
  readonly init?: Init;
  readonly targets: readonly Linear[] | string;
  readonly exclude?: readonly string[] | string | null;
  readonly layers?: readonly number[] | null;
  readonly rank_pattern?: Readonly<Record<string, number>>;
  readonly alpha_pattern?: Readonly<Record<string, number>>;
  readonly batch_size: number;
  readonly accumulation: number;
  readonly learning_rate: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weight_decay: number;
  readonly max_grad_norm: number | null;
  readonly scheduler: "constant" | "linear" | "cosine";
  readonly warmup: number;
  readonly min_lr_ratio: number;
  readonly rows: readonly { readonly ids: readonly number[]; readonly mask: readonly number[] }[];
  readonly before: readonly FileRow[];
  readonly after: readonly FileRow[];
  readonly steps: readonly FileStep[];
  readonly spread: { readonly float64: FileSpread; readonly one_by_one: FileSpread };
};

const FOLDER = join(import.meta.dir, "..", "golden", "peft");
const GEMMA = join(FOLDER, "..", "gemma");

export function loadGolden(name: GoldenModel): Golden {
  const folder = join((GEMMA_MODELS as readonly string[]).includes(name) ? GEMMA : FOLDER, name);
  const { probe, adapters }: File = JSON.parse(readFileSync(join(folder, "golden.json"), "utf8"));
  const logits = readTensors(join(folder, "logits.safetensors"));
  return {
    name,
    model: join((ON_LLAMA as readonly string[]).includes(name) ? join(FOLDER, "llama") : folder, "model"),
    adapters: adapters.map((adapter) => adapterOf(adapter, join(folder, adapter.name), logits(adapter.name))),
    probe: Int32Array.from(probe),
    logits: logits("base"),
  };
}

/** A recipe that trains adapters of a golden together as PEFT trained each alone; its data is `rows`, not files. */
export const goldenRecipe = (
  golden: { readonly name: string; readonly model: string; readonly adapters: readonly TrainedGolden[] },
  adapters: readonly TrainedGolden[] = golden.adapters,
): Recipe => ({
  path: golden.name,
  model: { path: golden.model, precision: "fp32" },
  run: {
    output: "",
    seed: 0,
    device: "cpu",
    tokensPerMicrobatch: null,
    recomputation: "auto",
    stages: 1,
    restarts: 0,
    tracking: [],
    notify: null,
    slots: null,
    residentAdapters: null,
    checkpoint: null,
  },
  adapters: adapters.map(({ recipe }) => recipe),
});

/** Every tensor of a small file, in f32, by name. */
export function readTensors(path: string): (name: string) => Float32Array {
  using file = openSafetensors(path);
  const tensors = new Map<string, Float32Array>();
  for (const [name, { dtype, bytes }] of file.tensors) {
    const raw = new Uint8Array(bytes);
    file.readInto(name, raw);
    if (dtype) tensors.set(name, toF32(raw, dtype));
  }
  return (name) => {
    const found = tensors.get(name);
    if (!found) throw new Error(`${path} has no tensor '${name}', but ${[...tensors.keys()].join(", ")}`);
    return found;
  };
}

function adapterOf(adapter: FileAdapter, folder: string, logits: Float32Array): GoldenAdapter {
  const gradients = (name: string) => readTensors(join(folder, "gradients.safetensors"))(name);
  const { float64, one_by_one: oneByOne } = adapter.spread;
  return {
    name: adapter.name,
    recipe: recipeOf(adapter, join(folder, "initial")),
    rows: adapter.rows.map(({ ids, mask }) => ({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) })),
    steps: adapter.steps.map(stepOf),
    before: adapter.before.map(rowOf),
    after: adapter.after.map(rowOf),
    spread: { float64: spreadOf(float64), oneByOne: spreadOf(oneByOne) },
    initial: join(folder, "initial"),
    final: join(folder, "final"),
    gradients: (layer, linear, factor) =>
      gradients(`base_model.model.model.layers.${layer}.${modulePath(linear)}.lora_${factor}.weight`),
    logits,
  };
}

export const stepOf = ({ micro_batches: microBatches, targets, loss, loss64, ...step }: FileStep): GoldenStep => ({
  microBatches,
  targets,
  loss,
  loss64,
  gradNorm: step.grad_norm,
  gradNorm64: step.grad_norm64,
  learningRate: step.learning_rate,
});

export const rowOf = ({ loss_sum: lossSum, targets, hits }: FileRow): GoldenRow => ({ lossSum, targets, correct: hits });

const spreadOf = ({ grad_norms: gradNorms, ...spread }: FileSpread): Spread => ({ ...spread, gradNorms });

export function recipeOf(
  adapter: Omit<FileAdapter, "spread" | "steps" | "before" | "after"> & { readonly steps: readonly unknown[] },
  initialAdapter: string,
): AdapterRecipe {
  const [beta1, beta2] = adapter.betas;
  const { init = "default" } = adapter;
  return {
    name: adapter.name,
    train: [],
    eval: [],
    metrics: null,
    evalSplit: 0,
    mostRows: null,
    mix: null,
    format: "text",
    columns: {},
    template: null,
    chatTemplate: false,
    chatVariables: {},
    thoughts: "as-template",
    system: null,
    trainOn: "completion",
    objective: { name: "sft" },
    method: adapter.method ?? "lora",
    ...ownDefaults,
    rank: adapter.rank,
    alpha: adapter.alpha,
    dropout: 0,
    rslora: adapter.rslora,
    loraPlusRatio: adapter.lora_plus_ratio ?? 1,
    projectionSeed: adapter.projection_seed ?? 0,
    init,
    targets:
      typeof adapter.targets === "string" ? adapter.targets : LINEARS.filter((linear) => adapter.targets.includes(linear)),
    exclude: adapter.exclude ?? null,
    layers: adapter.layers ?? null,
    rankPattern: adapter.rank_pattern ?? {},
    alphaPattern: adapter.alpha_pattern ?? {},
    initialAdapter: isSvdInit(init) ? null : initialAdapter,
    patience: null,
    minDelta: 0,
    halving: null,
    optimizer: {
      name: "adamw",
      learningRate: adapter.learning_rate,
      beta1,
      beta2,
      eps: adapter.eps,
      weightDecay: adapter.weight_decay,
      maxGradNorm: adapter.max_grad_norm,
    },
    schedule: { name: adapter.scheduler, warmup: adapter.warmup, minRatio: adapter.min_lr_ratio },
    epochs: null,
    steps: adapter.steps.length,
    batchSize: adapter.batch_size,
    accumulation: adapter.accumulation,
    maxLength: Math.max(...adapter.rows.map(({ ids }) => ids.length)),
    overlong: "truncate",
    shuffle: false,
    seed: 0,
    evalEvery: null,
    priority: 0,
  };
}
