// The loss of an adapter on rows that it does not train on, and how many of them greedy decoding would get right.

import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { Plan } from "../plan/plan.ts";
import { inputLength, pack, type Tokens } from "../schedule/pack.ts";
import { cut } from "../schedule/steps.ts";
import { countTargets, evaluationShare } from "./feed.ts";

export type Evaluation = {
  /** Mean loss over all targets. */
  readonly loss: number;
  /** Rows whose every target is the likeliest token given the right ones before it: what greedy decoding produces. */
  readonly exact: number;
  readonly rows: number;
};

export async function evaluate(bus: Bus, plan: Plan, adapter: number, samples: readonly Tokens[]): Promise<Evaluation> {
  const { recipe } = plan.adapters[adapter]!;
  const batches = cut([...samples.keys()], samples.map(inputLength), recipe.batchSize, plan.budget);
  let [loss, exact] = [0, 0];
  for (const rows of batches) {
    const share = evaluationShare(
      adapter,
      rows.map((row) => samples[row]!),
    );
    const batch = pack([share], plan.adapters.length, plan.device.rowTile);
    let losses = null;
    for (let stage = 0; stage < bus.stages; stage++) losses = await bus.request(stage, { type: "evaluate", batch });
    for (const [i, sequence] of losses!.entries()) {
      loss += sequence.loss;
      if (sequence.hits === batch.sequences[i]!.targets) exact++;
    }
  }
  return { loss: loss / sum(samples.map(countTargets)), exact, rows: samples.length };
}
