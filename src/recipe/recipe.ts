// What was asked, after defaults, sweeps and paths are resolved: every value is there. Types only; load.ts makes them.

import type { Precision } from "../base/precision.ts";
import type { PatternTable } from "../base/targeting.ts";
import type { Init } from "../methods/init.ts";
import type { PeftMethod } from "../methods/registry.ts";
import type { Objective } from "../objectives/registry.ts";

export const FORMATS = ["auto", "messages", "prompt-completion", "text", "alpaca", "template"] as const;
export type Format = (typeof FORMATS)[number];

/** In a run's folder, beside those of its adapters: none of them is called so. */
export const CHECKPOINTS = "checkpoints";

/** Weight decay is AdamW's own, apart from the gradient; SGD adds it to the gradient. */
export type Optimizer = {
  readonly learningRate: number;
  readonly weightDecay: number;
  readonly maxGradNorm: number | null;
} & (
  | { readonly name: "adamw"; readonly beta1: number; readonly beta2: number; readonly eps: number }
  | { readonly name: "sgd"; readonly momentum: number; readonly nesterov: boolean }
);

export type AdapterRecipe = {
  /** Names a folder and a bus subject: letters, digits, '_' and '-'. */
  readonly name: string;
  /** Absolute paths of JSONL files; `eval` may be empty. */
  readonly train: readonly string[];
  readonly eval: readonly string[];
  /** Share of the training rows that is held out when `eval` is empty; 0 for none. */
  readonly evalSplit: number;
  readonly format: Format;
  /** Jinja texts over a row's fields, for format "template". */
  readonly template: { readonly prompt: string; readonly completion: string } | null;
  /** Put plain prompts into the model's chat template, where it has one; a path names another template's file, absolute. */
  readonly chatTemplate: boolean | string;
  /** What the chat template is given beside the turns, by name; a row's own goes before it. */
  readonly chatVariables: Readonly<Record<string, unknown>>;
  /** As the template has them, each turn with just what stands before it when it is written, or none at all. */
  readonly thoughts: "as-template" | "every-turn" | "drop";
  /** System message of chats that have none. */
  readonly system: string | null;
  readonly trainOn: "completion" | "all";
  readonly objective: Objective;
  readonly method: PeftMethod;
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  /** Scale by alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank. */
  readonly rslora: boolean;
  /** The learning rate of B as a multiple of that of A (LoRA+, Hayou et al. 2024); 1 for plain LoRA. */
  readonly loraPlusRatio: number;
  /** VeRA: the seed of its frozen projections, and what lambda_d begins as. */
  readonly projectionSeed: number;
  readonly dInitial: number;
  /** What a fresh adapter begins with. */
  readonly init: Init;
  /** Linears, modules by the end of their paths, a regular expression of whole paths, or "all-linear". */
  readonly targets: readonly string[] | string;
  /** As targets, and wins over them. */
  readonly exclude: readonly string[] | string | null;
  /** The only layers, ascending; null: all. */
  readonly layers: readonly number[] | null;
  /** Ranks and alphas of the modules whose paths end with a match of a regular expression; the first counts. */
  readonly rankPattern: PatternTable;
  readonly alphaPattern: PatternTable;
  /** A PEFT adapter directory to continue from, absolute. */
  readonly initialAdapter: string | null;
  readonly optimizer: Optimizer;
  readonly schedule: {
    readonly name: "constant" | "linear" | "cosine";
    /** Below 1: a share of all steps; else a number of steps. */
    readonly warmup: number;
    readonly minRatio: number;
  };
  /** Exactly one of the two is set. */
  readonly epochs: number | null;
  readonly steps: number | null;
  /** Rows of a micro-batch, and micro-batches of an optimizer step. */
  readonly batchSize: number;
  readonly accumulation: number;
  readonly maxLength: number;
  readonly overlong: "truncate" | "drop";
  readonly shuffle: boolean;
  readonly seed: number;
  /** Optimizer steps between evaluations; null: before the first and after the last only. */
  readonly evalEvery: number | null;
  readonly priority: number;
  /** Evaluations in a row that may bring no loss lower by more than `minDelta` before the adapter ends; null: all its steps. */
  readonly patience: number | null;
  readonly minDelta: number;
  /** Successive halving: every `rung` steps the share `keep` of its group, those of the lowest held-out loss, goes on. */
  readonly halving: { readonly rung: number; readonly keep: number; readonly group: string } | null;
};

export type Stages = "auto" | number | readonly number[];

export type Recipe = {
  readonly path: string;
  readonly model: { readonly path: string; readonly precision: Precision };
  readonly run: {
    readonly output: string;
    readonly seed: number;
    readonly device: "auto" | "cpu" | "cuda";
    readonly tokensPerMicrobatch: number | null;
    readonly recomputation: "auto" | "none" | "selective" | "full";
    /** Stages of the pipeline: as many as there are GPUs, a number, or the layers of each. */
    readonly stages: Stages;
    /** How often the stages may be started again when one of them is gone. */
    readonly restarts: number;
    /** Adapters that train at once; null: as many as fit. */
    readonly slots: number | null;
    /** When adapters are kept, each on its own: after so many of its steps, or minutes; the `keep` newest. Null: never. */
    readonly checkpoint: { readonly steps: number | null; readonly minutes: number | null; readonly keep: number } | null;
  };
  readonly adapters: readonly AdapterRecipe[];
};

/** Flags of the command line, as they were given. */
export type Overrides = {
  readonly output?: string;
  readonly device?: string;
  readonly seed?: string | number;
  readonly stages?: string | number;
};
