// From an adapter's table to its recipe: defaults, paths made absolute, one name for each value.

import { dirname, resolve } from "node:path";
import { hash, hashText } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { type Init, isSvdInit } from "../methods/init.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import { objectiveOf, objectiveTable } from "../objectives/registry.ts";
import type { AdapterRecipe } from "./recipe.ts";
import type { AdapterTable, DefaultsTable } from "./schema.ts";

/** What holds where neither the adapter nor [defaults] speaks. */
export const DEFAULTS = {
  format: "auto",
  chat_template: true,
  chat_template_kwargs: {},
  thoughts: "as-template",
  train_on: "completion",
  objective: "sft",
  method: "lora",
  projection_seed: 0,
  d_initial: 0.1,
  alpha: 32,
  dropout: 0,
  rslora: false,
  lora_plus_ratio: 1,
  init: "default",
  targets: "all-linear",
  optimizer: "adamw",
  learning_rate: 2e-4,
  betas: [0.9, 0.999],
  eps: 1e-8,
  momentum: 0,
  nesterov: false,
  weight_decay: 0,
  max_grad_norm: 1,
  scheduler: "linear",
  warmup: 0.03,
  min_lr_ratio: 0,
  batch_size: 4,
  accumulation: 1,
  max_length: 1024,
  overlong: "truncate",
  shuffle: true,
  priority: 0,
  min_delta: 0,
} as const;

/** [1, 2, 3] or "1-3". */
function layersOf(given: string | readonly number[]): readonly number[] {
  if (typeof given !== "string") return [...new Set(given)].sort((a, b) => a - b);
  const [from, to] = given.split("-").map(Number);
  return range(to! - from! + 1).map((i) => from! + i);
}

const listed = <T>(value: T): T => (Array.isArray(value) ? ([...value] as T) : value);

const asList = (value: string | readonly string[]): readonly string[] => (typeof value === "string" ? [value] : value);

/** Whether an adapter has rows to be measured on. */
export const heldOut = (data: AdapterTable["data"]): boolean =>
  typeof data === "object" && !Array.isArray(data) && (data.eval !== undefined || (data.split ?? 0) > 0);

/** Epochs and steps exclude each other: whoever speaks last, the adapter before [defaults], decides. */
function lengthOf(adapter: AdapterTable, defaults: DefaultsTable): Pick<AdapterRecipe, "epochs" | "steps"> {
  for (const { epochs, steps } of [adapter, defaults])
    if (epochs !== undefined || steps !== undefined) return { epochs: epochs ?? null, steps: steps ?? null };
  return { epochs: 1, steps: null };
}

/** An adapter that continues another begins as that, whatever [defaults] say; its own `init` says what the other keeps frozen. */
const initOf = (from: string | undefined, own: Init | undefined, any: Init): Init =>
  from === undefined ? any : (own ?? "default");

/** `recipePath` is absolute: relative paths are relative to its folder. `group` is the sweep that the adapter comes from. */
export function resolveAdapter(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  recipePath: string,
  runSeed: number,
  group: string,
): AdapterRecipe {
  const t = { ...DEFAULTS, ...defaults, ...adapter };
  const place = (path: string) => resolve(dirname(recipePath), path);
  const { keys, rank } = DEFINITIONS[t.method];
  const data =
    t.data === undefined ? { train: [] } : typeof t.data === "string" || Array.isArray(t.data) ? { train: t.data } : t.data;
  const { train, eval: held, split } = data as { train: string | string[]; eval?: string | string[]; split?: number };
  return {
    name: t.name,
    train: asList(train).map(place),
    eval: held === undefined ? [] : asList(held).map(place),
    evalSplit: split ?? 0,
    format: t.format,
    template: t.template ?? null,
    chatTemplate: typeof t.chat_template === "string" ? place(t.chat_template) : t.chat_template,
    chatVariables: t.chat_template_kwargs,
    thoughts: t.thoughts,
    system: t.system ?? null,
    trainOn: t.train_on,
    objective: objectiveOf(t.objective, place),
    method: t.method,
    rank: t.rank ?? rank,
    alpha: t.alpha,
    dropout: t.dropout,
    rslora: t.rslora,
    loraPlusRatio: keys.includes("lora_plus_ratio") ? t.lora_plus_ratio : DEFAULTS.lora_plus_ratio,
    projectionSeed: t.projection_seed,
    dInitial: t.d_initial,
    init: keys.includes("init") ? initOf(t.from, adapter.init, t.init) : "default",
    targets: t.targets,
    exclude: t.exclude ?? null,
    layers: t.layers === undefined ? null : layersOf(t.layers),
    rankPattern: keys.includes("rank_pattern") ? (t.rank_pattern ?? {}) : {},
    alphaPattern: keys.includes("alpha_pattern") ? (t.alpha_pattern ?? {}) : {},
    initialAdapter: t.from === undefined ? null : place(t.from),
    optimizer: {
      learningRate: t.learning_rate,
      weightDecay: t.weight_decay,
      maxGradNorm: t.max_grad_norm === false ? null : t.max_grad_norm,
      ...(t.optimizer === "sgd"
        ? { name: "sgd", momentum: t.momentum, nesterov: t.nesterov }
        : { name: "adamw", beta1: t.betas[0], beta2: t.betas[1], eps: t.eps }),
    },
    schedule: { name: t.scheduler, warmup: t.warmup, minRatio: t.min_lr_ratio },
    ...lengthOf(adapter, defaults),
    batchSize: t.batch_size,
    accumulation: t.accumulation,
    maxLength: t.max_length,
    overlong: t.overlong,
    shuffle: t.shuffle,
    seed: t.seed ?? hash(runSeed, hashText(t.name)),
    evalEvery: heldOut(t.data) ? (t.eval_every ?? null) : null,
    priority: t.priority,
    patience: t.patience ?? null,
    minDelta: t.min_delta,
    halving: t.halving === undefined ? null : { group, ...t.halving },
  };
}

