// The stages of a run within this process: one whole model on one device, behind a local bus.

import type { Bus } from "../bus/bus.ts";
import { localBus } from "../bus/local.ts";
import type { Device } from "../device/device.ts";
import { openDevice } from "../device/open.ts";
import type { Plan } from "../plan/plan.ts";
import type { WeightSource } from "./base.ts";
import { Stage } from "./stage.ts";

/** Opens the plan's device and one stage on it; `sourceOf` says where the weights come from. Disposing the bus closes both. */
export async function openLocalStage(
  plan: Plan,
  sourceOf: (device: Device) => WeightSource | Promise<WeightSource>,
): Promise<Bus> {
  const device = openDevice(plan.device);
  try {
    const adapters = plan.adapters.map(({ rank, scale, targets, recipe }) => ({ rank, scale, targets, seed: recipe.seed }));
    const config = { spec: plan.spec, part: plan.part, adapters, sizes: plan.sizes };
    using source = await sourceOf(device);
    const stage = await Stage.open(device, config, source.fill, { previous: null, next: null });
    return localBus([stage.handlers()], async () => stage[Symbol.dispose]());
  } catch (error) {
    device[Symbol.dispose]();
    throw error;
  }
}
