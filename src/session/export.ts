// Saving an adapter, and proving what was saved: it is read back, put in the live one's place, and must give the same loss.

import { RunError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { Blocks } from "../files/checkpoint.ts";
import { type PartOfWeight, readPeftAdapter, takenOffBy, writePeftAdapter } from "../files/peft.ts";
import { trainedHalf } from "../methods/halves.ts";
import type { Init } from "../methods/init.ts";
import { BLOCKS, type FactorTensor, factorsIn } from "../methods/layout.ts";
import { alphaOf, samePlaces, scaleOf } from "../methods/placement.ts";
import { DEFINITIONS, settingsOf } from "../methods/registry.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Row } from "../schedule/pack.ts";
import { evaluate } from "./evaluate.ts";
import { blocksOf, factorsOf } from "./parameters.ts";

/** Rows whose loss is compared. */
const PROBE_ROWS = 4;
/** Likelihoods are compared, whatever the objective was. */
const SFT = { name: "sft" } as const;
/** f32 is written and read without rounding, so that only a wrong file makes a difference. */
const TOLERANCE = 1e-6;

/**
 * Gives a slot to an adapter on all stages, initialised by `init`; null: all is zero, until it is written. `only`: one layer
 * of one stage (initialise.ts).
 */
export function admit(
  bus: Bus,
  slot: number,
  { rank, scale, targets, places, method = "lora", trainedRank, recipe }: AdapterPlan,
  init: Init | null = recipe.init,
  only?: { readonly stage: number; readonly layer: number },
): Promise<unknown> {
  const frozen = trainedRank === undefined ? {} : { trainedRank };
  const uneven = places ? { places } : {};
  const adapter = {
    rank,
    scale,
    targets,
    method,
    seed: recipe.seed,
    init,
    ...uneven,
    ...settingsOf(method, recipe),
    ...frozen,
  };
  if (only) return bus.request(only.stage, { type: "admit", slot, adapter, layer: only.layer });
  return Promise.all(range(bus.stages).map((stage) => bus.request(stage, { type: "admit", slot, adapter })));
}

/** Releases the memory of a slot on all stages. */
export const release = (bus: Bus, slot: number): Promise<unknown> =>
  Promise.all(range(bus.stages).map((stage) => bus.request(stage, { type: "release", slot })));

/** The parameters and moments of an adapter on all stages, after all requests before this one. */
export async function readState(bus: Bus, slot: number): Promise<Blocks[]> {
  const ask = (stage: number) => bus.request(stage, { type: "read", slot, what: BLOCKS });
  const all = await Promise.all(range(bus.stages).map(ask));
  return all.map(([params, m, v]) => ({ params: params!, m: m!, v: v! }));
}

export async function writeState(bus: Bus, slot: number, blocks: readonly Blocks[]): Promise<void> {
  await Promise.all(blocks.map((of, stage) => bus.request(stage, { type: "write", slot, blocks: of })));
}

/**
 * Puts a saved adapter into a slot. `fresh` initialises one of its kind there, where PEFT's files need the base
 * model's weights.
 */
export async function putSaved(
  bus: Bus,
  plan: Plan,
  adapter: AdapterPlan,
  slot: number,
  folder: string,
  fresh: (init: Init) => Promise<unknown>,
): Promise<void> {
  const init = takenOffBy(folder);
  await (init === null ? admit(bus, slot, adapter, "default") : fresh(init));
  const begun = init === null ? null : await gather(bus, plan, adapter, slot);
  await putFactors(bus, plan, adapter, slot, readFactors(folder, plan, adapter, begun));
}

/** All factors of an adapter, over all stages. */
async function gather(bus: Bus, plan: Plan, adapter: AdapterPlan, slot: number): Promise<FactorTensor[]> {
  const ask = (stage: number) => bus.request(stage, { type: "read", slot, what: ["params"] });
  const blocks = await Promise.all(range(bus.stages).map(ask));
  return factorsOf(
    plan,
    adapter,
    blocks.map(([params]) => params!),
  );
}

/** Replaces an adapter's factors on all stages. */
export async function putFactors(
  bus: Bus,
  plan: Plan,
  adapter: AdapterPlan,
  slot: number,
  factors: readonly FactorTensor[],
): Promise<void> {
  const blocks = blocksOf(plan, adapter, factors);
  await Promise.all(blocks.map((params, stage) => bus.request(stage, { type: "write", slot, blocks: { params } })));
}

/**
 * The factors of a PEFT adapter directory, in the order of the layers. `begun`: of an adapter that PEFT subtracts from the
 * base model, the factors of a fresh one, in the same order; their second half is what is subtracted.
 */
export function readFactors(
  folder: string,
  { spec }: Plan,
  adapter: AdapterPlan,
  begun: readonly FactorTensor[] | null = null,
): FactorTensor[] {
  const { name, targets, method, places } = adapter;
  const saved = readPeftAdapter(folder, spec, begun && partIn(begun));
  if (!samePlaces(saved, adapter, spec.layers))
    throw new RunError("export.mismatch", `adapter '${name}': the ranks or scales in ${folder} are not those in training`);
  return factorsIn({ from: 0, to: spec.layers }, targets, method, places).map((at) => ({
    ...at,
    values: saved.tensor(at.layer, at.linear, at.factor),
  }));
}

/** A0 and B0 out of [A0; A0] and [B0, -B0]. */
function partIn(begun: readonly FactorTensor[]): PartOfWeight {
  const at = new Map(begun.map((of) => [`${of.layer} ${of.linear} ${of.factor}`, of.values]));
  return ({ layer, linear, rank }) => {
    return trainedHalf({ a: at.get(`${layer} ${linear} A`)!, b: at.get(`${layer} ${linear} B`)! }, rank);
  };
}

/**
 * Writes `folder` as PEFT would and verifies it on a few of `samples`. Throws a RunError where the file is not what was
 * trained; the adapter in training is left as it was saved.
 */
export async function exportAdapter(
  bus: Bus,
  plan: Plan,
  adapter: AdapterPlan,
  slot: number,
  folder: string,
  samples: readonly Row[],
): Promise<void> {
  const { name } = adapter;
  const probe = samples.slice(0, PROBE_ROWS).map(({ ids, mask }) => ({ ids, mask }));
  const work = { slot, samples: probe, batchSize: adapter.recipe.batchSize, objective: SFT, references: null };
  const live = await evaluate(bus, plan, work).result;
  if (!Number.isFinite(live.loss))
    throw new RunError(
      "export.loss",
      `adapter '${name}': its loss is ${live.loss}, so it is not saved; lower the learning rate`,
    );
  write(plan, adapter, folder, await gather(bus, plan, adapter, slot));
  await putFactors(bus, plan, adapter, slot, readFactors(folder, plan, adapter));
  const saved = await evaluate(bus, plan, work).result;
  if (!(Math.abs(saved.loss - live.loss) <= TOLERANCE * Math.abs(live.loss)))
    throw new RunError(
      "export.mismatch",
      `adapter '${name}': read back from ${folder} it has a loss of ${saved.loss}, in training ${live.loss}`,
      "the disk or the file is not to be trusted; nothing else was overwritten",
    );
}

/** Writes an adapter from its blocks; what is read back must be equal to them, number by number. */
export function exportKept(plan: Plan, adapter: AdapterPlan, blocks: readonly Blocks[], folder: string): void {
  const params = blocks.map((of) => of.params);
  const factors = factorsOf(plan, adapter, params);
  write(plan, adapter, folder, factors);
  for (const [i, { values }] of readFactors(folder, plan, adapter).entries())
    if (values.some((value, at) => !Object.is(value, factors[i]!.values[at])))
      throw new RunError("export.mismatch", `adapter '${adapter.name}': what is in ${folder} is not what was trained`);
}

function write(
  { recipe: run, spec }: Plan,
  { recipe, rank, scale, targets, places, trainedRank }: AdapterPlan,
  folder: string,
  factors: readonly FactorTensor[],
): void {
  const { dropout, method } = recipe;
  // With a frozen half it is a LoRA of twice the rank and the same scale, as PEFT converts its own.
  const rslora = trainedRank === undefined && recipe.rslora;
  const alpha =
    trainedRank === undefined && scaleOf({ ...recipe, rank }) === scale ? recipe.alpha : alphaOf(scale, rank, rslora);
  const settings = settingsOf(method, recipe);
  const shared = DEFINITIONS[method].peft.shared?.tensors(spec, targets, rank, settings) ?? [];
  const begun = trainedRank === undefined ? null : { init: recipe.init };
  const placing = { rank, alpha, targets, rslora, ...(places ? { places } : {}) };
  writePeftAdapter(folder, { ...placing, dropout, method, settings, shared, begun, baseModel: run.model.path }, factors);
}
