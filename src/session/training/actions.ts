// The order of work of a run: what each stage does, decided during the run.

import { SEND_BUFFERS } from "../../plan/memory.ts";
import { gradientsOnStages, type Plan } from "../../plan/plan.ts";
import { timesOf } from "../../plan/times.ts";
import type { StageAction } from "../../schedule/lists.ts";
import { type Joining, pipeline } from "../../schedule/pipeline.ts";

/**
 * All actions of all stages, each after those that it depends on, until no work is left; an adapter that has `left` gets no new
 * mini-batch. Passes are numbered from `firstPass`.
 */
export function actionsOf(
  plan: Plan,
  joining: Joining[],
  left: (adapter: number) => boolean,
  firstPass = 0,
): Generator<StageAction> {
  const { stages, adapters, tokensPerMicrobatch, passRows, device } = plan;
  const needed = new Map<number, readonly number[]>();
  const neededBy = (adapter: number): readonly number[] => {
    const found = needed.get(adapter) ?? gradientsOnStages(plan, adapters[adapter]!);
    needed.set(adapter, found);
    return found;
  };
  return pipeline(joining, {
    kind: "lorapp",
    packing: stages.length === 1 ? "filled" : "balanced",
    stages: stages.length,
    sendBuffers: SEND_BUFFERS,
    times: timesOf(plan),
    inFlight: stages.map((stage) => stage.inFlight),
    left,
    gradients: { buffers: stages.map(({ sizes }) => sizes.gradients), needed: neededBy },
    firstPass,
    tokensPerMicrobatch,
    passRows: Math.min(passRows, stages[0]!.sizes.rows), // adapters that came later may together have more
    rowTile: device.rowTile,
  });
}
