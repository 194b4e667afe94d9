// The settings with which each stage of a plan is opened.

import { maxOf } from "../base/shape.ts";
import type { BaseModel, StageSetup } from "../bus/messages.ts";
import { linkCapacity } from "../plan/memory.ts";
import type { Plan, StagePlan } from "../plan/plan.ts";

/** The stages of a run, or the one that only generates. */
export type StagesPlan = Pick<Plan, "spec"> & {
  readonly stages: readonly Pick<StagePlan, "layerRange" | "sizes" | "device">[];
};

/** Of all stages, first stage first. */
export function setupsOf({ spec, stages }: StagesPlan, model: BaseModel, link: StageSetup["link"] = "auto"): StageSetup[] {
  const rowTile = maxOf(stages.map(({ device }) => device.rowTile)); // a multiple of each
  return stages.map(({ layerRange, sizes, device }) => {
    const { kind, compute, ordinal, host } = device;
    const capacity = linkCapacity(spec, sizes, compute);
    const stagesOnHost = stages.filter((stage) => stage.device.host === host).length;
    return { model, spec, layerRange, sizes, device: { kind, compute, ordinal, rowTile, stagesOnHost }, link, capacity };
  });
}
