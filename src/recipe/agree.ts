// Rules for several keys of an adapter, which the schema of one key cannot state. Keys that belong to another method, optimizer
// or objective are faults in the adapter; in [defaults] they are for the adapters that have it.

import { listed } from "../base/check.ts";
import { isSvdInit } from "../methods/init.ts";
import { MOST_RANK } from "../methods/layout.ts";
import type { OptimizerName } from "../methods/optimizers.ts";
import { DEFINITIONS, hasKey, OWN_KEYS, PEFT_METHODS } from "../methods/registry.ts";
import { isContrastive, OBJECTIVE_NAMES, objectiveFault, rowKindOf } from "../objectives/registry.ts";
import type { Fault } from "./faults.ts";
import type { Path } from "./places.ts";
import { hasWeights, heldOut } from "./resolve.ts";
import { type AdapterTable, DEFAULTS, type DefaultsTable } from "./schema.ts";

export function checkLength(
  { epochs, steps }: { epochs?: number | undefined; steps?: number | undefined },
  at: Path,
  faults: Fault[],
): void {
  if (epochs !== undefined && steps !== undefined)
    faults.push({ path: [...at, "steps"], message: "and epochs exclude each other; leave one out" });
}

/** Rules for two or more keys. */
export function checkTogether(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  sweep: AdapterTable["sweep"],
  at: Path,
  faults: Fault[],
): void {
  const all = { ...defaults, ...adapter };
  if (all.data === undefined) faults.push({ path: [...at, "data"], message: "is missing: it names the files of rows" });
  else if (typeof all.data === "object" && "train" in all.data && all.data.eval !== undefined && all.data.split)
    faults.push({ path: [...at, "data"], message: "has eval and split; leave one out" });
  if (typeof all.data === "object" && "train" in all.data) {
    const { train, eval: held = [], stop, shares } = all.data;
    if (hasWeights(held))
      faults.push({ path: [...at, "data", "eval"], message: "has weights; held-out rows are used once each" });
    if ((stop ?? shares) !== undefined && !hasWeights(train))
      faults.push({ path: [...at, "data"], message: "has stop or shares, and no source has a weight" });
  }
  if (all.format === "template" && !all.template)
    faults.push({ path: [...at, "template"], message: 'is missing: format "template" needs { prompt, completion }' });
  if (all.template && all.format !== "template")
    faults.push({ path: [...at, "template"], message: 'is given, but format is not "template"' });
  // in [defaults], evaluations are for adapters that have rows
  const { objective = DEFAULTS.objective } = all;
  const name = typeof objective === "string" ? objective : objective.name;
  const answersPrompts = OBJECTIVE_NAMES.includes(name) && rowKindOf({ name }) === "prompt";
  const asked = { eval_every: adapter.eval_every, patience: all.patience, halving: all.halving, metrics: all.metrics };
  for (const key of ["eval_every", "patience", "halving", "metrics"] as const)
    if (asked[key] !== undefined && !heldOut(all.data))
      faults.push({
        path: [...at, key],
        message: answersPrompts
          ? `needs held-out rows, which ${name} does not answer yet; leave it out`
          : "needs held-out rows: give data.eval or data.split",
      });
  if (all.patience !== undefined && all.eval_every === undefined)
    faults.push({ path: [...at, "patience"], message: "counts evaluations: give eval_every, the steps between them" });
  if (adapter.min_delta && all.patience === undefined)
    faults.push({ path: [...at, "min_delta"], message: "is for patience, which is not given; leave it out" });
  if (all.metrics?.goal !== undefined && all.metrics.best === undefined)
    faults.push({ path: [...at, "metrics"], message: "has a goal and no best, which it is of; leave it out" });
  if (all.metrics?.best !== undefined && all.eval_every === undefined)
    faults.push({ path: [...at, "metrics"], message: "best is the best of several evaluations: give eval_every" });
  if (all.halving !== undefined && adapter.halving?.group === undefined && sweep === undefined)
    faults.push({ path: [...at, "halving"], message: "compares the adapters of a sweep: give [adapter.sweep]" });
  checkOptimizer(adapter, defaults, at, faults);
  checkObjective(all, at, faults);
  if (adapter.init !== undefined && !isSvdInit(adapter.init) && all.from !== undefined)
    faults.push({ path: [...at, "init"], message: "is for a fresh adapter, and `from` continues one; leave one out" });
  checkMethod(adapter, defaults, at, faults);
  checkInit(adapter, defaults, ranksOf(adapter, defaults, sweep, at), at, faults);
  if (Array.isArray(all.targets) && new Set(all.targets).size < all.targets.length)
    faults.push({ path: [...at, "targets"], message: "names a linear layer twice" });
}

