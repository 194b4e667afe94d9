// The README.md of an adapter that is written as more than what was trained: with half of each rank what it began with.

import { range } from "../base/shape.ts";
import { LINEARS } from "../families/linears.ts";
import { rankAt, scaleAt, scaleOf } from "../methods/placement.ts";
import type { PeftAdapter } from "./peft.ts";

/** Of an adapter of doubled ranks: the ranks and scales that were trained, in Markdown. */
export function cardOf(adapter: PeftAdapter, { init }: { readonly init: string }): string {
  const { rank, places } = adapter;
  const scale = scaleOf({ ...adapter, method: adapter.method ?? "lora" });
  const what = places
    ? `A LoRA of the ranks and scales below that began with ${init}, written as a plain LoRA of twice the ranks: the first half of each rank was`
    : `A LoRA of rank ${rank / 2} and scale ${shown(scale)} that began with ${init}, written as a plain LoRA of rank ${rank}: the first half of its rank was`;
  return `${what}
trained, the second is what it began with, negated, so that it goes with the base model as it is (what PEFT writes with
path_initial_model_for_weight_conversion).
${places ? `\n${tableOf(adapter, places.ranks.length)}` : ""}`;
}

const shown = (value: number): string => `${Number(value.toPrecision(6))}`;

/** A line for each rank and scale: the linears that have them, and in which layers. */
function tableOf(adapter: PeftAdapter, layers: number): string {
  const of = { ...adapter, scale: 0 };
  const sites = LINEARS.map((linear) => ({
    linear,
    at: range(layers).map((layer) => ({ rank: rankAt(of, layer, linear), scale: scaleAt(of, layer, linear) })),
  }));
  const key = ({ rank, scale }: { readonly rank: number; readonly scale: number }) => `| ${rank / 2} | ${shown(scale)} |`;
  const kinds = [...new Set(sites.flatMap(({ at }) => at.filter(({ rank }) => rank > 0).map(key)))];
  const lines = kinds.map((kind) => {
    const layersOf = sites.map(({ linear, at }) => ({ linear, in: spans(range(layers).filter((i) => key(at[i]!) === kind)) }));
    const byLayers = Map.groupBy(
      layersOf.filter((of) => of.in !== ""),
      (of) => of.in,
    );
    return `${kind} ${[...byLayers].map(([span, of]) => `${of.map(({ linear }) => linear).join(", ")} of ${span}`).join("; ")} |`;
  });
  return ["| rank | scale | modules |", "| ---: | ---: | --- |", ...lines, ""].join("\n");
}

/** "layers 0, 3-5"; nothing for none. */
function spans(layers: readonly number[]): string {
  const starts = layers.filter((layer) => !layers.includes(layer - 1));
  const ends = layers.filter((layer) => !layers.includes(layer + 1));
  const ranges = starts.map((from, i) => (from === ends[i] ? `${from}` : `${from}-${ends[i]}`));
  return ranges.length === 0 ? "" : `${layers.length === 1 ? "layer" : "layers"} ${ranges.join(", ")}`;
}
