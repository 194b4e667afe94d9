// Plans a run on the devices of this machine, and plans it again after measurements: what they take in addition to the plan,
// and memory that they reported as free and refused.

import { now } from "../../base/clock.ts";
import { log } from "../../base/log.ts";
import { maxOf } from "../../base/shape.ts";
import type { Bus } from "../../bus/bus.ts";
import { mostBytes, type Plan, type StageDevice, totalBytes } from "../../plan/plan.ts";
import { planOn, type Request } from "./prepare.ts";

/** After a refusal the next plan may take this share of the refused one. */
const RETREAT = 0.8;

export class Planner {
  #ceiling = Number.POSITIVE_INFINITY;
  #unplanned = 0;

  constructor(private readonly devices: () => readonly StageDevice[]) {}

  /** Throws RequestErrors, `plan.memory` among them. */
  plan(request: Request): Plan {
    return planOn(request, this.devices(), { ceiling: this.#ceiling, unplanned: this.#unplanned });
  }

  /** A device lacked memory for this plan: another program has taken it meanwhile. */
  refused(plan: Plan): void {
    this.#ceiling = RETREAT * mostBytes(plan);
  }

  /**
   * Compares what the stages have taken with the plan, on GPUs with one stage each: the shares of several stages of one GPU
   * are unknown, and a CPU gives memory only when it is first touched.
   */
  async measure({ stages }: Plan, bus: Bus): Promise<void> {
    const started = now();
    const differences: number[] = [];
    for (const [stage, { device, memory, sizes }] of stages.entries()) {
      const stagesOnHost = stages.filter((of) => of.device.host === device.host && of.device.ordinal === device.ordinal);
      if (device.kind === "cpu" || stagesOnHost.length > 1) continue;
      const { takenBytes } = await bus.request(stage, { type: "clock" });
      const planned = totalBytes(memory) - sizes.blockBytes; // adapters join later
      differences.push(takenBytes - planned);
      log(1, () => `stage ${stage} took ${takenBytes} bytes, planned were ${planned} (${now() - started} ms)`);
    }
    if (differences.length > 0) this.#unplanned = Math.max(0, maxOf(differences));
  }
}
