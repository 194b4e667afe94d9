// What an adapter of a recipe becomes on a given base model: its linears, the factor on B A x, its steps and its micro-batches.

import { RequestError } from "../base/errors.ts";
import { alignUp, maxOf, sum } from "../base/shape.ts";
import { type ModelSpec, shortPositions } from "../base/spec.ts";
import { count, counted } from "../base/units.ts";
import { linearShape, modulesOf } from "../families/linears.ts";
import type { PlacedAdapter, PoolAdapter } from "../methods/adapter.ts";
import { isSvdInit } from "../methods/init.ts";
import { countParameters } from "../methods/layout.ts";
import { rankAt } from "../methods/placement.ts";
import { settingsOf } from "../methods/registry.ts";
import { isContrastive, referenceOf, rolloutsOf } from "../objectives/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { mixedCounts, type SourceMix } from "../schedule/mix.ts";
import { learns } from "../schedule/rate.ts";
import {
  cut,
  epochOrder,
  epochsBegun,
  type Lengths,
  stepsOf,
  stepsPerEpoch,
  totalSteps,
  totalTokens,
  type UnreadLengths,
  type Work,
} from "../schedule/steps.ts";

import { placeAdapter } from "./places.ts";

/** What the plan must know of an adapter's data. */
export type DataSummary = {
  /** Of each training and evaluation row; of a prompt, with an answer of the most tokens. */
  readonly train: RowCounts | readonly RowSummary[];
  readonly eval: RowCounts | readonly RowSummary[];
  /** How many training rows each source of the recipe has, in their order; left out where that is not known. */
  readonly sizes?: readonly number[];
  /** An adapter from a file that its preferences are measured against. */
  readonly reference?: PoolAdapter | null;
};
/** Tokens that each row feeds to the model, those of its longest sequence, and how many have a target. */
export type RowSummary = { readonly length: number; readonly longest: number; readonly targets: number };
/** The same of millions of rows, in three arrays. */
export type RowCounts = {
  readonly lengths: Lengths;
  readonly longest: Lengths;
  readonly targets: Lengths;
  /** Of rows that are yet to be read: `lengths` are found when they are asked for, the others are empty. */
  readonly unread?: UnreadCounts;
};
/** Tokens that a sequence has at most, and about the mean of rows' targets; of rows what steps need. */
export type UnreadCounts = { readonly longest: number; readonly targets: number; readonly lengths: UnreadLengths };

export function countsOf(rows: RowCounts | readonly RowSummary[]): RowCounts {
  if ("lengths" in rows) return rows;
  const all = (of: (row: RowSummary) => number) => rows.map(of);
  return { lengths: all((row) => row.length), longest: all((row) => row.longest), targets: all((row) => row.targets) };
}

export type AdapterPlan = PoolAdapter & {
  readonly name: string;
  readonly index: number;
  readonly recipe: AdapterRecipe;
  /** Of an adapter that answers prompts: the answers, each of the most tokens. */
  readonly work: Work;
  /** Of an adapter that answers prompts: the rows, a batch of them a step; null for others. */
  readonly prompts: Work | null;
  readonly rows: number;
  readonly evalRows: number;
  readonly steps: number;
  readonly stepsPerEpoch: number;
  readonly tokens: number;
  readonly parameters: number;
  /** Another adapter that its preferences are measured against, on the stages for a while before its first step. */
  readonly reference: PoolAdapter | null;
};

/** Adapters of a run, numbered from `first`. Throws RequestErrors where the model cannot have them. */
export function planAdapters(
  recipes: readonly AdapterRecipe[],
  spec: ModelSpec,
  data: readonly DataSummary[],
  tokensPerMicrobatch: number,
  first = 0,
): AdapterPlan[] {
  const adapters = recipes.map((recipe, i) => planAdapter(recipe, first + i, spec, data[i]!));
  for (const adapter of adapters) checkContrast(adapter, tokensPerMicrobatch);
  return adapters;
}

function planAdapter(recipe: AdapterRecipe, index: number, spec: ModelSpec, data: DataSummary): AdapterPlan {
  const places = placeAdapter(recipe, spec);
  if (isSvdInit(recipe.init)) checkDirections(recipe, places, spec);
  const { lengths } = countsOf(data.train);
  const ofRows = workOfRows(recipe, data);
  const rollouts = rolloutsOf(recipe.objective);
  if (rollouts) checkRopes(recipe, spec);
  const work = rollouts ? answersOf(ofRows, rollouts) : ofRows;
  checkLearns(recipe, totalSteps(work));
  return {
    name: recipe.name,
    index,
    recipe,
    work,
    prompts: rollouts ? { ...ofRows, epochs: null, steps: Math.ceil(totalSteps(work) / rollouts.iterations) } : null,
    ...(isSvdInit(recipe.init) ? { ...twice(places), trainedRank: places.rank } : places),
    method: recipe.method,
    ...(recipe.optimizer.name === "adamw" ? {} : { optimizer: recipe.optimizer.name }),
    ...settingsOf(recipe.method, recipe),
    // By the longest row that there may be, not by those of a batch, so that no row's numbers depend on another's length.
    ...(recipe.maxLength > (shortPositions(spec) ?? recipe.maxLength) ? { isLong: true } : {}),
    rows: lengths.length,
    evalRows: countsOf(data.eval).lengths.length,
    steps: totalSteps(work),
    stepsPerEpoch: stepsPerEpoch(ofRows) * (rollouts?.iterations ?? 1),
    tokens: totalTokens(work),
    parameters: countParameters(spec, spec.layers, places, recipe.method),
    reference: data.reference ?? null,
  };
}

