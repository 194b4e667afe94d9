// A recipe as a run has it: the schema's keys in camelCase, after defaults, sweeps and paths are resolved. load.ts makes it.

import type { CamelKeys } from "../base/case.ts";
import type { Output } from "../base/schema.ts";
import type { PatternTable } from "../base/targeting.ts";
import type { Objective } from "../objectives/registry.ts";
import type { Mix } from "../schedule/mix.ts";
import type { AdapterKey, adapterEntries, DefaultKey, RecipeTable } from "./schema.ts";

/** The folder in a run's folder, next to those of its adapters: no adapter has this name. */
export const CHECKPOINTS = "checkpoints";
/** The same of TensorBoard's files. */
export const TENSORBOARD = "tb";
/** The same of W&B's, as its own programs call it. */
export const WANDB = "wandb";
/** The same of what MLflow is sent. */
export const MLFLOW = "mlflow";

type Entries = typeof adapterEntries;
/** Every value is there; null for a key without a default that is not given. */
type Settings = CamelKeys<{
  readonly [K in AdapterKey]: K extends DefaultKey ? Output<Entries[K]> : Output<Entries[K]> | null;
}>;
type Given<K extends keyof Settings> = { readonly [Key in K]: NonNullable<Settings[Key]> };

export type Format = Settings["format"];

/** Weight decay is AdamW's own, apart from the gradient; SGD adds it to the gradient. */
export type Optimizer = Pick<Settings, "learningRate" | "weightDecay"> & { readonly maxGradNorm: number | null } & (
    | ({ readonly name: Exclude<Settings["optimizer"], "sgd">; readonly beta1: number; readonly beta2: number } & Pick<
        Settings,
        "eps"
      >)
    | ({ readonly name: "sgd" } & Pick<Settings, "momentum" | "nesterov">)
  );

/** Keys of a recipe that have another name or place in an AdapterRecipe. */
export const MOVED = [
  ...["data", "from", "chat_template_kwargs"],
  ...["optimizer", "learning_rate", "weight_decay", "max_grad_norm", "betas", "eps", "momentum", "nesterov"],
  ...["scheduler", "warmup", "min_lr_ratio"],
] as const satisfies readonly AdapterKey[];
type Moved = keyof CamelKeys<Readonly<Record<(typeof MOVED)[number], unknown>>>;
type Resolved = "objective" | "layers" | "rank" | "seed" | "rankPattern" | "alphaPattern" | "halving";

export type AdapterRecipe = Omit<Settings, Moved | Resolved> &
  Given<"rank" | "seed"> & {
    /** Names a folder and a bus subject: letters, digits, '_' and '-'. */
    readonly name: string;
    /** Files of rows: absolute paths, patterns of them, or names of what lies elsewhere; `eval` may be empty. */
    readonly train: readonly string[];
    readonly eval: readonly string[];
    /** Of each of these the first rows alone, as many; null: all. */
    readonly mostRows: { readonly train: readonly (number | null)[]; readonly eval: readonly (number | null)[] } | null;
    /** How the training rows of `train` are mixed, a weight for each; null: an epoch has each row once. */
    readonly mix: Mix | null;
    /** The held-out share of the training rows when `eval` is empty; 0 for none. */
    readonly evalSplit: number;
    /** Given to the chat template with the turns, by name; a row's own values win. */
    readonly chatVariables: Settings["chatTemplateKwargs"];
    readonly objective: Objective;
    /** The only layers, ascending; null: all. */
    readonly layers: readonly number[] | null;
    readonly rankPattern: PatternTable;
    readonly alphaPattern: PatternTable;
    /** A PEFT adapter's folder to continue from, absolute. */
    readonly initialAdapter: string | null;
    readonly optimizer: Optimizer;
    /** `warmup` below 1 is a share of all steps, else a number of steps. */
    readonly schedule: { readonly name: Settings["scheduler"]; readonly minRatio: number } & Pick<Settings, "warmup">;
    readonly halving: (Given<"halving">["halving"] & { readonly group: string }) | null;
  };

type Table = Output<typeof RecipeTable>;
type RunKeys = CamelKeys<Required<Table["run"]>>;
export type Stages = RunKeys["stages"];

export type Recipe = {
  /** Of the recipe's file. */
  readonly path: string;
  /** `path` is absolute, or the name of a model of a hub. */
  readonly model: { readonly path: string } & Pick<Table["model"], "precision">;
  readonly run: Omit<RunKeys, "tokensPerMicrobatch" | "slots" | "residentAdapters" | "checkpoint" | "notify"> & {
    readonly notify: RunKeys["notify"] | null;
    readonly tokensPerMicrobatch: number | null;
    /** Adapters that train at once; null: as many as fit. */
    readonly slots: number | null;
    /** Of these, adapters on the device at once; null: as many as fit. */
    readonly residentAdapters: number | null;
    /** Each adapter is saved after every `steps` of its steps or `minutes`; the `keep` newest stay. Null: never. */
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
