// The settings with which each stage of a plan is opened.

import type { BaseModel, StageSetup } from "../bus/messages.ts";
import { linkCapacity } from "../plan/memory.ts";
import type { Plan } from "../plan/plan.ts";

/** Of all stages, first stage first. */
export function setupsOf({ spec, stages }: Plan, model: BaseModel, link: StageSetup["link"] = "auto"): StageSetup[] {
  return stages.map(({ layerRange, sizes, device }) => {
    const { kind, compute, ordinal, host } = device;
    const capacity = linkCapacity(spec, sizes, compute);
    const stagesOnHost = stages.filter((stage) => stage.device.host === host).length;
    return { model, spec, layerRange, sizes, device: { kind, compute, ordinal, stagesOnHost }, link, capacity };
  });
}
