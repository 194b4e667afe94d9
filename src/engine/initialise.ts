// What an adapter's block on a stage is before its first step: a function of its seed, or of the base model's weights.

import { sleep } from "../base/clock.ts";
import type { ModelSpec } from "../base/spec.ts";
import { matrix } from "../device/algebra.ts";
import { LINEARS, type Linear, linearShape } from "../families/linears.ts";
import type { PartOfWeight } from "../files/peft.ts";
import type { StageAdapter } from "../methods/adapter.ts";
import { withFrozenA, withFrozenB } from "../methods/halves.ts";
import { factorsIn, type LayerRange, putFactor } from "../methods/layout.ts";
import { rankAt, scaleAt } from "../methods/placement.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import { initialise, isRandom } from "./random-init.ts";
import { svdFactors } from "./svd-init.ts";
import { type OriginalWeight, originalWeights } from "./weight-source.ts";

type Place = { readonly layer: number; readonly linear: Linear };

/**
 * Fills `block`, f32[layout.size] of the adapter in `slot`, in the layers of `part`. Where weights are decomposed it takes up to seconds for each; between two of them signals and
 * messages come through.
 */
export async function fillInitial(
  block: Float32Array,
  pool: AdapterPool,
  {
    spec,
    layerRange,
    original,
  }: { readonly spec: ModelSpec; readonly layerRange: LayerRange; readonly original: OriginalWeight },
  slot: number,
  adapter: StageAdapter,
): Promise<void> {
  const { init, targets, method, places } = adapter;
  let begun: ReturnType<typeof svdInitial> | null = null;
  for (const { layer, linear, factor } of factorsIn(layerRange, targets, method, places)) {
    const place = pool.place(slot, layer, linear, factor);
    const { rows, columns } = place;
    if (isRandom(init)) putFactor(block, place, initialise(init, { ...adapter, layer, linear, factor, rows, columns }));
    else if (factor === "A") {
      await sleep(0);
      begun = svdInitial(spec, adapter, { layer, linear }, original);
      putFactor(block, place, begun.a);
    } else if (factor === "B") putFactor(block, place, begun!.b);
  }
}

type Of = { readonly spec: ModelSpec; readonly original: OriginalWeight; readonly seed: number };

/** A0 [rank, in] and B0 [out, rank] of the weight of a linear. */
function partOf({ spec, original, seed }: Of, at: Place & Pick<StageAdapter, "init" | "rank" | "scale">) {
  const { layer, linear, init, rank, scale } = at;
  const { in: width, out } = linearShape(spec, linear);
  const weight = matrix(out, width, Float64Array.from(original(layer, linear)));
  return svdFactors(init, weight, rank, scale, [seed, layer, LINEARS.indexOf(linear)]);
}

/** What an adapter that PEFT takes off the model in `folder` takes off each of its weights. */
export function partOfWeights(folder: string, spec: ModelSpec): PartOfWeight {
  const original = originalWeights({ folder }, spec);
  return (at) => partOf({ spec, original, seed: 0 }, at); // exact ones need no seed
}

/** A [rank, in] and B [out, rank] begin as a part of the weight, and behind them stays what takes it off: A0 and -B0. */
function svdInitial(spec: ModelSpec, adapter: StageAdapter, { layer, linear }: Place, original: OriginalWeight) {
  const { init, seed } = adapter;
  const [rank, scale] = [rankAt(adapter, layer, linear), scaleAt(adapter, layer, linear)];
  const trained = rank / 2;
  const begun = partOf({ spec, original, seed }, { layer, linear, init, rank: trained, scale });
  return { a: withFrozenA(begun.a, begun.a), b: withFrozenB(begun.b, begun.b, trained) };
}
