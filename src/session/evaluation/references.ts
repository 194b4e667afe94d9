// References of preferences: the log-probabilities of an adapter's rows under its reference, computed once, when the adapter
// first has a slot. A function of its own data and settings, so the same whatever else is trained and after any interruption.

import { type Init, isSvdInit } from "../../methods/init.ts";
import { referenceOf } from "../../objectives/registry.ts";
import type { Row } from "../../schedule/pack.ts";
import { usedRows } from "../../schedule/steps.ts";
import type { AdapterData } from "../scheduling/adapter-state.ts";
import { begin } from "../state/initialise.ts";
import { type AdapterSlot, admit, putSaved } from "../state/slot.ts";
import { checkModel, checkSource } from "../state/sources.ts";
import { runThrough } from "./evaluate.ts";

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
  at: AdapterSlot,
  data: AdapterData,
  known: References | null,
  { isKept, notify, model }: { readonly isKept: boolean; readonly notify: (text: string) => void; readonly model: string },
): Promise<References | null> {
  const { bus, plan, adapter, slot } = at;
  const { objective, initialAdapter, init } = adapter.recipe;
  const reference = known ? null : referenceOf(objective);
  const fresh = async (of: AdapterSlot, init: Init) => {
    await begin(of, notify, { init });
    if (isSvdInit(init) && model !== "") checkModel(plan.recipe.model.path, model); // its weights have been read again
  };
  const take = async (folder: string, of: AdapterSlot) => {
    await putSaved(of, folder, (init) => fresh(of, init));
    checkSource(data.sources ?? [], folder);
  };
  const measure = () => referencesOf(at, data);
  let found = known;
  if (reference === "base") {
    await admit(bus, slot, adapter, "default");
    found = await measure();
  }
  if (reference !== null && typeof reference === "object") {
    const { trainedRank: _, places: __, tables: ___, ...own } = adapter; // it has places of its own, and is not trained
    await take(reference.folder, { ...at, adapter: { ...own, ...adapter.reference! } });
    found = await measure();
  }
  // The saved state will replace it: no need to compute an initialisation that nothing is measured with.
  if (isKept && reference !== "start") await admit(bus, slot, adapter, "default");
  else if (initialAdapter === null) await fresh(at, init);
  else await take(initialAdapter, at);
  if (reference === "start") found = await measure();
  return found;
}

async function referencesOf({ bus, plan, adapter, slot }: AdapterSlot, data: AdapterData): Promise<References> {
  const { batchSize } = adapter.recipe;
  const score = async (samples: readonly Row[], rows: readonly number[]): Promise<RowReferences> => {
    const through = runThrough(bus, plan, { slot, samples, rows, batchSize, objective: { name: "sft" }, references: null });
    const pairs = (await through.result).flatMap(({ rows: of, losses }) =>
      of.map((row, i) => [row, [-losses[2 * i]!.loss, -losses[2 * i + 1]!.loss]] as const),
    );
    return new Map(pairs);
  };
  return { train: await score(data.train, usedRows(adapter.work)), eval: await score(data.eval, [...data.eval.keys()]) };
}
