// Ranges of a model's layers. They begin and end between two layers, or within one (families/parts.ts says where).

import * as v from "valibot";
import type { Output } from "./schema.ts";
import { range } from "./shape.ts";

const place = v.pipe(v.number(), v.minValue(0), v.multipleOf(0.5));

/** Layers from `from` on and below `to`; N.5 lies within layer N. */
export const layerRange = v.strictObject({ from: place, to: place });
export type LayerRange = Output<typeof layerRange>;

/** The layers of a range, in order; also those that it has only a part of. */
export function layersIn({ from, to }: LayerRange): readonly number[] {
  const first = Math.floor(from);
  return range(Math.ceil(to) - first).map((i) => first + i);
}

/** "0 to 15", or "0 to 16 (16 in part)". */
export function layersText(layers: LayerRange): string {
  const all = layersIn(layers);
  const text = all.length === 1 ? `${all[0]}` : `${all[0]} to ${all.at(-1)}`;
  const parts = new Set([layers.from, layers.to].filter((at) => !Number.isInteger(at)).map(Math.floor));
  return parts.size === 0 ? text : `${text} (${[...parts].join(" and ")} in part)`;
}
