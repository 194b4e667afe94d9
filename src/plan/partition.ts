// Which layers each stage of a pipeline holds: the stages get work that is as equal as whole layers allow.
//
// Work is counted in operations of the frozen products, forward and gradient of the input alike, so in weights: a layer's, and
// on the last stage the output head's, for the share of all rows that have a target: only they pass it. The embedding costs a
// copy of rows, which is nothing compared with them.

import { RequestError } from "../base/errors.ts";
import { maxOf, range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { StageLayers } from "../engine/weights.ts";
import { linearElements } from "../families/linears.ts";

/** Of the output head, in layers, where this share of all rows has a target. */
export function headWork(spec: ModelSpec, targets: number): number {
  return (targets * spec.vocab * spec.hidden) / (linearElements(spec) / spec.layers);
}

/**
 * The parts of `stages` stages, a number of them or the layers of each; `targets` is the share of rows that pass the head.
 * Throws a RequestError where there are more stages than layers, or where the layers given are not the model's.
 */
export function partition(spec: ModelSpec, stages: number | readonly number[], targets: number): readonly StageLayers[] {
  const layers = typeof stages === "number" ? balanced(spec, stages, targets) : given(spec, stages);
  let from = 0;
  return layers.map((count, i) => {
    const layerRange = { from, to: from + count, first: i === 0, last: i === layers.length - 1 };
    from += count;
    return layerRange;
  });
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

function given(spec: ModelSpec, layers: readonly number[]): readonly number[] {
  if (sum(layers) !== spec.layers)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${layers.join(" + ")} = ${sum(layers)} layers to its stages; the base model has ${spec.layers}`,
      `give numbers that add up to ${spec.layers}, or the number of stages alone`,
    );
  const fewest = fewestLast(spec);
  if (layers.length > 1 && layers.at(-1)! < fewest)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${layers.at(-1)} layers to the last stage; the last ${fewest} layers share keys and values, and stay together`,
      `give ${fewest} or more to the last stage, or the number of stages alone`,
    );
  return layers;
}

/** Layers of each stage so that the busiest has the least work; of equal ones, so that the earlier stages have more layers. */
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
  const head = headWork(spec, targets);
  const before = stages - 1;
  const fewest = fewestLast(spec);
  const cuts = range(spec.layers - before - fewest + 1).map((i) => {
    const last = stages === 1 ? spec.layers : i + fewest;
    const rest = spec.layers - last;
    return [...range(before).map((stage) => Math.floor(rest / before) + (stage < rest % before ? 1 : 0)), last];
  });
  const busiest = (cut: readonly number[]) => maxOf(cut.map((count, i) => count + (i === stages - 1 ? head : 0)));
  return cuts.reduce((best, cut) => (busiest(cut) < busiest(best) ? cut : best));
}
