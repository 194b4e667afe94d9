// What the last stage says of a pass: the losses of its sequences, read after the pass while the device continues.

import type { SequenceLoss } from "../../bus/messages.ts";
import type { Device } from "../../device/device.ts";
import type { PackedSequence } from "../../schedule/micro-batch.ts";
import type { Batch } from "../layers/batch.ts";

/** Resolves when the reading is enqueued; with `logProbs` losses have those of each target, too. */
export async function enqueueLosses(
  device: Device,
  batch: Batch,
  sequences: readonly PackedSequence[],
  logProbs: boolean,
): Promise<{ readonly found: Promise<SequenceLoss[]> }> {
  const { bytes } = await device.peek([batch.loss, batch.isCorrect]);
  return { found: bytes.then(([loss, isCorrect]) => lossesOf(loss!.buffer, isCorrect!.buffer, sequences, logProbs)) };
}

/** Sums in double precision, of the losses f32[T] and isCorrect i32[T] of all targets. */
function lossesOf(
  losses: ArrayBuffer,
  hits: ArrayBuffer,
  sequences: readonly PackedSequence[],
  logProbs: boolean,
): SequenceLoss[] {
  const [loss, isCorrect] = [new Float32Array(losses), new Int32Array(hits)];
  return sequences.map(({ firstTarget, targets }) => {
    let [sum, correct] = [0, 0];
    for (let at = firstTarget; at < firstTarget + targets; at++) {
      sum += loss[at]!;
      correct += isCorrect[at]!;
    }
    const own = logProbs ? { logProbs: loss.slice(firstTarget, firstTarget + targets).map((value) => -value) } : {};
    return { loss: sum, correct, ...own };
  });
}
