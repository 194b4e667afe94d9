// Replies to the passes of a call come in any order: its loss is the same number in each.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import type { SequenceLoss } from "../../src/bus/messages.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { PassTurns } from "../../src/session/decoding/pass-turns.ts";
import { Shares } from "../../src/session/decoding/shares.ts";
import { Packer } from "../../src/session/primitives/batches.ts";

/** Losses of micro-batches, of which the sum is 0 in this order, and 0.5 in others. */
const LOSSES = [0.5, 2 ** 60, -(2 ** 60)];
const row = { ids: Int32Array.of(1, 2, 3, 4, 5), mask: new Uint8Array(5).fill(1) };
const plan = {
  ...{ slots: 1, passRows: 4, device: { kind: "cpu", rowTile: 4 } },
  stages: range(3).map(() => ({ sizes: { rows: 4 } })),
} as unknown as Plan;

test.each([[[0, 1, 2]], [[2, 1, 0]], [[1, 2, 0]]])("answered in the order %p", async (order) => {
  const answers: (() => void)[] = [];
  const started = Promise.withResolvers<void>();
  const packer = new Packer(plan, new PassTurns(), new Shares(), {
    run: async () => {
      const loss = LOSSES[answers.length]!;
      await new Promise<void>((resolve) => {
        answers.push(resolve);
        if (answers.length === LOSSES.length) started.resolve();
      });
      return [{ loss, correct: 1, logProbs: Float32Array.of(-loss, 0, 0, 0) } as unknown as SequenceLoss];
    },
  });
  const found = packer.add({
    ...{ slot: 0, owner: "a", rows: LOSSES.map(() => row), microBatches: [[0], [1], [2]], top: 0 },
    segmentOf: () => ({ adapter: 0, samples: [row], seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 }),
  });
  await started.promise;
  for (const at of order) {
    answers[at]!();
    await Bun.sleep(0);
  }
  const { loss, targets, correct } = await found;
  expect([loss, targets, correct]).toEqual([0, 12, 3]);
});
