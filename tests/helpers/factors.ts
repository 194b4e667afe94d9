// What a stage holds of an adapter, factor by factor: for tests that look into it.

import type { Stage } from "../../src/engine/stage.ts";
import { putFactor, takeFactor } from "../../src/files/factors.ts";
import { type FactorTensor, tensorsIn } from "../../src/methods/layout.ts";

/** The factors in a block of the stage's, as of the adapter in that slot. */
export function factorsOf(stage: Stage, slot: number, block: Float32Array): FactorTensor[] {
  return tensorsIn(stage.config.spec, stage.config.layerRange, stage.pool.adapter(slot)!).map((at) => ({
    ...at,
    values: takeFactor(block, stage.pool.place(slot, at.layer, at.linear, at.factor)),
  }));
}

export const readAdapter = async (stage: Stage, slot: number): Promise<FactorTensor[]> =>
  factorsOf(stage, slot, await stage.pool.read(slot, "params"));

/** Replaces the factors given; the rest of the adapter stays. */
export async function writeAdapter(stage: Stage, slot: number, factors: readonly FactorTensor[]): Promise<void> {
  const block = await stage.pool.read(slot, "params");
  for (const { layer, linear, factor, values } of factors)
    if (layer >= stage.config.layerRange.from && layer < stage.config.layerRange.to)
      putFactor(block, stage.pool.place(slot, layer, linear, factor), values);
  stage.pool.write(slot, "params", block);
}
