// What may be asked of the primitives: all that is wrong with a call is found before anything is computed.

import { RequestError } from "../../base/errors.ts";
import type { Sampling } from "../../base/sample.ts";
import { count, counted } from "../../base/units.ts";
import type { GroupPolicy } from "../../objectives/group-policy.ts";
import type { PolicyLoss } from "../../objectives/policy.ts";
import { isContrastive, isPreference, type Objective, referenceOf, rowKindOf } from "../../objectives/registry.ts";
import type { Plan } from "../../plan/plan.ts";
import type { Optimizer } from "../../recipe/recipe.ts";
import { PIECE, promptRows } from "../../schedule/decode.ts";
import { longestSequence, type Row, segmentRows, sequencesOf, type Tokens } from "../../schedule/pack.ts";
import type { GenerationEngine } from "../decoding/generate.ts";

const SEED = 2 ** 32 - 1;
/** Logarithm of the largest weight that a policy may give a target. */
const MOST_WEIGHT = 69;

const isWhole = (value: unknown, from: number, to = Number.MAX_SAFE_INTEGER): boolean =>
  Number.isInteger(value) && (value as number) >= from && (value as number) <= to;

/** Throws a RequestError, `primitives.rows`. */
export function checkRows(
  name: string,
  vocab: number,
  rows: readonly Row[],
  objective: Objective,
  references: readonly (readonly [number, number])[] | undefined,
  policy: PolicyLoss | GroupPolicy | undefined,
): void {
  const refuse = (what: string, hint?: string) => new RequestError("primitives.rows", `adapter '${name}'${what}`, hint);
  if (rows.length === 0) throw refuse(" was given no rows");
  if (rowKindOf(objective) === "prompt" && !policy)
    throw refuse(`: ${objective.name} is trained by runs alone`, "give a policy, or another objective");
  const isPaired = !["single", "prompt"].includes(rowKindOf(objective));
  const weighted = rows.filter(({ weights }) => weights).length;
  if (weighted > 0 && isPreference(objective))
    throw refuse(
      `: the rows have weights, and ${objective.name} makes its own`,
      'leave the weights out, or take { name: "sft" }',
    );
  if (weighted > 0 && weighted < rows.length)
    throw refuse(`: ${weighted} of ${rows.length} rows have weights`, "give weights to all of them or to none");
  for (const [i, row] of rows.entries()) {
    const fault = (what: string, hint?: string) => refuse(`, row ${i}: ${what}`, hint);
    if (isPaired !== (row.other !== undefined))
      throw fault(`${objective.name} expects ${isPaired ? "two sequences" : "one sequence"}, found ${sequencesOf(row).length}`);
    if (rowKindOf(objective) === "labelled" && row.label === undefined)
      throw fault(`${objective.name} expects a label, found none`);
    for (const sequence of sequencesOf(row)) {
      const wrong = faultOf(sequence, vocab, isOfGroup(policy));
      if (wrong !== null) throw fault(wrong);
    }
  }
  const needed = isPreference(objective) && referenceOf(objective) !== null;
  if (needed !== (references !== undefined))
    throw refuse(
      `: ${objective.name} ${needed ? "is measured against a reference, and none was given" : "has no reference"}`,
      needed ? "give references: the log-probabilities of both sequences of each row" : "leave references out",
    );
  if (references && references.length !== rows.length)
    throw refuse(`: expected ${rows.length} references, found ${references.length}`);
  const odd = references?.findIndex((of) => of.length !== 2 || !of.every(Number.isFinite)) ?? -1;
  if (odd >= 0) throw refuse(`: expected two finite numbers as reference ${odd}, found ${references![odd]!.join(", ")}`);
  if (isOfGroup(policy)) checkCompletions(name, rows);
  else checkSampled(name, rows, objective, policy);
}

const isOfGroup = (policy: PolicyLoss | GroupPolicy | undefined): policy is GroupPolicy =>
  policy !== undefined && "form" in policy;

/** Throws a RequestError, `primitives.rows`, where rows are no completions of a group. */
function checkCompletions(name: string, rows: readonly Row[]): void {
  const odd = rows.findIndex(({ completion }) => completion === undefined);
  if (odd >= 0) throw new RequestError("primitives.rows", `adapter '${name}', row ${odd} is no completion`);
}

