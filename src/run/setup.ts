// What each stage of a plan must be told before it can work.

import type { BaseModel, StageSetup } from "../bus/messages.ts";
import { linkRoom } from "../plan/memory.ts";
import type { Plan } from "../plan/plan.ts";

/** Of all stages, first stage first. */
export function setupsOf({ spec, adapters, stages }: Plan, model: BaseModel, link: StageSetup["link"] = "auto"): StageSetup[] {
  const known = adapters.map(({ rank, scale, targets, recipe }) => ({ rank, scale, targets, seed: recipe.seed }));
  return stages.map(({ part, sizes, device }) => {
    const { kind, compute, ordinal, host } = device;
    const room = linkRoom(spec, sizes, compute);
    const sharers = stages.filter((stage) => stage.device.host === host).length;
    return { model, spec, part, adapters: known, sizes, device: { kind, compute, ordinal, sharers }, link, room };
  });
}
