// Rows of tokens that serve both tables of a tied model lie on the first and on the last stage. They are one parameter: before
// a step both have the gradient that the one would have, and make the same step.

import type { ModelSpec } from "../../base/spec.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { sharesRows } from "../../methods/tables.ts";

/** Whether an adapter's step needs `sumShared`; a stage that has both tables sees to it by itself. */
export const needsSum = (bus: Pick<Bus, "stages">, spec: ModelSpec, { tables }: Pick<PoolAdapter, "tables">): boolean =>
  bus.stages > 1 && sharesRows(spec, tables);

/**
 * Whether the stages may be asked for an adapter's squares after each call whose gradients add up. Those of shared rows are
 * summed when they are asked for: before a step, once, so that sums are the same on one stage, on several and in a run.
 */
export const hasEarlySquares = (spec: ModelSpec, { tables }: Pick<PoolAdapter, "tables">): boolean => !sharesRows(spec, tables);

/**
 * To be called after the mini-batch's last backward pass on all stages: gives both stages the sum of the two gradients, added
 * as on one stage. Returns `squares`, those of each stage, with the sum counted once.
 */
export async function sumShared(
  bus: Pick<Bus, "stages" | "request">,
  slot: number,
  squares: readonly Float32Array[],
): Promise<Float32Array[]> {
  const last = bus.stages - 1;
  const share = (stage: number, what: "take" | "add" | "put", values?: Float32Array) =>
    bus.request(stage, { type: "share", slot, what, ...(values ? { values } : {}) });
  const squaresOf = async (stage: number) => (await bus.request(stage, { type: "squares", adapters: [slot] }))[0]!;
  const ofEmbedding = await share(0, "take");
  const first = await squaresOf(0); // without what is taken
  const sum = await share(last, "add", ofEmbedding);
  const found = squares.with(0, first).with(last, await squaresOf(last));
  await share(0, "put", sum);
  return found;
}

/**
 * The squares of an adapter's gradients on each stage, before its step; those of shared rows are summed first. `known`: those
 * that the stages gave after its last backward pass, null where they have to be asked.
 */
export async function squaresOf(
  bus: Bus,
  spec: ModelSpec,
  adapter: Pick<PoolAdapter, "tables">,
  slot: number,
  known: Promise<readonly Float32Array[]> | null = null,
): Promise<readonly Float32Array[]> {
  const own = known ? await known : (await requestAll(bus, { type: "squares", adapters: [slot] })).map(([of]) => of!);
  return needsSum(bus, spec, adapter) ? sumShared(bus, slot, own) : own;
}
