// The likeliest tokens at each target, out of logits that stay on the stage.

import { topOf } from "../../base/logits.ts";
import type { SequenceLoss } from "../../bus/messages.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";
import type { Batch } from "../layers/batch.ts";
import type { Ground } from "./contrast.ts";
import { eachLogits } from "./head.ts";

/** The losses of an evaluation, with the `count` likeliest tokens at each target. */
export async function withTop(
  { device, head, buffers, hidden }: Ground,
  batch: Batch,
  { targetRows, sequences }: MicroBatch,
  losses: readonly SequenceLoss[],
  count: number,
): Promise<readonly SequenceLoss[]> {
  const width = Math.min(count, head.classes);
  const [ids, logProbs] = [new Int32Array(batch.targets * width), new Float32Array(batch.targets * width)];
  await eachLogits(device, head, buffers, hidden, batch, targetRows, (target, logits) => {
    for (const [i, [id, value]] of topOf(logits, width).entries()) {
      ids[target * width + i] = id;
      logProbs[target * width + i] = value;
    }
  });
  return losses.map((loss, i) => {
    const { firstTarget, targets } = sequences[i]!;
    const [from, to] = [firstTarget * width, (firstTarget + targets) * width];
    return { ...loss, top: { width, ids: ids.slice(from, to), logProbs: logProbs.slice(from, to) } };
  });
}