/** The steps over the rows of its data. */
function workOfRows(recipe: AdapterRecipe, data: DataSummary): Work {
  const { batchSize, accumulation, epochs, steps, shuffle, seed } = recipe;
  const { lengths, unread } = countsOf(data.train);
  const sources =
    recipe.mix && data.sizes ? { sources: checkedMix(recipe, { ...recipe.mix, sizes: data.sizes }, lengths) } : {};
  const own = { lengths, batchSize, accumulation, epochs, steps, shuffle, seed };
  return { ...own, ...sources, ...(unread ? { unread: unread.lengths } : {}) };
}

/** The answers to all rows, as a run trains them: those to a batch of rows make a step, or several. */
function answersOf(rows: Work, { generations, iterations }: NonNullable<ReturnType<typeof rolloutsOf>>): Work {
  const { sources: _, ...of } = rows;
  return {
    ...of,
    lengths: [...rows.lengths].flatMap((length) => new Array<number>(generations).fill(length)),
    batchSize: rows.batchSize * generations,
    epochs: null,
    steps: rows.steps ?? totalSteps(rows) * iterations,
    shuffle: false,
  };
}

/** Throws a RequestError, `plan.rope`, where answers may be sampled with other factors of a LongRoPE than are learned. */
function checkRopes({ name, maxLength, objective }: AdapterRecipe, spec: ModelSpec): void {
  const short = shortPositions(spec);
  if (short === null || maxLength <= short) return;
  throw new RequestError(
    "plan.rope",
    `adapter '${name}': ${objective.name} samples within the model's first ${counted(short, "position")}, and max_length is ${count(maxLength)}`,
    `lower max_length to ${short}`,
  );
}

/** Of a mix: the order of an epoch is made whole, 8 bytes a row. */
const MOST_EPOCH_ROWS = 1e8;

/** Throws a RequestError, `plan.mix`, where a source has no row to train on, or an epoch would have too many. */
function checkedMix({ name, train }: AdapterRecipe, mix: SourceMix, lengths: Lengths): SourceMix {
  const wrong = (what: string, hint: string) => new RequestError("plan.mix", `adapter '${name}': ${what}`, hint);
  const empty = mix.sizes.indexOf(0);
  if (empty >= 0) throw wrong(`${train[empty]} has no row left to train on`, "leave it out, or lower data.split");
  const counts = mixedCounts(mix, lengths);
  const most = counts.indexOf(Math.max(...counts));
  if (sum(counts) <= MOST_EPOCH_ROWS) return mix;
  throw wrong(
    `by the weights an epoch takes ${counted(counts[most]!, "row")} of the ${count(mix.sizes[most]!)} of ${train[most]}; ` +
      `it has at most ${count(MOST_EPOCH_ROWS)} in all`,
    'give weights that are less unequal, or stop = "first_exhausted"',
  );
}

/** Where an adapter acts on the stages, what it keeps frozen included. */
export const stagePlaces = (recipe: AdapterRecipe, spec: ModelSpec): PlacedAdapter => {
  const places = placeAdapter(recipe, spec);
  return isSvdInit(recipe.init) ? twice(places) : places;
};

/** Twice the ranks, of an adapter that keeps its initial value. */
const twice = ({ places, ...uniform }: PlacedAdapter): PlacedAdapter => ({
  ...{ ...uniform, rank: 2 * uniform.rank },
  ...(places ? { places: { ...places, ranks: places.ranks.map((row) => row.map((rank) => 2 * rank)) } } : {}),
});

/** Throws a RequestError, `plan.rate`, where an adapter would come out as it began. */
function checkLearns({ name, schedule, optimizer: { learningRate } }: AdapterRecipe, steps: number): void {
  if (learns(schedule, learningRate, steps)) return;
  const all = steps === 1 ? "its only step" : `none of its ${steps} steps`;
  throw new RequestError(
    "plan.rate",
    `adapter '${name}' would learn nothing: ${all} has a learning rate ${steps === 1 ? "of 0" : "above 0"}` +
      ` (warmup = ${schedule.warmup}, learning_rate = ${learningRate})`,
    "lower warmup below the number of steps, train for more steps, or raise learning_rate",
  );
}

