// The order of work of a run: what each stage does, decided while the run goes on.

import { SEND_BUFFERS } from "../plan/memory.ts";
import type { Plan } from "../plan/plan.ts";
import type { StageAction } from "../schedule/lists.ts";
import { pipeline } from "../schedule/pipeline.ts";

/** All actions of all stages, each after those that it depends on; an adapter that `ended` names gets no new mini-batch. */
export function actionsOf(plan: Plan, ended: (adapter: number) => boolean): Generator<StageAction> {
  const { adapters, stages, budget, passRows, device } = plan;
  return pipeline(
    adapters.map(({ work }) => work),
    {
      kind: "lorapp",
      packing: stages.length === 1 ? "filled" : "balanced",
      stages: stages.length,
      sendBuffers: SEND_BUFFERS,
      inFlight: stages.map((stage) => stage.inFlight),
      ended,
      budget,
      passRows,
      rowTile: device.rowTile,
    },
  );
}
