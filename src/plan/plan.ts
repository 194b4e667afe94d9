// What a run will do, from numbers alone: steps, tokens, parameters, memory. Nothing is opened and nothing is started here.

import type { BankAdapter } from "../adapter/bank.ts";
import { formatBytes } from "../base/bytes.ts";
import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { countParameters, groupsOf } from "../base/layout.ts";
import { alignUp, maxOf, sum } from "../base/shape.ts";
import { type Linear, type ModelSpec, tableRows } from "../base/spec.ts";
import type { DeviceReport } from "../device/open.ts";
import type { Recomputation } from "../model/buffers.ts";
import type { Part } from "../model/weights.ts";
import type { AdapterRecipe, Recipe } from "../recipe/recipe.ts";
import { cut, epochOrder, stepsPerEpoch, totalSteps, totalTokens, type Work } from "../schedule/steps.ts";
import { resolveTargets, scaleOf } from "./adapters.ts";
import { type MemoryParts, type StageSizes, stageMemory } from "./memory.ts";

/** Tokens of an adapter's micro-batch at most, unless the recipe says; the same on every device, since it decides sums. */
export const DEFAULT_TOKENS = 4096;
/**
 * Rows of a pass: enough to keep a GPU busy. A CPU's cores are busy with a few hundred, and more cost memory: four adapters of
 * 4 x 64 tokens on SmolLM2-135M gave 234 tokens/s in 1199 MiB with 288 rows, 246 in 1738 MiB with 1200 (medians of three runs
 * in turn on a busy machine, 210 to 246 and 237 to 252).
 */
const PASS_ROWS = { cpu: 288, cuda: 4096 };
/**
 * Rows of a chunk of logits, most first, and its bytes at the most. The gradient of its input is a product of few tiles: with 1024
 * rows and a hidden size of 4096 they fill a GPU's multiprocessors, with 640 two thirds of them.
 */
const CHUNK_ROWS = { cpu: [120, 24], cuda: [2048, 1024, 512, 256, 128] };
const CHUNK_BYTES = 320 * 2 ** 20;

/** What is tried when the recipe does not say, the first that fits: on a CPU selective costs less than the memory traffic it saves. */
const RECOMPUTATIONS = { cpu: ["selective", "full"], cuda: ["none", "selective", "full"] } as const;

/** What the plan must know of an adapter's data. */
export type DataSummary = {
  /** Tokens that each training and evaluation row feeds to the model, and how many of them have a target. */
  readonly train: readonly RowSummary[];
  readonly eval: readonly RowSummary[];
};
export type RowSummary = { readonly length: number; readonly targets: number };

export type AdapterPlan = BankAdapter & {
  readonly name: string;
  readonly index: number;
  readonly recipe: AdapterRecipe;
  readonly work: Work;
  readonly rows: number;
  readonly evalRows: number;
  readonly steps: number;
  readonly stepsPerEpoch: number;
  readonly tokens: number;
  readonly parameters: number;
};

export type Plan = {
  readonly recipe: Recipe;
  readonly spec: ModelSpec;
  readonly device: DeviceReport;
  readonly adapters: readonly AdapterPlan[];
  readonly part: Part;
  readonly sizes: StageSizes;
  /** Tokens of an adapter's own micro-batch at most. */
  readonly budget: number;
  /** Rows of a pass, which adapters share, at most; a larger micro-batch runs alone. */
  readonly passRows: number;
  readonly memory: MemoryParts;
};

export function makePlan(recipe: Recipe, spec: ModelSpec, data: readonly DataSummary[], device: DeviceReport): Plan {
  const budget = recipe.run.tokensPerMicrobatch ?? DEFAULT_TOKENS;
  const adapters = recipe.adapters.map((adapter, index) => planAdapter(adapter, index, spec, data[index]!));
  const positions = maxOf(data.flatMap(({ train, eval: held }) => [...train, ...held].map(({ length }) => length)));
  checkPositions(recipe, spec, data);
  const passRows = Math.min(budget, PASS_ROWS[device.kind]);
  const rows = mostRows(adapters, data, budget, passRows, device.rowTile);
  const chunkBytes = (count: number) => count * tableRows(spec) * bytesOf(device.compute);
  const chunk = CHUNK_ROWS[device.kind].find((count) => chunkBytes(count) <= CHUNK_BYTES) ?? device.rowTile;
  const part = { from: 0, to: spec.layers, first: true, last: true };
  const sizesFor = (recomputation: Recomputation): StageSizes => ({
    rows,
    targets: rows,
    chunk: Math.min(rows, chunk),
    layers: spec.layers,
    rank: padRank(adapters, device),
    groups: groupsOf(adapters.flatMap(({ targets }) => targets)),
    recomputation,
    inFlight: 1,
    positions,
  });
  const memoryFor = (sizes: StageSizes) => stageMemory(spec, part, adapters, sizes, device);
  const wanted = recipe.run.recomputation;
  const choices: readonly Recomputation[] = wanted === "auto" ? RECOMPUTATIONS[device.kind] : [wanted];
  const fits = (choice: Recomputation) => totalBytes(memoryFor(sizesFor(choice))) <= device.freeBytes;
  const recomputation = choices.find(fits);
  if (!recomputation) throw tooLarge(memoryFor(sizesFor(choices.at(-1)!)), device, budget);
  const sizes = sizesFor(recomputation);
  return { recipe, spec, device, adapters, part, sizes, budget, passRows, memory: memoryFor(sizes) };
}