/** Throws a RequestError, `plan.rank`, where an adapter would begin with more of a weight than there is. */
function checkDirections({ name, init }: AdapterRecipe, places: PlacedAdapter, spec: ModelSpec): void {
  for (const { layer, linear } of modulesOf(spec)) {
    const { in: width, out } = linearShape(spec, linear, layer);
    const most = Math.min(width, out);
    const rank = rankAt(places, layer, linear);
    if (rank > most)
      throw new RequestError(
        "plan.rank",
        `adapter '${name}': ${linear} is [${out}, ${width}], and has no ${rank} directions for "${init}" to begin with`,
        `lower the rank to ${most}, or leave ${linear} out of the targets`,
      );
  }
}

/** Throws a RequestError, `plan.contrast`, where an adapter tells rows apart and each would be alone in its micro-batch. */
function checkContrast({ name, recipe, work }: AdapterPlan, tokensPerMicrobatch: number): void {
  if (!isContrastive(recipe.objective)) return;
  for (const { epoch, microBatches } of stepsOf(work, tokensPerMicrobatch)) {
    if (microBatches.some((rows) => rows.length > 1)) return;
    if (epoch > 0) break;
  }
  throw new RequestError(
    "plan.contrast",
    `adapter '${name}': ${recipe.objective.name} tells the rows of a micro-batch apart, and with ${counted(tokensPerMicrobatch, "token")} each row would be alone in its own`,
    "raise run.tokens_per_microbatch, or lower max_length",
  );
}

/** Padded rows of the largest pass that an adapter needs by itself: of a micro-batch, or of an evaluation. */
export function largestRows(
  { work, prompts, recipe }: AdapterPlan,
  data: DataSummary,
  tokensPerMicrobatch: number,
  rowTile: number,
): number {
  const heldOut = countsOf(data.eval).lengths;
  const evaluation = cut([...heldOut.keys()], heldOut, recipe.batchSize, tokensPerMicrobatch).map((rows) =>
    sum(rows.map((row) => heldOut[row]!)),
  );
  const isBound = prompts !== null || referenceOf(recipe.objective) !== null;
  return alignUp(maxOf([largestMicroBatch(work, tokensPerMicrobatch, isBound), ...evaluation, 1]), rowTile);
}

/**
 * Tokens of an adapter's largest micro-batch: over the first epochs' orders, or a bound where there are many epochs or others
 * are put together (`isBound`): rows that may be shorter than planned, or those that a reference is measured on.
 */
function largestMicroBatch(work: Work, tokensPerMicrobatch: number, isBound: boolean): number {
  const { lengths, batchSize, unread } = work;
  if (unread) return Math.max(unread.most, Math.min(tokensPerMicrobatch, batchSize * unread.most));
  const sorted = new Int32Array(lengths).sort().reverse();
  // A mixed epoch may repeat rows.
  const batch = work.sources ? batchSize * (sorted[0] ?? 0) : sum(sorted.subarray(0, batchSize));
  const bound = Math.max(sorted[0] ?? 0, Math.min(tokensPerMicrobatch, batch));
  const epochs = epochsBegun(work);
  if (isBound || epochs > 20) return bound;
  let most = 0;
  const perStep = batchSize * work.accumulation;
  for (let epoch = 0; epoch < epochs; epoch++) {
    const order = epochOrder(work, epoch);
    for (let from = 0; from < order.length; from += perStep) {
      const step = order.subarray(from, from + perStep);
      const tokens = sumOf(step, lengths);
      // One micro-batch, as it mostly is, needs no cut: steps may be millions.
      if (step.length <= batchSize && tokens <= tokensPerMicrobatch) most = Math.max(most, tokens);
      else
        for (const rows of cut([...step], lengths, batchSize, tokensPerMicrobatch)) most = Math.max(most, sumOf(rows, lengths));
    }
  }
  return most;
}

function sumOf(rows: ArrayLike<number>, lengths: Lengths): number {
  let tokens = 0;
  for (let i = 0; i < rows.length; i++) tokens += lengths[rows[i]!]!;
  return tokens;
}

/** Tokens of an adapter's longest sequence. Throws a RequestError, `plan.length`, where the model has fewer positions. */
export function longestRow(
  { name }: Pick<AdapterRecipe, "name">,
  spec: ModelSpec,
  { train, eval: heldOut }: DataSummary,
): number {
  let longest = 0;
  for (const rows of [train, heldOut].map(countsOf)) {
    for (const one of rows.longest) longest = Math.max(longest, one);
    longest = Math.max(longest, rows.unread?.longest ?? 0);
  }
  if (longest > spec.maxPositions)
    throw new RequestError(
      "plan.length",
      `adapter '${name}': a row has ${counted(longest, "token")}, the base model has ${counted(spec.maxPositions, "position")}`,
      `set max_length to ${spec.maxPositions} or fewer`,
    );
  return longest;
}

/** All that adapters ever are on the stages: they themselves, and what they are measured against. */
export const onStages = (adapters: readonly AdapterPlan[]): PoolAdapter[] =>
  adapters.flatMap((adapter) => (adapter.reference ? [adapter, adapter.reference] : [adapter]));
