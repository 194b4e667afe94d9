// Plans a run on the devices of this machine, and plans it again with what they have shown since: how much they take beside what is
// planned, and that they refused what they had said was free.

import { now } from "../base/clock.ts";
import { log } from "../base/log.ts";
import { maxOf } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import { mostBytes, type Plan, type StageDevice, totalBytes } from "../plan/plan.ts";
import { planOn, type Request } from "./prepare.ts";

/** The share of a plan that a device refused which the next one may take. */
const RETREAT = 0.8;

export class Planner {
  #ceiling = Number.POSITIVE_INFINITY;
  #unplanned = 0;

  constructor(private readonly devices: () => readonly StageDevice[]) {}

  /** Throws RequestErrors, `plan.memory` among them. */
  plan(request: Request): Plan {
    return planOn(request, this.devices(), { ceiling: this.#ceiling, unplanned: this.#unplanned });
  }

  /** A device had no room for what was planned: another program has taken it meanwhile. */
  refused(plan: Plan): void {
    this.#ceiling = RETREAT * mostBytes(plan);
  }

  /**
   * Compares what the stages have taken with what was planned. Of a device that has one stage to itself: of others it cannot be told
   * who took what, and a CPU gives memory only when it is first touched.
   */
  async measure({ stages }: Plan, bus: Bus): Promise<void> {
    const started = now();
    const differences: number[] = [];
    for (const [stage, { device, memory }] of stages.entries()) {
      const stagesOnHost = stages.filter((of) => of.device.host === device.host && of.device.ordinal === device.ordinal);
      if (device.kind === "cpu" || stagesOnHost.length > 1) continue;
      const { takenBytes } = await bus.request(stage, { type: "clock" });
      const planned = totalBytes(memory);
      differences.push(takenBytes - planned);
      log(1, () => `stage ${stage} took ${takenBytes} bytes, planned were ${planned} (${now() - started} ms)`);
    }
    if (differences.length > 0) this.#unplanned = Math.max(0, maxOf(differences));
  }
}
