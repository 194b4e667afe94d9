// Which layers each stage of a pipeline holds: the stages get work that is as equal as halves of layers allow, attention and
// what follows it (families/parts.ts).
//
// Work is counted in weights, those of the frozen products, forward and gradient of the input alike: a layer's, and on the last
// stage the output head's, for the share of all rows that have a target: only they pass it. On a GPU all else is added, as much
// as it costs there in weights. The embedding costs a copy of rows, which is nothing compared with them.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import { type LayerRange, layersIn } from "../base/layers.ts";
import type { WeightFormat } from "../base/precision.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { StageLayers } from "../engine/weights/weights.ts";
import { weightsPassed } from "../families/linears.ts";
import { canCut, operationsIn } from "../families/parts.ts";

/** What work costs, in weights of a dense product. */
export type Costs = {
  /** Of a weight of linears, of one of experts, and of one of the output head. */
  readonly linear: number;
  readonly experts: number;
  readonly head: number;
  /** Of a feature of a value that an operation computes, and of attention's in addition. */
  readonly feature: number;
  readonly attention: number;
};

/** Products alone: all else is little on a CPU. */
const CPU_COSTS: Costs = { linear: 1, experts: 1, head: 1, feature: 0, attention: 0 };
/**
 * Measured on H200s, 4096 tokens a pass: a layer of Llama-2-7B takes 5.8 ms with the backward pass, 3.8 in fp8 and 6.9 in nf4;
 * its head 5.2; a layer of Qwen3-30B-A3B 3.1, its head 8.4; a layer of gpt-oss-20b 5.7.
 */
const GPU_COSTS = { experts: 2.6, head: 1.3, feature: 500, attention: 3500 };
const GPU_LINEAR: Readonly<Partial<Record<WeightFormat, number>>> = {
  ...{ int8: 1.2, fp8: 0.6, "nf4-fp8": 0.7, nf4: 1.2, mxfp4: 1.2 },
};

export const costsOf = ({ kind }: Pick<DeviceReport, "kind">, format: WeightFormat): Costs =>
  kind === "cpu" ? CPU_COSTS : { linear: GPU_LINEAR[format] ?? 1, ...GPU_COSTS };

/** Of a layer's operations, in weights. */
const workOf = (spec: ModelSpec, layers: LayerRange, layer: number, costs: Costs): number =>
  sum(
    operationsIn(spec, layers, layer).map((of) => {
      const products = weightsPassed([of]) * (of.op === "experts" ? costs.experts : costs.linear);
      const features =
        of.op === "linears" ? sum(of.out) : of.op === "attention" ? of.heads.heads * of.heads.headDim : spec.hidden;
      return products + features * (costs.feature + (of.op === "attention" ? costs.attention : 0));
    }),
  );

const rangeWork = (spec: ModelSpec, layers: LayerRange, costs: Costs): number =>
  sum(layersIn(layers).map((layer) => workOf(spec, layers, layer, costs)));

const meanLayer = (spec: ModelSpec, costs: Costs): number => rangeWork(spec, { from: 0, to: spec.layers }, costs) / spec.layers;

/** Of the output head, in layers, where this share of all rows has a target. */
export const headWork = (spec: ModelSpec, targets: number, costs = CPU_COSTS): number =>
  (costs.head * targets * spec.vocab * spec.hidden) / meanLayer(spec, costs);

/** Of a range of layers, in layers of the mean. */
export const layerWork = (spec: ModelSpec, layers: LayerRange, costs = CPU_COSTS): number =>
  rangeWork(spec, layers, costs) / meanLayer(spec, costs);

/** Of a stage, in layers. */
export const partWork = (spec: ModelSpec, part: StageLayers, targets: number, costs = CPU_COSTS): number =>
  layerWork(spec, part, costs) + (part.last ? headWork(spec, targets, costs) : 0);

/**
 * The parts of `stages` stages, a number of them or the layers of each; `targets` is the share of rows that pass the head.
 * Throws a RequestError where there are more stages than layers, or where the layers given are not the model's.
 */
export function partition(
  spec: ModelSpec,
  stages: number | readonly number[],
  targets: number,
  costs = CPU_COSTS,
): readonly StageLayers[] {
  const ends = typeof stages === "number" ? balanced(spec, stages, targets, costs) : given(spec, stages);
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
      `run.stages gives ${layers.join(" + ")} = ${counted(sum(layers), "layer")} to its stages; the base model has ${spec.layers}`,
      `give numbers that add up to ${spec.layers}, or the number of stages alone`,
    );
  const fewest = fewestLast(spec);
  if (layers.length > 1 && layers.at(-1)! < fewest && fewest > 1)
    throw new RequestError(
      "plan.stages",
      `run.stages gives ${counted(layers.at(-1)!, "layer")} to the last stage; the last ${counted(fewest, "layer")} share keys and values, and stay together`,
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
function balanced(spec: ModelSpec, stages: number, targets: number, costs: Costs): readonly number[] {
  const most = mostStages(spec);
  if (stages > most)
    throw new RequestError(
      "plan.stages",
      most === spec.layers
        ? `${stages} stages are more than the base model's ${counted(spec.layers, "layer")}`
        : `${stages} stages are too many: the last ${fewestLast(spec)} of the base model's ${spec.layers} layers share keys and values`,
      `set run.stages to ${most} or fewer`,
    );
  const fewest = fewestLast(spec);
  const isEnd = (end: number) => Number.isInteger(end) || canCut(spec, Math.floor(end));
  const places = range(2 * spec.layers + 1)
    .map((i) => i / 2)
    .filter((end) => isEnd(end) && (fewest === 1 || end <= spec.layers - fewest || end === spec.layers));
  const unit = meanLayer(spec, costs);
  const before = [0];
  for (const [i, to] of places.slice(1).entries())
    before.push(before[i]! + rangeWork(spec, { from: places[i]!, to }, costs) / unit);
  const head = headWork(spec, targets, costs);
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
