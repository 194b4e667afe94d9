// References of preferences: the log-probabilities of an adapter's rows under its reference, computed once, when the adapter
// first has a slot. A function of its own data and settings, so the same whatever else is trained and after any interruption.

import type { Bus } from "../bus/bus.ts";
import { type Init, isSvdInit } from "../methods/init.ts";
import { referenceOf } from "../objectives/registry.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Row } from "../schedule/pack.ts";
import { epochOrder, totalSteps, type Work } from "../schedule/steps.ts";
import type { AdapterData } from "./adapter-state.ts";
import { runThrough } from "./evaluate.ts";
import { admit, putSaved } from "./export.ts";
import { begin } from "./initialise.ts";
import { checkModel, checkSource } from "./sources.ts";

/** Of each row that is used, the log-probabilities of its two sequences. */
export type RowReferences = ReadonlyMap<number, readonly [own: number, other: number]>;
export type References = { readonly train: RowReferences; readonly eval: RowReferences };

/**
 * Initialises the adapter in `slot`, and measures its reference on the way; null where its objective has none. An adapter
 * whose B is zero is the base model: it adds exact zeros. `isKept`: a later state of the adapter will be written into the
 * slot. `notify` is called with progress. `model`: the base model's fingerprint. Throws a RequestError, `resume.changed`,
 * where a file that was read has changed since the run began.
 */
export async function beginIn(
  bus: Bus,
  plan: Plan,
  adapter: AdapterPlan,
  slot: number,
  data: AdapterData,
  known: References | null,
  isKept = false,
  notify: (text: string) => void = () => undefined,
  model = "",
): Promise<References | null> {
  const { objective, initialAdapter, init } = adapter.recipe;
  const reference = known ? null : referenceOf(objective);
  const fresh = async (of: AdapterPlan, init: Init) => {
    await begin(bus, plan, of, slot, notify, { init });
    if (isSvdInit(init) && model !== "") checkModel(plan.recipe.model.path, model); // its weights have been read again
  };
  const take = async (folder: string, of: AdapterPlan) => {
    await putSaved(bus, plan, of, slot, folder, (init) => fresh(of, init));
    checkSource(data.sources ?? [], folder);
  };
  const measure = () => referencesOf(bus, plan, adapter, slot, data);
  let found = known;
  if (reference === "base") {
    await admit(bus, slot, adapter, "default");
    found = await measure();
  }
  if (reference !== null && typeof reference === "object") {
    const { trainedRank: _, places: __, ...own } = adapter; // it has places of its own, and is not trained
    const judge = { ...own, ...adapter.reference! };
    await take(reference.folder, judge);
    found = await measure();
  }
  // The saved state will replace it: no need to compute an initialisation that nothing is measured with.
  if (isKept && reference !== "start") await admit(bus, slot, adapter, "default");
  else if (initialAdapter === null) await fresh(adapter, init);
  else await take(initialAdapter, adapter);
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

/** The rows that the adapter trains on: in less than an epoch not all of them. */
function usedRows(work: Work): number[] {
  const rows = totalSteps(work) * work.batchSize * work.accumulation;
  const order = epochOrder(work, 0);
  return order.slice(0, Math.min(rows, order.length)).sort((a, b) => a - b);
}
