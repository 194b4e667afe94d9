// The stages of a run within this process: one whole model on one device, behind a local bus.

import type { Bus } from "../bus/bus.ts";
import { localBus } from "../bus/local.ts";
import type { Device } from "../device/device.ts";
import { openDevice } from "../device/open.ts";
import type { FillTensor } from "../model/weights.ts";
import type { Plan } from "../plan/plan.ts";
import { Stage } from "./stage.ts";

/** Opens the plan's device and one stage on it; `fillOf` makes what loads the weights. Disposing the bus closes both. */
export async function openLocalStage(plan: Plan, fillOf: (device: Device) => FillTensor): Promise<Bus> {
  const device = openDevice(plan.device.kind);
  try {
    const adapters = plan.adapters.map(({ rank, scale, targets, recipe }) => ({ rank, scale, targets, seed: recipe.seed }));
    const config = { spec: plan.spec, part: plan.part, adapters, sizes: plan.sizes };
    const stage = await Stage.open(device, config, fillOf(device), { previous: null, next: null });
    return localBus([stage.handlers()], async () => stage[Symbol.dispose]());
  } catch (error) {
    device[Symbol.dispose]();
    throw error;
  }
}