/** Throws a RequestError, `primitives.rows`, where rows and a policy's loss do not go together. */
function checkSampled(name: string, rows: readonly Row[], objective: Objective, policy: PolicyLoss | undefined): void {
  const refuse = (what: string) => new RequestError("primitives.rows", `adapter '${name}'${what}`);
  if (!policy) return;
  if (rowKindOf(objective) !== "single") throw refuse(`: ${objective.name} has rows of two sequences, a policy's have one`);
  for (const [i, { ids, mask, weights, sampled }] of rows.entries()) {
    if (weights) throw refuse(`, row ${i}: it has weights, and ${policy.name} makes its own`);
    if (sampled?.logProbs.length !== ids.length || sampled.advantages.length !== ids.length)
      throw refuse(`, row ${i}: ${policy.name} expects ${ids.length} log-probabilities and advantages`);
    for (let at = 1; at < ids.length; at++) {
      const [q, advantage] = [sampled.logProbs[at]!, sampled.advantages[at]!];
      if (mask[at] === 1 && !(Number.isFinite(advantage) && Number.isFinite(q)))
        throw refuse(`, row ${i}: token ${at} has the log-probability ${q} and the advantage ${advantage}`);
      // The ratio is exp(-q) at most: what would not be finite is refused before anything is added to the gradient.
      if (mask[at] === 1 && advantage !== 0 && Math.log(Math.abs(advantage)) - q > MOST_WEIGHT)
        throw refuse(`, row ${i}: the log-probability ${q} of token ${at} is too low for a token that was sampled`);
    }
  }
}

/** `mayBeIdle`: it is learned with others, and may be none of those that count. */
function faultOf({ ids, mask, weights, targets }: Tokens, vocab: number, mayBeIdle: boolean): string | null {
  const { length } = ids;
  if (length < 2) return `expected 2 tokens or more, found ${length}`;
  if (mask.length !== length) return `expected a mask of ${counted(length, "token")}, found ${count(mask.length)}`;
  if (weights && weights.length !== length) return `expected ${counted(length, "weight")}, found ${count(weights.length)}`;
  const unknown = ids.findIndex((id) => !isWhole(id, 0, vocab - 1));
  if (unknown >= 0) return `token ${unknown} is ${ids[unknown]}; the model has ${vocab}`;
  if (targets && targets.length !== length) return `expected ${length} targets, found ${targets.length}`;
  const missing = targets?.findIndex((id, i) => i > 0 && !isWhole(id, 0, vocab - 1)) ?? -1;
  if (missing > 0) return `the target of token ${missing} is ${targets![missing]}; the model has ${vocab}`;
  const odd = mask.findIndex((value) => value !== 0 && value !== 1);
  if (odd >= 0) return `expected 0 or 1 in the mask, found ${mask[odd]} at token ${odd}`;
  if (!mayBeIdle && !mask.includes(1, 1)) return "no token is a target: the mask has no 1 after the first token";
  for (const [i, weight] of weights?.entries() ?? []) {
    if (!Number.isFinite(weight)) return `the weight of token ${i} is ${weight}`;
    if (weight !== 0 && (i === 0 || mask[i] === 0)) return `token ${i} has the weight ${weight}, and is no target`;
  }
  return null;
}

/** Throws a RequestError, `primitives.rows`, where the stages have no room for the rows as they are cut. */
export function checkFits(
  name: string,
  { stages, device, tokensPerMicrobatch }: Plan,
  rows: readonly Row[],
  batches: readonly (readonly number[])[],
  objective: Objective,
): void {
  const { positions, rows: most } = stages[0]!.sizes;
  const hint = "open the primitives with a larger max_length";
  for (const [i, row] of rows.entries())
    if (longestSequence(row) > positions)
      throw new RequestError(
        "primitives.rows",
        `adapter '${name}', row ${i} has ${counted(longestSequence(row) + 1, "token")}; the stages have room for ${count(positions + 1)}`,
        hint,
      );
  for (const batch of batches) {
    const samples = batch.map((row) => rows[row]!);
    const needed = segmentRows(samples, device.rowTile);
    if (needed > most)
      throw new RequestError(
        "primitives.rows",
        `adapter '${name}': a micro-batch of ${counted(batch.length, "row")} takes ${counted(needed, "row")} of a pass; the stages have ${count(most)}`,
        hint,
      );
  }
  if (isContrastive(objective) && batches.every((batch) => batch.length < 2))
    throw new RequestError(
      "primitives.rows",
      `adapter '${name}': ${objective.name} contrasts the rows of a micro-batch, and each row is alone in its own`,
      `give 2 rows or more, of together ${counted(tokensPerMicrobatch, "token")} or fewer`,
    );
}

