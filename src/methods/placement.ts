// Where an adapter acts: by one rank and scale on its targets in every layer, or by a table of them where layers and
// linears differ.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isOfExperts, LINEARS, type Linear, linearsOfModel } from "../families/linears.ts";
import type { Placed, PlacedAdapter, Placement, StageAdapter } from "./adapter.ts";
import { isScaled, type PeftMethod } from "./registry.ts";
import type { ExpertSharing } from "./sharing.ts";
import { sameTables } from "./tables.ts";

/** The rank of an adapter in a linear of a layer; 0 where it has nothing. */
export const rankAt = ({ rank, targets, places }: Placed, layer: number, linear: Linear): number =>
  places ? places.ranks[layer]![LINEARS.indexOf(linear)]! : targets.includes(linear) ? rank : 0;

/** The first layer in which it acts: -1 for one that trains the embedding, Infinity for one that acts in no layer. */
export function firstLayerOf({ targets, places, tables }: Placed): number {
  if (tables?.embedding) return -1;
  if (!places) return targets.length > 0 ? 0 : Number.POSITIVE_INFINITY;
  const first = places.ranks.findIndex((layer) => layer.some((rank) => rank > 0));
  return first < 0 ? Number.POSITIVE_INFINITY : first;
}

/** Which factors its experts share, where it acts in experts. */
export const sharingOf = ({ places }: Pick<Placed, "places">): ExpertSharing => places?.experts ?? "shared-outer";

/** The factor on B A there; 0 where it has nothing. */
export const scaleAt = (adapter: Placed & Pick<PlacedAdapter, "scale">, layer: number, linear: Linear): number =>
  adapter.places
    ? adapter.places.scales[layer]![LINEARS.indexOf(linear)]!
    : adapter.targets.includes(linear)
      ? adapter.scale
      : 0;

/** A table of places with a column for each linear of a model alone, in their order. */
export function placesOfModel(spec: Pick<ModelSpec, "family">, { ranks, scales, ...more }: Placement): Placement {
  const columns = linearsOfModel(spec).map((linear) => LINEARS.indexOf(linear));
  const of = (table: Placement["ranks"]) => table.map((row) => columns.map((column) => row[column]!));
  return { ranks: of(ranks), scales: of(scales), ...more };
}

/** A rank and a scale for each place, null for none. Uniform ones need no table, and get none, but for those in experts. */
export function placed(
  layers: number,
  at: (layer: number, linear: Linear) => Pick<PlacedAdapter, "rank" | "scale"> | null,
  sharing: ExpertSharing = "shared-outer",
): PlacedAdapter {
  const table = range(layers).map((layer) => LINEARS.map((linear) => at(layer, linear) ?? { rank: 0, scale: 0 }));
  const ranks = table.map((row) => row.map(({ rank }) => rank));
  const scales = table.map((row) => row.map(({ scale }) => scale));
  const targets = LINEARS.filter((_, i) => ranks.some((row) => row[i]! > 0));
  const rank = Math.max(1, ...ranks.flat());
  const used = table.flat().filter((site) => site.rank > 0);
  const scale = used[0]?.scale ?? 0;
  const isUniform = used.length === targets.length * layers && used.every((site) => site.rank === rank && site.scale === scale);
  if (targets.some(isOfExperts)) return { rank, scale, targets, places: { ranks, scales, experts: sharing } };
  return { rank, scale, targets, ...(isUniform ? {} : { places: { ranks, scales } }) };
}

/** Ranks of a linear that are trained, of an adapter with a frozen half; without `places` the same in all linears. */
export const trainedAt = (adapter: Placed & Pick<StageAdapter, "trainedRank">, layer: number, linear: Linear): number =>
  adapter.places && adapter.trainedRank !== undefined
    ? (rankAt(adapter, layer, linear) * adapter.trainedRank) / adapter.rank
    : (adapter.trainedRank ?? adapter.rank);

type Scaled = { readonly alpha: number; readonly rank: number; readonly rslora: boolean; readonly method: PeftMethod };

/**
 * The factor on B A x. Nothing else in the program divides alpha by rank (Hu et al. 2021; rsLoRA: Kalajdzievski 2023). VeRA
 * has none.
 */
export const scaleOf = ({ alpha, rank, rslora, method }: Scaled): number =>
  !isScaled(method) ? 1 : rslora ? alpha / Math.sqrt(rank) : alpha / rank;

/** The alpha of a scale: to 12 digits, so that a decimal one comes back as it was. */
export const alphaOf = (scale: number, rank: number, rslora: boolean): number =>
  Number((scale * (rslora ? Math.sqrt(rank) : rank)).toPrecision(12));

/**
 * Whether two adapters have the same ranks, and scales that differ by rounding alone, in every linear of every layer and in
 * both tables.
 */
export function samePlaces(
  a: Placed & Pick<PlacedAdapter, "scale">,
  b: Placed & Pick<PlacedAdapter, "scale">,
  layers: number,
): boolean {
  const close = (x: number, y: number) => Math.abs(x - y) <= 1e-9 * Math.abs(y);
  const acts = a.targets.some(isOfExperts);
  if (acts && sharingOf(a) !== sharingOf(b)) return false;
  const inLayers = range(layers).every((layer) =>
    LINEARS.every(
      (linear) =>
        rankAt(a, layer, linear) === rankAt(b, layer, linear) && close(scaleAt(a, layer, linear), scaleAt(b, layer, linear)),
    ),
  );
  return inLayers && sameTables(a.tables, b.tables);
}
