// The parameters of an adapter before its first step: a function of its seed, or of the base model's weights.

import { sleep } from "../../base/clock.ts";
import type { LayerRange } from "../../base/layers.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { matrix } from "../../device/algebra.ts";
import { LINEARS, type Linear, linearShape } from "../../families/linears.ts";
import type { PartOfWeight } from "../../files/peft.ts";
import type { StageAdapter } from "../../methods/adapter.ts";
import { withFrozenA, withFrozenB } from "../../methods/halves.ts";
import type { Init } from "../../methods/init.ts";
import { isOfTable, tensorsIn } from "../../methods/layout.ts";
import { rankAt, scaleAt } from "../../methods/placement.ts";
import type { TableKind } from "../../methods/tables.ts";
import { type OriginalWeight, originalWeights } from "../weights/weight-source.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import { beginsAsZero, initialise, initialiseTable, isRandom, type Random } from "./random-init.ts";
import { svdFactors } from "./svd-init.ts";

type InitialisedAdapter = StageAdapter & { readonly init: Init };
type Place = { readonly layer: number; readonly linear: Linear };
/** Rows of a table of the base model, f32[tokens, hidden]. */
export type RowsOfTable = (kind: TableKind, tokens: readonly number[]) => Promise<Float32Array>;

/**
 * Gives the adapter in `slot`, which is all zero, its first values in the layers of `layerRange`. A weight that is decomposed
 * takes up to seconds; signals and messages come through between two weights.
 */
export async function fillInitial(
  pool: AdapterPool,
  {
    spec,
    layerRange,
    original,
    rowsOf,
  }: {
    readonly spec: ModelSpec;
    readonly layerRange: LayerRange;
    readonly original: OriginalWeight;
    /** Of adapters that train rows of tokens. */
    readonly rowsOf?: RowsOfTable;
  },
  slot: number,
  adapter: InitialisedAdapter,
): Promise<void> {
  const { init } = adapter;
  let begun: ReturnType<typeof svdInitial> | null = null;
  let memory = new Float32Array(); // new pages take longer than the numbers in them
  for (const tensor of tensorsIn(spec, layerRange, adapter)) {
    const place = pool.place(slot, tensor.layer, tensor.linear, tensor.factor);
    const { rows, columns } = place;
    if (isOfTable(tensor)) {
      const { linear: kind, factor } = tensor;
      const table = adapter.tables![kind]!;
      const values =
        factor !== "rows"
          ? initialiseTable(init as Random, { seed: adapter.seed, kind, factor, rows, columns })
          : await rowsOf!(kind, "tokens" in table ? table.tokens : []);
      pool.writeFactor(slot, place, values);
      continue;
    }
    const { layer, linear, factor } = tensor;
    if (isRandom(init)) {
      if (beginsAsZero(init, factor)) continue;
      const at = { layer, linear, factor, rows, columns, rankOfEach: rankAt(adapter, layer, linear) };
      if (memory.length < rows * columns) memory = new Float32Array(rows * columns);
      const into = memory.subarray(0, rows * columns);
      pool.writeFactor(slot, place, initialise(init, { ...adapter, ...at }, into));
    } else if (factor === "A") {
      await sleep(0);
      begun = svdInitial(spec, adapter, { layer, linear }, original);
      pool.writeFactor(slot, place, begun.a);
    } else if (factor === "B") pool.writeFactor(slot, place, begun!.b);
  }
}

type Of = { readonly spec: ModelSpec; readonly original: OriginalWeight; readonly seed: number };

/** A0 [rank, in] and B0 [out, rank] of the weight of a linear. */
function partOf({ spec, original, seed }: Of, at: Place & Pick<InitialisedAdapter, "init" | "rank" | "scale">) {
  const { layer, linear, init, rank, scale } = at;
  const { in: width, out } = linearShape(spec, linear, layer);
  const weight = matrix(out, width, Float64Array.from(original(layer, linear)));
  return svdFactors(init, weight, rank, scale, [seed, layer, LINEARS.indexOf(linear)]);
}

/** The parts of the weights in `folder` that PEFT subtracts for an adapter with an SVD initialisation. */
export function partOfWeights(folder: string, spec: ModelSpec): PartOfWeight {
  const original = originalWeights({ folder }, spec);
  return (at) => partOf({ spec, original, seed: 0 }, at); // exact decompositions need no seed
}

/** A [rank, in] and B [out, rank] begin as a part of the weight; their second half, A0 and -B0, subtracts it and stays. */
function svdInitial(spec: ModelSpec, adapter: InitialisedAdapter, { layer, linear }: Place, original: OriginalWeight) {
  const { init, seed } = adapter;
  const [rank, scale] = [rankAt(adapter, layer, linear), scaleAt(adapter, layer, linear)];
  const trained = rank / 2;
  const begun = partOf({ spec, original, seed }, { layer, linear, init, rank: trained, scale });
  return { a: withFrozenA(begun.a, begun.a), b: withFrozenB(begun.b, begun.b, trained) };
}
