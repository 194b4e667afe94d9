// How long a plan's stages take for a pass, estimated: for the order of a pipeline's work, and for drawings of it.

import { keepsInputsAlone } from "../base/recomputation.ts";
import type { StageSizes } from "../engine/layers/buffers.ts";
import type { Times } from "../schedule/lists.ts";
import { costsOf, headWork, layerWork } from "./partition.ts";
import type { Plan } from "./plan.ts";

/** As many frozen products, and the adapters' gradients (measured: 1.15 to 1.35 on a CPU). */
const BACKWARD = 1.3;

/** A layer's backward pass compared with its forward pass. Where all of a layer is computed again, a forward pass more. */
export const backwardCost = ({ recomputation }: Pick<StageSizes, "recomputation">): number =>
  keepsInputsAlone(recomputation) ? BACKWARD + 1 : BACKWARD;

export type StageWork = { readonly forward: number; readonly backward: number };

/**
 * What a row costs on a stage, in layers' forward passes. Both of the head's products are made in the backward pass
 * (engine/stage.ts).
 */
export function stageWork({ stages, spec, targets, device }: Plan, stage: number): StageWork {
  const { layerRange, sizes } = stages[stage]!;
  const costs = costsOf(device, sizes.format);
  const layers = layerWork(spec, layerRange, costs);
  const head = layerRange.last ? headWork(spec, targets, costs) : 0;
  return { forward: layers, backward: backwardCost(sizes) * layers + 2 * head };
}

/** Steps and transfers take no time: they are short compared with passes, and transfers run concurrently. */
export function timesOf(plan: Plan): Times {
  const work = plan.stages.map((_, stage) => stageWork(plan, stage));
  return {
    forward: (stage, { rows }) => rows * work[stage]!.forward,
    backward: (stage, { rows }) => rows * work[stage]!.backward,
    step: () => 0,
    transfer: () => 0,
  };
}
