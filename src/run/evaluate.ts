// The loss of an adapter on rows that it does not train on, and how many of them greedy decoding would get right.

import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { inputLength, type MicroBatch, pack, type Tokens } from "../schedule/pack.ts";
import { cut } from "../schedule/steps.ts";
import { countTargets, evaluationShare } from "./feed.ts";

/** Batches that may be on their way through the stages. */
const AHEAD = 16;

export type Evaluation = {
  /** Mean loss over all targets. */
  readonly loss: number;
  /** Rows whose every target is the likeliest token given the right ones before it: what greedy decoding produces. */
  readonly exact: number;
  readonly rows: number;
};

/** An evaluation under way. The adapter may be trained on once `sent` has resolved: it is evaluated as it was before. */
export type Evaluating = { readonly sent: Promise<void>; readonly result: Promise<Evaluation> };

/**
 * Evaluates the adapter in a slot as it is after all that was sent to the stages. Each batch goes to all stages in one go: so all have it at the
 * same place among their actions, and none waits for what another has not been told yet.
 */
export function evaluate(
  bus: Bus,
  plan: Plan,
  { recipe }: Pick<AdapterPlan, "recipe">,
  slot: number,
  samples: readonly Tokens[],
): Evaluating {
  const batches = cut([...samples.keys()], samples.map(inputLength), recipe.batchSize, plan.budget);
  const evaluated: Promise<{ batch: MicroBatch; losses: readonly SequenceLoss[] }>[] = [];
  const send = async (): Promise<void> => {
    for (const [i, rows] of batches.entries()) {
      if (i >= AHEAD) await evaluated[i - AHEAD];
      const chosen = rows.map((row) => samples[row]!);
      const batch = pack([evaluationShare(slot, chosen)], plan.slots, plan.device.rowTile);
      const replies = Array.from({ length: bus.stages }, (_, stage) => bus.request(stage, { type: "evaluate", batch }));
      const reply = Promise.all(replies).then((all) => ({ batch, losses: all.at(-1)! }));
      reply.catch(() => undefined); // `result` tells of it
      evaluated.push(reply);
    }
  };
  const sent = send();
  const collect = async (): Promise<Evaluation> => {
    await sent;
    let [loss, exact] = [0, 0];
    for (const { batch, losses } of await Promise.all(evaluated))
      for (const [i, sequence] of losses.entries()) {
        loss += sequence.loss;
        if (sequence.hits === batch.sequences[i]!.targets) exact++;
      }
    return { loss: loss / sum(samples.map(countTargets)), exact, rows: samples.length };
  };
  const result = collect();
  result.catch(() => undefined); // it may fail before anybody waits for it
  return { sent, result };
}
