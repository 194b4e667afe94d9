// The memory of the machines that stages on GPUs are in: what of the base model stays there.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { formatBytes } from "../base/units.ts";
import { stageHostBytes } from "./memory.ts";

type Placed = { readonly device: DeviceReport & { readonly host: string } };

/** Of all stages together; 0 on CPUs, whose memory is the device's. */
export const totalHostBytes = (spec: ModelSpec, stages: readonly Placed[]): number =>
  sum(stages.map(({ device }) => stageHostBytes(spec, device)));

/** Throws a RequestError, `plan.host`, where a machine has not as much free as the stages on it take. */
export function checkHostMemory(spec: ModelSpec, stages: readonly Placed[]): void {
  for (const [host, on] of Map.groupBy(stages, ({ device }) => device.host)) {
    const needed = totalHostBytes(spec, on);
    const free = on[0]!.device.hostFreeBytes ?? Number.POSITIVE_INFINITY;
    if (needed <= free) continue;
    throw new RequestError(
      "plan.host",
      `${on.length === 1 ? "the stage needs" : `${on.length} stages need`} ${formatBytes(needed)} of host memory${host === "" ? "" : ` of ${host}`} for the embeddings of its layers; ${formatBytes(free)} are free`,
      on.length === 1
        ? "free memory of the machine, or give its container more"
        : "use fewer stages: each has these embeddings",
    );
  }
}