/** Keys for rows of another objective. */
function checkObjective(all: Omit<DefaultsTable & AdapterTable, "name">, at: Path, faults: Fault[]): void {
  const { objective = DEFAULTS.objective } = all;
  const name = typeof objective === "string" ? objective : objective.name;
  if (!OBJECTIVE_NAMES.includes(name)) return; // its schema has reported it
  const wrong = (key: string, message: string) => faults.push({ path: [...at, key], message });
  const lacks = objectiveFault(objective, {
    maxLength: all.max_length ?? DEFAULTS.max_length,
    isContinued: all.from !== undefined,
  });
  if (lacks !== null) wrong("objective", lacks);
  const kind = rowKindOf({ name });
  if (kind === "prompt" && heldOut(all.data))
    wrong("data", `has held-out rows, which ${name} does not answer yet; leave eval and split out`);
  if (kind !== "single" && kind !== "prompt")
    for (const [key, allowed] of [
      ["format", "auto"],
      ["train_on", "completion"],
    ] as const)
      if (all[key] !== undefined && all[key] !== allowed)
        faults.push({
          path: [...at, key],
          message: `is for supervised fine-tuning; leave it out with the objective ${name}`,
        });
  if (kind !== "single" && all.thoughts === "every-turn")
    wrong("thoughts", `is "every-turn", which is for supervised fine-tuning; leave it out with the objective ${name}`);
  if (kind === "prompt" && all.train_on === "all")
    wrong("train_on", `is "all", and ${name} learns its own answers alone; leave it out`);
  if (isContrastive({ name }) && all.batch_size === 1)
    faults.push({
      path: [...at, "batch_size"],
      message: `is 1: ${name} contrasts the rows of a micro-batch, so it needs 2 or more`,
    });
}

/** Keys of another method. */
function checkMethod(adapter: AdapterTable, defaults: DefaultsTable, at: Path, faults: Fault[]): void {
  const { method } = { ...DEFAULTS, ...defaults, ...adapter };
  for (const key of OWN_KEYS) {
    if (adapter[key] === undefined || hasKey(method, key)) continue;
    const of = PEFT_METHODS.filter((other) => hasKey(other, key)).map((other) => `"${other}"`);
    faults.push({ path: [...at, key], message: `is for the method ${of.join(" or ")}; leave it out with "${method}"` });
  }
}

/** All ranks of an adapter, each with its place: in the adapter, in its sweep, or in [defaults]. */
function ranksOf(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  sweep: AdapterTable["sweep"],
  at: Path,
): { readonly path: Path; readonly rank: number }[] {
  const { method, rank_pattern = {}, ...all } = { ...DEFAULTS, ...defaults, ...adapter };
  const { rank = DEFINITIONS[method].rank } = all;
  const placeOf = (key: "rank" | "rank_pattern"): Path => {
    if (sweep && Object.hasOwn(sweep, key)) return [...at, "sweep", key];
    return adapter[key] === undefined && defaults[key] !== undefined ? ["defaults", key] : [...at, key];
  };
  const patterns = hasKey(method, "rank_pattern") ? Object.entries(rank_pattern) : [];
  return [
    { path: placeOf("rank"), rank },
    ...patterns.map(([pattern, rank]) => ({ path: [...placeOf("rank_pattern"), pattern], rank })),
  ];
}

/**
 * What an initialisation needs: that of a part of the weight, that nothing changes the frozen copy or what it is subtracted
 * from.
 */
function checkInit(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  ranks: ReturnType<typeof ranksOf>,
  at: Path,
  faults: Fault[],
): void {
  const all = { ...DEFAULTS, ...defaults, ...adapter };
  const { init, method } = all;
  const isOfDefaults = all.from !== undefined && adapter.init === undefined; // which are for fresh adapters
  if (isOfDefaults || !hasKey(method, "init")) return;
  if (init === "orthogonal" && all.from === undefined)
    for (const { path, rank } of ranks)
      if (rank % 2 === 1)
        faults.push({ path, message: `is ${rank}, expected an even rank with the initialisation "orthogonal"` });
  if (!isSvdInit(init)) return;
  const wrong = (path: Path, why: string) => faults.push({ path, message: `${why} with the initialisation "${init}"` });
  const able = PEFT_METHODS.filter((name) => DEFINITIONS[name].beginsAsPart).map((name) => `"${name}"`);
  if (!DEFINITIONS[method].beginsAsPart) wrong([...at, "method"], `is "${method}", and has to be ${listed(able, "or")}`);
  if (all.dropout > 0) wrong([...at, "dropout"], `is ${all.dropout}: the weight's part would be dropped, too; leave it out`);
  if (all.weight_decay > 0)
    wrong([...at, "weight_decay"], `is ${all.weight_decay}: it would shrink the weight's part; leave it out`);
  for (const { path, rank } of ranks)
    if (2 * rank > MOST_RANK)
      wrong(path, `is ${rank}, and has to be ${MOST_RANK / 2} or less, for as much again is kept frozen,`);
}

const OPTIMIZER_KEYS = { betas: "adamw", eps: "adamw", momentum: "sgd", nesterov: "sgd" } as const;
/** Which of these an optimizer has the keys of. */
const keysLike = (optimizer: OptimizerName) => (optimizer === "sgd" ? "sgd" : "adamw");

/** Keys of another optimizer. */
function checkOptimizer(adapter: AdapterTable, defaults: DefaultsTable, at: Path, faults: Fault[]): void {
  const { optimizer, momentum, nesterov } = { ...DEFAULTS, ...defaults, ...adapter };
  for (const [key, of] of Object.entries(OPTIMIZER_KEYS) as [keyof typeof OPTIMIZER_KEYS, string][])
    if (adapter[key] !== undefined && of !== keysLike(optimizer))
      faults.push({ path: [...at, key], message: `is for ${of}; leave it out with the optimizer ${optimizer}` });
  if (optimizer === "sgd" && nesterov && momentum === 0)
    faults.push({ path: [...at, "nesterov"], message: "looks ahead by the momentum: give momentum, 0.9 for instance" });
}
