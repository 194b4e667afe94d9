// From an adapter's table to its recipe: defaults, paths made absolute, one name for each value.

import { dirname, resolve } from "node:path";
import { type Camel, camel } from "../base/case.ts";
import { hash, hashText } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { hubText, isRemote } from "../base/source-name.ts";
import { type Init, isSvdInit } from "../methods/init.ts";
import { DEFINITIONS, hasKey, OWN_KEYS, type OwnKey } from "../methods/registry.ts";
import { objectiveOf, objectiveTable } from "../objectives/registry.ts";
import { type AdapterRecipe, MOVED } from "./recipe.ts";
import { ADAPTER_KEYS, type AdapterKey, type AdapterTable, DEFAULTS, type DefaultsTable } from "./schema.ts";
import type { SourceTable } from "./source-schema.ts";

/** Keys that an AdapterRecipe has under their own names. */
type Kept = Exclude<AdapterKey, (typeof MOVED)[number]>;
const KEPT = ADAPTER_KEYS.filter((key) => !(MOVED as readonly string[]).includes(key)) as Kept[];

/** [1, 2, 3] or "1-3". */
function layersOf(given: string | readonly number[]): readonly number[] {
  if (typeof given !== "string") return [...new Set(given)].sort((a, b) => a - b);
  const [from, to] = given.split("-").map(Number);
  return range(to! - from! + 1).map((i) => from! + i);
}

type Sources = SourceTable | readonly SourceTable[];
const asList = (value: Sources): readonly SourceTable[] => [value].flat() as readonly SourceTable[];

/** A source's name: a path, an address, or that of a data set. */
function nameOf(source: SourceTable, place: (path: string) => string): string {
  if (typeof source === "string") return isRemote(source) ? source : place(source);
  if ("path" in source) return nameOf(source.path, place);
  const { dataset, revision = "main", config = null, split = null } = source;
  return hubText({ kind: "datasets", repo: dataset, revision, path: "", config, split });
}

const weightOf = (source: SourceTable): number | undefined => (typeof source === "string" ? undefined : source.weight);
const mostOf = (source: SourceTable): number | null => (typeof source === "string" ? null : (source.rows ?? null));

/** What a table of data says of how much is used of each source. */
function mixOf({
  train,
  eval: held = [],
  stop = "first_exhausted",
  shares = "rows",
}: DataTable): Pick<AdapterRecipe, "mix" | "mostRows"> {
  const weights = asList(train).map(weightOf);
  const most = { train: asList(train).map(mostOf), eval: asList(held).map(mostOf) };
  const isMixed = weights.some((weight) => weight !== undefined);
  return {
    mix: isMixed ? { weights: weights.map((weight) => weight ?? 1), stop, by: shares } : null,
    mostRows: [...most.train, ...most.eval].some((rows) => rows !== null) ? most : null,
  };
}

/** Whether any of the sources has a weight. */
export const hasWeights = (sources: Sources): boolean => asList(sources).some((source) => weightOf(source) !== undefined);

type DataTable = Extract<AdapterTable["data"], { readonly train: unknown }>;

/** Whether an adapter has held-out rows. */
export const heldOut = (data: AdapterTable["data"]): boolean =>
  typeof data === "object" && "train" in data && (data.eval !== undefined || (data.split ?? 0) > 0);

/** Epochs and steps exclude each other: those of the adapter win over those of [defaults]. */
function lengthOf(adapter: AdapterTable, defaults: DefaultsTable): Pick<AdapterRecipe, "epochs" | "steps"> {
  for (const { epochs, steps } of [adapter, defaults])
    if (epochs !== undefined || steps !== undefined) return { epochs: epochs ?? null, steps: steps ?? null };
  return { epochs: 1, steps: null };
}