/** The reverse: the table that resolves to this adapter, with nothing left to defaults. */
export function adapterTable(a: AdapterRecipe) {
  const optional = (key: string, value: unknown) => (value === null ? {} : { [key]: value });
  const own: Readonly<Record<string, unknown>> = {
    alpha: a.alpha,
    ...(Object.keys(a.rankPattern).length > 0 ? { rank_pattern: a.rankPattern } : {}),
    ...(Object.keys(a.alphaPattern).length > 0 ? { alpha_pattern: a.alphaPattern } : {}),
    rslora: a.rslora,
    lora_plus_ratio: a.loraPlusRatio,
    ...(a.initialAdapter === null || isSvdInit(a.init) ? { init: a.init } : {}),
    projection_seed: a.projectionSeed,
    d_initial: a.dInitial,
  };
  return {
    name: a.name,
    data: {
      train: [...a.train],
      ...(a.eval.length > 0 ? { eval: [...a.eval] } : {}),
      ...(a.evalSplit > 0 ? { split: a.evalSplit } : {}),
    },
    format: a.format,
    ...optional("template", a.template),
    chat_template: a.chatTemplate,
    ...(Object.keys(a.chatVariables).length > 0 ? { chat_template_kwargs: a.chatVariables } : {}),
    thoughts: a.thoughts,
    ...optional("system", a.system),
    train_on: a.trainOn,
    objective: objectiveTable(a.objective),
    method: a.method,
    rank: a.rank,
    dropout: a.dropout,
    ...Object.fromEntries(DEFINITIONS[a.method].keys.filter((key) => key in own).map((key) => [key, own[key]])),
    targets: listed(a.targets),
    ...optional("exclude", listed(a.exclude)),
    ...optional("layers", listed(a.layers)),
    ...optional("from", a.initialAdapter),
    optimizer: a.optimizer.name,
    learning_rate: a.optimizer.learningRate,
    ...(a.optimizer.name === "sgd"
      ? { momentum: a.optimizer.momentum, nesterov: a.optimizer.nesterov }
      : { betas: [a.optimizer.beta1, a.optimizer.beta2], eps: a.optimizer.eps }),
    weight_decay: a.optimizer.weightDecay,
    max_grad_norm: a.optimizer.maxGradNorm ?? false,
    scheduler: a.schedule.name,
    warmup: a.schedule.warmup,
    min_lr_ratio: a.schedule.minRatio,
    ...optional("epochs", a.epochs),
    ...optional("steps", a.steps),
    batch_size: a.batchSize,
    accumulation: a.accumulation,
    max_length: a.maxLength,
    overlong: a.overlong,
    shuffle: a.shuffle,
    seed: a.seed,
    ...optional("eval_every", a.evalEvery),
    priority: a.priority,
    ...optional("patience", a.patience),
    min_delta: a.minDelta,
    ...optional("halving", a.halving),
  };
}