/** The settings of a step. Throws a RequestError, `primitives.step`. */
export function checkOptimizer(name: string, own: Optimizer, given: Partial<Optimizer>): Optimizer {
  const all = { ...own, ...given };
  const refuse = (what: string) => new RequestError("primitives.step", `adapter '${name}': ${what}`);
  if (all.name !== own.name) throw refuse(`its moments are those of ${own.name}, and the step is one of ${all.name}`);
  const expected: readonly (readonly [string, (value: number) => boolean, string])[] = [
    ["learningRate", (value) => value >= 0, "0 or more"],
    ["weightDecay", (value) => value >= 0, "0 or more"],
    ["maxGradNorm", (value) => value > 0, "above 0, or null"],
    ["beta1", (value) => value >= 0 && value < 1, "from 0 to below 1"],
    ["beta2", (value) => value >= 0 && value < 1, "from 0 to below 1"],
    ["eps", (value) => value > 0, "above 0"],
    ["momentum", (value) => value >= 0 && value < 1, "from 0 to below 1"],
  ];
  for (const [key, isFit, what] of expected) {
    if (!(key in own) || (key === "maxGradNorm" && all.maxGradNorm === null)) continue;
    const value: unknown = all[key as keyof typeof all];
    if (typeof value !== "number" || !Number.isFinite(value) || !isFit(value))
      throw refuse(`expected a number ${what} as ${key}, found ${value}`);
  }
  const unknown = Object.keys(given).find((key) => !(key in own));
  if (unknown !== undefined) throw refuse(`${own.name} has no ${unknown}; it has ${Object.keys(own).join(", ")}`);
  return all as Optimizer;
}

/** Throws a RequestError, `primitives.sample`. */
export function checkPrompts(
  { spec }: Plan,
  { sizes, tile, reading }: Pick<GenerationEngine, "sizes" | "tile" | "reading">,
  prompts: readonly ArrayLike<number>[],
  options: {
    readonly maxTokens: number;
    readonly n: number;
    readonly seed: number;
    readonly stops: readonly number[];
    readonly sampling?: Partial<Sampling>;
  },
): void {
  const refuse = (what: string, hint?: string) => new RequestError("primitives.sample", what, hint);
  const { maxTokens, n, seed, stops, sampling: { temperature = 0, topK = 0, topP = 1 } = {} } = options;
  const expected: readonly (readonly [string, unknown, boolean, string])[] = [
    ["maxTokens", maxTokens, isWhole(maxTokens, 1), "a whole number of 1 or more"],
    ["n", n, isWhole(n, 1), "a whole number of 1 or more"],
    ["seed", seed, isWhole(seed, 0, SEED), `a whole number from 0 to ${SEED}`],
    ["temperature", temperature, Number.isFinite(temperature) && temperature >= 0, "a number of 0 or more"],
    ["topK", topK, isWhole(topK, 0), "a whole number of 0 or more"],
    ["topP", topP, topP > 0 && topP <= 1, "a number above 0, up to 1"],
    ...stops.map((id) => ["stops", id, isWhole(id, 0, spec.vocab - 1), `tokens below ${spec.vocab}`] as const),
  ];
  for (const [key, value, isFit, what] of expected) if (!isFit) throw refuse(`expected ${what} as ${key}, found ${value}`);
  const { capacity } = sizes.cache;
  for (const [i, prompt] of prompts.entries()) {
    const { length } = prompt;
    if (length === 0) throw refuse(`prompt ${i} has no token`);
    const unknown = Array.from(prompt).findIndex((id) => !isWhole(id, 0, spec.vocab - 1));
    if (unknown >= 0) throw refuse(`prompt ${i}: token ${unknown} is ${prompt[unknown]}; the model has ${spec.vocab}`);
    const most = Math.min(capacity, spec.maxPositions);
    const atOnce = reading === "whole" ? length : Math.min(length, PIECE);
    if (length + maxTokens > most || (reading !== "rows" && promptRows(atOnce, tile) > sizes.rows))
      throw refuse(
        `prompt ${i} of ${counted(length, "token")} and ${count(maxTokens)} more: a sequence has ${count(most)} at most`,
        most < spec.maxPositions ? "open the primitives with a cache of more capacity" : "give it a shorter prompt",
      );
  }
}
