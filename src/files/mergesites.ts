// Which tensors of a model's files change where an adapter acts, and how the rows of each change. Experts lie in tensors of
// their own, or all of a linear's in one, as they are, [out, in], or turned.

import type { ModelSpec } from "../base/spec.ts";
import { expertLinear, isOfExperts, type Linear } from "../families/linears.ts";
import { layerTensors, weightName } from "../families/tensors.ts";
import type { MergeRows } from "../methods/definition.ts";
import { rankAt, scaleAt, sharingOf } from "../methods/placement.ts";
import { DEFINITIONS, type Factor } from "../methods/registry.ts";
import { turn } from "./factors.ts";
import type { SavedAdapter } from "./peft.ts";
import { isSharedFactor, oneExpert } from "./peftexperts.ts";

/** A linear; of experts `expert`, or all `experts` in one tensor, which has their matrices turned or not. */
export type Site = {
  readonly layer: number;
  readonly linear: Linear;
  readonly expert?: number;
  readonly experts?: { readonly count: number; readonly isTurned: boolean };
};

/** The tensors with a linear's weight. */
export function sitesOf(spec: ModelSpec, layer: number, linear: Linear): readonly (readonly [name: string, Site])[] {
  const at = { layer, linear };
  if (!isOfExperts(linear)) return [[weightName(spec, layer, linear), at]];
  const { product, index, experts: count, up } = expertLinear(spec, layer, linear);
  const { parts } = layerTensors(spec, layer).experts!.products[product === up ? "up" : "down"];
  if (product.files === "each") return parts.map((linears, expert) => [linears[index]!.name, { ...at, expert }] as const);
  return [[parts[0]![index]!.name, { ...at, experts: { count, isTurned: product.files === "columns" } }]];
}

/** What changes the rows of a tensor; a call has rows of one matrix, of which each has `each`. */
export type SiteMerge = { readonly each: number; readonly merge: MergeRows };

export function mergeOf(spec: ModelSpec, adapter: SavedAdapter, site: Site, rows: number, width: number): SiteMerge {
  const { layer, linear, expert, experts } = site;
  const [rank, scale] = [rankAt(adapter, layer, linear), scaleAt(adapter, layer, linear)];
  const factor = (name: string) => adapter.tensor(layer, linear, name as Factor);
  const by = (tensor: (name: string) => Float32Array) => DEFINITIONS[adapter.method].merge({ width, rank, scale, tensor });
  if (!isOfExperts(linear)) return { each: rows, merge: by(factor) };
  const factorOf = (name: "A" | "B", of: number): Float32Array =>
    isSharedFactor(spec, layer, linear, name, sharingOf(adapter))
      ? factor(name)
      : oneExpert(name, factor(name), rank, of, expertLinear(spec, layer, linear).experts);
  const mergeIn = (of: number): MergeRows => {
    const [a, b] = [factorOf("A", of), factorOf("B", of)];
    if (!experts?.isTurned) return by((name) => (name === "A" ? a : b));
    const [up, down] = [turned(a, rank), turned(b, b.length / rank)]; // of the turned product B A
    return by((name) => (name === "A" ? down : up));
  };
  if (!experts) return { each: rows, merge: mergeIn(expert!) };
  const each = rows / experts.count;
  let latest: { readonly expert: number; readonly merge: MergeRows } | null = null;
  return {
    each,
    merge: (values, first) => {
      const of = Math.floor(first / each);
      if (latest?.expert !== of) latest = { expert: of, merge: mergeIn(of) };
      latest.merge(values, first % each);
    },
  };
}

function turned(values: Float32Array, rows: number): Float32Array {
  const to = new Float32Array(values.length);
  turn(values, to, rows, values.length / rows);
  return to;
}
