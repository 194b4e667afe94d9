// An adapter that begins with parts of the frozen weights (engine/pool/svd-init.ts): its stages decompose them layer by layer,
// so that others train in between, and people hear how far it is. It may take minutes.

import { now } from "../../base/clock.ts";
import { layersIn } from "../../base/layers.ts";
import { range, sum } from "../../base/shape.ts";
import { counted } from "../../base/units.ts";
import { type Init, isSvdInit } from "../../methods/init.ts";
import { type AdapterSlot, admit } from "./slot.ts";

/** Milliseconds between two words about it. */
const SILENCE = 10_000;

/** Gives a slot to an adapter, as its recipe or `init` begins it; `progress` is called with texts meanwhile. */
export async function begin(
  { bus, plan: { stages }, adapter, slot }: AdapterSlot,
  progress: (text: string) => void,
  { init = adapter.recipe.init, silence = SILENCE }: { readonly init?: Init; readonly silence?: number } = {},
): Promise<void> {
  if (!isSvdInit(init)) {
    await admit(bus, slot, adapter, init);
    return;
  }
  const all = sum(stages.map(({ layerRange }) => layersIn(layerRange).length));
  progress(`begins as a part of the base model's weights (${init}), which is computed now`);
  let [done, last] = [0, now()];
  const through = async (stage: number): Promise<void> => {
    for (const layer of layersIn(stages[stage]!.layerRange)) {
      await admit(bus, slot, adapter, init, { stage, layer });
      done++;
      if (now() - last < silence) continue;
      last = now();
      progress(`${init}: ${done} of ${counted(all, "layer")} decomposed`);
    }
  };
  await Promise.all(range(bus.stages).map(through));
}
