// An adapter in its slot on the stages: admitted, read, written, and filled from files.

import { RunError } from "../../base/errors.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import { type PartOfWeight, readPeftAdapter, takenOffBy } from "../../files/peft.ts";
import { trainedHalf } from "../../methods/halves.ts";
import type { Init } from "../../methods/init.ts";
import { type FactorTensor, tensorsIn } from "../../methods/layout.ts";
import { type Blocks, blocksIn, type OptimizerName } from "../../methods/optimizers.ts";
import { samePlaces } from "../../methods/placement.ts";
import { settingsOf } from "../../methods/registry.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import { blocksOf, factorsOf } from "./parameters.ts";

/** An adapter and its slot on the stages of a plan. */
export type AdapterSlot = {
  readonly bus: Bus;
  readonly plan: Plan;
  readonly adapter: AdapterPlan;
  readonly slot: number;
};

/**
 * Gives a slot to an adapter on all stages, initialised by `init`; null: all is zero, until it is written. `only`: one layer
 * of one stage (initialise.ts).
 */
export function admit(
  bus: Bus,
  slot: number,
  { rank, scale, targets, places, tables, method = "lora", optimizer, trainedRank, isLong, recipe }: AdapterPlan,
  init: Init | null = recipe.init,
  only?: { readonly stage: number; readonly layer: number },
): Promise<unknown> {
  const adapter = {
    ...{ rank, scale, targets, method, seed: recipe.seed, init },
    ...(places ? { places } : {}),
    ...(tables ? { tables } : {}),
    ...settingsOf(method, recipe),
    ...(optimizer === undefined ? {} : { optimizer }),
    ...(trainedRank === undefined ? {} : { trainedRank }),
    ...(isLong ? { isLong } : {}),
  };
  if (only) return bus.request(only.stage, { type: "admit", slot, adapter, layer: only.layer });
  return requestAll(bus, { type: "admit", slot, adapter });
}

/** Releases the memory of a slot on all stages. */
export const release = (bus: Bus, slot: number): Promise<unknown> => requestAll(bus, { type: "release", slot });

/** The parameters of an adapter and what its optimizer keeps, on all stages, after all requests before this one. */
export async function readState(bus: Bus, slot: number, optimizer: OptimizerName | undefined): Promise<Blocks[]> {
  const what = blocksIn(optimizer);
  const all = await requestAll(bus, { type: "read", slot, what });
  return all.map((of) => Object.fromEntries(of.map((values, i) => [what[i]!, values])) as unknown as Blocks);
}

/** An adapter that is set aside between two calls: its blocks on each stage, with gradients where it has some. */
export type AsideBlocks = Blocks & { readonly grads?: Float32Array };

/** Reads all that a slot holds and releases its memory. */
export async function setAside(
  bus: Bus,
  slot: number,
  optimizer: OptimizerName | undefined,
  hasGradients: boolean,
): Promise<AsideBlocks[]> {
  const what = [...blocksIn(optimizer), ...(hasGradients ? (["grads"] as const) : [])];
  const read = requestAll(bus, { type: "read", slot, what });
  const [all] = await Promise.all([read, release(bus, slot)]);
  return all.map((of) => Object.fromEntries(of.map((values, i) => [what[i]!, values])) as unknown as AsideBlocks);
}

export async function writeState(bus: Bus, slot: number, blocks: readonly AsideBlocks[]): Promise<void> {
  await Promise.all(blocks.map((of, stage) => bus.request(stage, { type: "write", slot, blocks: of })));
}

/**
 * Puts a saved adapter into a slot. `fresh` initialises one of its kind there, where PEFT's files need the base
 * model's weights.
 */
export async function putSaved(of: AdapterSlot, folder: string, fresh: (init: Init) => Promise<unknown>): Promise<void> {
  const init = takenOffBy(folder);
  await (init === null ? admit(of.bus, of.slot, of.adapter, "default") : fresh(init));
  const begun = init === null ? null : await gather(of);
  await putFactors(of, readFactors(folder, of.plan, of.adapter, begun));
}

/** The parameters of an adapter alone. */
export async function readParams({ bus, slot }: Pick<AdapterSlot, "bus" | "slot">): Promise<Pick<Blocks, "params">[]> {
  const blocks = await requestAll(bus, { type: "read", slot, what: ["params"] });
  return blocks.map(([params]) => ({ params: params as Float32Array }));
}

/** All factors of an adapter, over all stages. */
export async function gather(of: AdapterSlot): Promise<FactorTensor[]> {
  const blocks = await readParams(of);
  return factorsOf(
    of.plan,
    of.adapter,
    blocks.map(({ params }) => params),
  );
}

/** Replaces an adapter's factors on all stages. */
export async function putFactors({ bus, plan, adapter, slot }: AdapterSlot, factors: readonly FactorTensor[]): Promise<void> {
  const blocks = blocksOf(plan, adapter, factors);
  await Promise.all(blocks.map((params, stage) => bus.request(stage, { type: "write", slot, blocks: { params } })));
}

/**
 * The factors of a PEFT adapter directory, in the order of the layers. `begun`: of an adapter that PEFT subtracts from the
 * base model, the factors of a fresh one, in the same order; their second half is what is subtracted.
 */
function readFactors(
  folder: string,
  { spec }: Plan,
  adapter: AdapterPlan,
  begun: readonly FactorTensor[] | null = null,
): FactorTensor[] {
  const { name } = adapter;
  const saved = readPeftAdapter(folder, spec, begun && partIn(begun));
  if (!samePlaces(saved, adapter, spec.layers))
    throw new RunError("export.mismatch", `adapter '${name}': the ranks or scales in ${folder} are not those in training`);
  return tensorsIn(spec, { from: 0, to: spec.layers }, adapter).map((at) => ({
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