export const totalBytes = (memory: MemoryParts): number => sum(Object.values(memory));

function planAdapter(recipe: AdapterRecipe, index: number, spec: ModelSpec, data: DataSummary): AdapterPlan {
  const targets: readonly Linear[] = resolveTargets(recipe, spec);
  const { batchSize, accumulation, epochs, steps, shuffle, seed } = recipe;
  const lengths = data.train.map(({ length }) => length);
  const work: Work = { lengths, batchSize, accumulation, epochs, steps, shuffle, seed };
  return {
    name: recipe.name,
    index,
    recipe,
    work,
    rank: recipe.rank,
    scale: scaleOf(recipe),
    targets,
    rows: lengths.length,
    evalRows: data.eval.length,
    steps: totalSteps(work),
    stepsPerEpoch: stepsPerEpoch(work),
    tokens: totalTokens(work),
    parameters: countParameters(spec, spec.layers, targets, recipe.rank),
  };
}

/** The rank that all adapters' factors are padded to: one that the device's kernels know. */
function padRank(adapters: readonly AdapterPlan[], { paddedRanks, name }: DeviceReport): number {
  const largest = adapters.reduce((a, b) => (b.rank > a.rank ? b : a));
  if (paddedRanks.length === 0) return largest.rank;
  const padded = paddedRanks.find((rank) => rank >= largest.rank);
  if (padded === undefined)
    throw new RequestError(
      "plan.rank",
      `adapter '${largest.name}' has rank ${largest.rank}; the kernels for ${name} go up to ${paddedRanks.at(-1)}`,
      `lower the rank to ${paddedRanks.at(-1)}, or train on the cpu device`,
    );
  return padded;
}

/**
 * The largest pass that can come: no more than `passRows` (a micro-batch over it runs alone, so room for the largest is made),
 * and no more than all adapters' largest micro-batches together.
 */
function mostRows(
  adapters: readonly AdapterPlan[],
  data: readonly DataSummary[],
  budget: number,
  passRows: number,
  rowTile: number,
): number {
  const largest = adapters.map(({ work, recipe }, i) => {
    const held = data[i]!.eval.map(({ length }) => length);
    const evaluation = cut([...held.keys()], held, recipe.batchSize, budget).map((rows) => sum(rows.map((row) => held[row]!)));
    return alignUp(maxOf([largestMicroBatch(work, budget), ...evaluation, 1]), rowTile);
  });
  return Math.max(Math.min(sum(largest), alignUp(passRows, rowTile)), maxOf(largest));
}

/** Tokens of an adapter's largest micro-batch: over the first epochs' orders, or a bound where there are many epochs. */
function largestMicroBatch(work: Work, budget: number): number {
  const { lengths, batchSize } = work;
  const sorted = [...lengths].sort((a, b) => b - a);
  const bound = Math.max(sorted[0] ?? 0, Math.min(budget, sum(sorted.slice(0, batchSize))));
  const epochs = Math.ceil(totalSteps(work) / stepsPerEpoch(work));
  if (epochs > 20) return bound;
  let most = 0;
  const perStep = batchSize * work.accumulation;
  for (let epoch = 0; epoch < epochs; epoch++) {
    const order = epochOrder(work, epoch);
    for (let from = 0; from < order.length; from += perStep)
      for (const rows of cut(order.slice(from, from + perStep), lengths, batchSize, budget))
        most = Math.max(most, sum(rows.map((row) => lengths[row]!)));
  }
  return most;
}

function checkPositions(recipe: Recipe, spec: ModelSpec, data: readonly DataSummary[]): void {
  for (const [i, { train, eval: held }] of data.entries()) {
    const longest = maxOf([...train, ...held].map(({ length }) => length));
    if (longest > spec.maxPositions)
      throw new RequestError(
        "plan.length",
        `adapter '${recipe.adapters[i]!.name}': a row has ${longest} tokens, the base model has ${spec.maxPositions} positions`,
        `set max_length to ${spec.maxPositions} or fewer`,
      );
  }
}

function tooLarge(memory: MemoryParts, device: DeviceReport, budget: number): RequestError {
  const parts = Object.entries(memory).map(([part, bytes]) => `${part} ${formatBytes(bytes)}`);
  return new RequestError(
    "plan.memory",
    `the run needs ${formatBytes(totalBytes(memory))} on ${device.name}, which has ${formatBytes(device.freeBytes)} free: ${parts.join(", ")}`,
    `lower run.tokens_per_microbatch (now ${budget}), batch_size, max_length or the number of adapters`,
  );
}
