// What preferences are measured against: the log-probabilities of an adapter's rows under its reference, computed once, when the adapter first
// has a slot. A function of its own data and settings, so the same in any company and after any interruption.

import { referenceOf } from "../base/objective.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Row } from "../schedule/pack.ts";
import { epochOrder, totalSteps, type Work } from "../schedule/steps.ts";
import { begin } from "./begin.ts";
import { runThrough } from "./evaluate.ts";
import { admit, putSaved } from "./export.ts";
import type { AdapterData } from "./live.ts";

/** Of each row that is used, the log-probabilities of its two sequences. */
export type RowReferences = ReadonlyMap<number, readonly [own: number, other: number]>;
export type References = { readonly train: RowReferences; readonly eval: RowReferences };

/**
 * Makes the adapter in `slot` what it is before its first step, and measures its reference on the way; null where its objective has none.
 * An adapter whose B is zero is the base: it adds exact zeros. `isKept`: a later state of the adapter will be written into the slot. `told` hears of what takes long.
 */
export async function beginIn(
  bus: Bus,
  plan: Plan,
  adapter: AdapterPlan,
  slot: number,
  data: AdapterData,
  known: References | null,
  isKept = false,
  told: (text: string) => void = () => undefined,
): Promise<References | null> {
  const { objective, initialAdapter } = adapter.recipe;
  const reference = known ? null : referenceOf(objective);
  const measure = () => referencesOf(bus, plan, adapter, slot, data);
  let found = known;
  if (reference === "base") {
    await admit(bus, slot, adapter, "default");
    found = await measure();
  }
  if (reference !== null && typeof reference === "object") {
    const { trainedRank: _, ...own } = adapter; // of another rank, and nothing of it is trained
    const judge = { ...own, ...adapter.reference! };
    await putSaved(bus, plan, judge, slot, reference.folder, (init) => begin(bus, plan, judge, slot, told, { init }));
    found = await measure();
  }
  // What was kept will replace it: no need to compute a beginning that nothing is measured of.
  if (isKept && reference !== "start") await admit(bus, slot, adapter, "default");
  else if (initialAdapter === null) await begin(bus, plan, adapter, slot, told);
  else await putSaved(bus, plan, adapter, slot, initialAdapter, (init) => begin(bus, plan, adapter, slot, told, { init }));
  if (reference === "start") found = await measure();
  return found;
}

async function referencesOf(
  bus: Bus,
  plan: Plan,
  { recipe, work }: AdapterPlan,
  slot: number,
  data: AdapterData,
): Promise<References> {
  const score = async (samples: readonly Row[], rows: readonly number[]): Promise<RowReferences> => {
    const { batchSize } = recipe;
    const through = runThrough(bus, plan, { slot, samples, rows, batchSize, objective: { name: "sft" }, references: null });
    const pairs = (await through.result).flatMap(({ rows: of, losses }) =>
      of.map((row, i) => [row, [-losses[2 * i]!.loss, -losses[2 * i + 1]!.loss]] as const),
    );
    return new Map(pairs);
  };
  return { train: await score(data.train, usedRows(work)), eval: await score(data.eval, [...data.eval.keys()]) };
}

/** Rows that the adapter trains on at all: in less than an epoch not every one of them. */
function usedRows(work: Work): number[] {
  const rows = totalSteps(work) * work.batchSize * work.accumulation;
  const order = epochOrder(work, 0);
  return order.slice(0, Math.min(rows, order.length)).sort((a, b) => a - b);
}