/**
 * An adapter that continues another begins as that one, whatever [defaults] have; its own `init` names the other's frozen part.
 */
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
  const named = (source: SourceTable) => nameOf(source, place);
  const { rank } = DEFINITIONS[t.method];
  const data: DataTable = typeof t.data === "object" && "train" in t.data ? t.data : { train: t.data ?? [] };
  const { train, eval: held, split } = data;
  const own = <T>(key: OwnKey, value: T, without: T): T => (hasKey(t.method, key) ? value : without);
  const kept = Object.fromEntries(KEPT.map((key) => [camel(key), t[key] ?? null])) as Pick<AdapterRecipe, Camel<Kept>>;
  return {
    ...kept,
    name: t.name,
    train: asList(train).map(named),
    eval: held === undefined ? [] : asList(held).map(named),
    evalSplit: split ?? 0,
    ...mixOf(data),
    chatTemplate: typeof t.chat_template === "string" ? place(t.chat_template) : t.chat_template,
    chatVariables: t.chat_template_kwargs,
    objective: objectiveOf(t.objective, place),
    rank: t.rank ?? rank,
    loraPlusRatio: own("lora_plus_ratio", t.lora_plus_ratio, DEFAULTS.lora_plus_ratio),
    init: own("init", initOf(t.from, adapter.init, t.init), "default"),
    layers: t.layers === undefined ? null : layersOf(t.layers),
    rankPattern: own("rank_pattern", t.rank_pattern ?? {}, {}),
    alphaPattern: own("alpha_pattern", t.alpha_pattern ?? {}, {}),
    initialAdapter: t.from === undefined ? null : place(t.from),
    optimizer: {
      learningRate: t.learning_rate,
      weightDecay: t.weight_decay,
      maxGradNorm: t.max_grad_norm === false ? null : t.max_grad_norm,
      ...(t.optimizer === "sgd"
        ? { name: "sgd", momentum: t.momentum, nesterov: t.nesterov }
        : { name: t.optimizer, beta1: t.betas[0], beta2: t.betas[1], eps: t.eps }),
    },
    schedule: { name: t.scheduler, warmup: t.warmup, minRatio: t.min_lr_ratio },
    ...lengthOf(adapter, defaults),
    seed: t.seed ?? hash(runSeed, hashText(t.name)),
    minDelta: t.patience === undefined ? DEFAULTS.min_delta : t.min_delta,
    evalEvery: heldOut(t.data) ? (t.eval_every ?? null) : null,
    halving: t.halving === undefined ? null : { group, ...t.halving },
  };
}

function sourceTable(path: string, rows: number | null | undefined, weight?: number): SourceTable {
  if (rows == null && weight === undefined) return path;
  return { path, ...(rows == null ? {} : { rows }), ...(weight === undefined ? {} : { weight }) };
}

/** The reverse: the table that resolves to this adapter, with nothing left to defaults. */
export function adapterTable(a: AdapterRecipe): Readonly<Record<string, unknown>> {
  const { optimizer, schedule } = a;
  const some = (table: object) => (Object.keys(table).length > 0 ? table : null);
  const changed: Readonly<Partial<Record<AdapterKey, unknown>>> = {
    data: {
      train: a.train.map((name, i) => sourceTable(name, a.mostRows?.train[i], a.mix?.weights[i])),
      ...(a.eval.length > 0 ? { eval: a.eval.map((name, i) => sourceTable(name, a.mostRows?.eval[i])) } : {}),
      ...(a.evalSplit > 0 ? { split: a.evalSplit } : {}),
      ...(a.mix ? { stop: a.mix.stop, shares: a.mix.by } : {}),
    },
    columns: some(a.columns),
    chat_template_kwargs: some(a.chatVariables),
    objective: objectiveTable(a.objective),
    rank_pattern: some(a.rankPattern),
    alpha_pattern: some(a.alphaPattern),
    init: a.initialAdapter === null || isSvdInit(a.init) ? a.init : null,
    from: a.initialAdapter,
    optimizer: optimizer.name,
    learning_rate: optimizer.learningRate,
    ...(optimizer.name === "sgd"
      ? { momentum: optimizer.momentum, nesterov: optimizer.nesterov }
      : { betas: [optimizer.beta1, optimizer.beta2], eps: optimizer.eps }),
    weight_decay: optimizer.weightDecay,
    max_grad_norm: optimizer.maxGradNorm ?? false,
    scheduler: schedule.name,
    warmup: schedule.warmup,
    min_lr_ratio: schedule.minRatio,
  };
  const others = OWN_KEYS.filter((key) => !hasKey(a.method, key));
  const table = ADAPTER_KEYS.filter((key) => !(others as readonly string[]).includes(key)).map((key) => [
    key,
    Object.hasOwn(changed, key) ? changed[key] : a[camel(key) as keyof AdapterRecipe],
  ]);
  return { name: a.name, ...Object.fromEntries(table.filter(([, value]) => value !== null && value !== undefined)) };
}
