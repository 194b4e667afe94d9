// Which layers each stage of a pipeline holds: the stages get work that is as equal as halves of layers allow, attention and
// what follows it (families/parts.ts).
//
// Work is counted in operations of the frozen products, forward and gradient of the input alike, so in weights: a layer's, and
// on the last stage the output head's, for the share of all rows that have a target: only they pass it. The embedding costs a
// copy of rows, which is nothing compared with them.

import { RequestError } from "../base/errors.ts";
import { type LayerRange, layersIn } from "../base/layers.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { StageLayers } from "../engine/weights.ts";
import { linearElements, weightsPassed } from "../families/linears.ts";
import { canCut, operationsIn } from "../families/parts.ts";

/** Of the output head, in layers, where this share of all rows has a target. */
export function headWork(spec: ModelSpec, targets: number): number {
  return (targets * spec.vocab * spec.hidden) / (linearElements(spec) / spec.layers);
}

/** Of a range of layers, in layers of the mean. */
export const layerWork = (spec: ModelSpec, layers: LayerRange): number =>
  sum(layersIn(layers).map((layer) => weightsPassed(operationsIn(spec, layers, layer)))) / (linearElements(spec) / spec.layers);

/** Of a stage, in layers. */
export const partWork = (spec: ModelSpec, part: StageLayers, targets: number): number =>
  layerWork(spec, part) + (part.last ? headWork(spec, targets) : 0);

/**
 * The parts of `stages` stages, a number of them or the layers of each; `targets` is the share of rows that pass the head.
 * Throws a RequestError where there are more stages than layers, or where the layers given are not the model's.
 */
export function partition(spec: ModelSpec, stages: number | readonly number[], targets: number): readonly StageLayers[] {
  const ends = typeof stages === "number" ? balanced(spec, stages, targets) : given(spec, stages);
  return ends.map((to, i) => ({ from: ends[i - 1] ?? 0, to, first: i === 0, last: i === ends.length - 1 }));
}

/**
 * Layers that the last stage has at least: those that read the keys and values of others, and all from the first of these on,
 * for keys, values and their gradients stay on a stage.
 */
function fewestLast({ layers, kvSources }: ModelSpec): number {
  const sources = kvSources.filter((source) => source !== null);
  return sources.length === 0 ? 1 : layers - Math.min(...sources);
}

/** How many stages the model's layers can be divided among. */
export const mostStages = (spec: ModelSpec): number => spec.layers - fewestLast(spec) + 1;

/** Where the stages end that have as many layers as given. */
function given(spec: ModelSpec, layers: readonly number[]): readonly number[] {
  if (sum(layers) !== spec.layers)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${layers.join(" + ")} = ${sum(layers)} layers to its stages; the base model has ${spec.layers}`,
      `give numbers that add up to ${spec.layers}, or the number of stages alone`,
    );
  const fewest = fewestLast(spec);
  if (layers.length > 1 && layers.at(-1)! < fewest && fewest > 1)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${layers.at(-1)} layers to the last stage; the last ${fewest} layers share keys and values, and stay together`,
      `give ${fewest} or more to the last stage, or the number of stages alone`,
    );
  const ends = layers.map((_, i) => sum(layers.slice(0, i + 1)));
  const within = ends.find((end) => !Number.isInteger(end) && !canCut(spec, Math.floor(end)));
  if (within !== undefined)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${layers.join(" + ")} layers to its stages; layer ${Math.floor(within)} of the base model cannot be divided`,
      "give whole numbers, or the number of stages alone",
    );
  return ends;
}

/**
 * Where the stages end whose busiest has the least work; of such ends those that leave the others alike, and of these the
 * latest.
 */
function balanced(spec: ModelSpec, stages: number, targets: number): readonly number[] {
  const most = mostStages(spec);
  if (stages > most)
    throw new RequestError(
      "plan.stages",
      most === spec.layers
        ? `${stages} stages are more than the base model's ${spec.layers} layers`
        : `${stages} stages are too many: the last ${fewestLast(spec)} of the base model's ${spec.layers} layers share keys and values`,
      `set run.stages to ${most} or fewer`,
    );
  const fewest = fewestLast(spec);
  const isEnd = (end: number) => Number.isInteger(end) || canCut(spec, Math.floor(end));
  const places = range(2 * spec.layers + 1)
    .map((i) => i / 2)
    .filter((end) => isEnd(end) && (fewest === 1 || end <= spec.layers - fewest || end === spec.layers));
  const before = places.map((to) => layerWork(spec, { from: 0, to }));
  const head = headWork(spec, targets);
  const work = (from: number, to: number) => before[to]! - before[from]! + (to === places.length - 1 ? head : 0);
  const busiest = divided(places.length, stages, work, Math.max).cost;
  const alike = (from: number, to: number) => {
    const of = work(from, to);
    return of > busiest + 1e-9 ? Number.POSITIVE_INFINITY : of ** 2;
  };
  return divided(places.length, stages, alike, (a, b) => a + b).ends.map((place) => places[place]!);
}

/** The ends, of `count` places, of the parts that cost least together; of such ends the latest. */
function divided(
  count: number,
  parts: number,
  cost: (from: number, to: number) => number,
  together: (a: number, b: number) => number,
): { readonly cost: number; readonly ends: readonly number[] } {
  /** Of the places up to each, in as many parts as there are so far: the least cost, and where the part before ends. */
  let costs = range(count).map((to) => (to === 0 ? 0 : Number.POSITIVE_INFINITY));
  const lasts: number[][] = [];
  for (let part = 0; part < parts; part++) {
    const next = range(count).map(() => Number.POSITIVE_INFINITY);
    const last = range(count).map(() => 0);
    for (let to = part + 1; to < count; to++)
      for (let from = to - 1; from >= part; from--) {
        const of = together(costs[from]!, cost(from, to));
        if (of >= next[to]! - 1e-9) continue;
        next[to] = of;
        last[to] = from;
      }
    costs = next;
    lasts.push(last);
  }
  const ends = [count - 1];
  for (const last of lasts.toReversed().slice(0, -1)) ends.unshift(last[ends[0]!]!);
  return { cost: costs.at(-1)!, ends };
}
