// Replies of stages in any order: a mini-batch's result has the losses of all its passes, added in their order.

import { expect, test } from "bun:test";
import type { Bus } from "../../src/bus/bus.ts";
import { pack } from "../../src/schedule/pack.ts";
import { Executor } from "../../src/session/training/executor.ts";

/** Three losses, of which the sum depends on the order. */
const LOSSES = [0.1, 1e16, -1e16];
const miniBatch = [0, 1, 2];
const segment = (row: number) => ({ adapter: 0, step: 0, rows: [row], firstRow: 4 * row, miniBatch, last: row === 2 });
const samples = [{ ids: Int32Array.of(1, 2, 3, 4, 5), mask: new Uint8Array(5).fill(1) }];
const batchOf = () => pack([{ adapter: 0, samples, seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 / 8 }], 1, 4);

test.each([1, 2])("on %p stages the losses count, however late they come", async (stages) => {
  const late: (() => void)[] = [];
  let passes = 0;
  const request = async (stage: number, { type }: { readonly type: string }): Promise<unknown> => {
    if (type === "squares") return [Float32Array.of(4)];
    if (type !== "backward" || stage < stages - 1) return null;
    const loss = LOSSES[passes++]!;
    await new Promise<void>((resolve) => late.push(resolve));
    return [{ loss, correct: 0 }];
  };
  const executor = new Executor(
    { stages, request } as unknown as Bus,
    batchOf,
    () => 4,
    () => 0,
  );
  for (const id of miniBatch) {
    const pass = { id, segments: [segment(id)], rows: 4 };
    for (let stage = 0; stage < stages; stage++) await executor.forward(stage, pass);
    for (let stage = stages - 1; stage >= 0; stage--) await executor.backward(stage, pass);
  }
  let found: Awaited<ReturnType<Executor["result"]>> | null = null;
  const result = executor.result({ adapter: 0, step: 0 }).then((of) => {
    found = of;
  });
  for (const answer of late.toReversed()) {
    await Bun.sleep(0);
    expect(found).toBeNull(); // the norms are there, not all losses
    answer();
  }
  await result;
  const loss = LOSSES.reduce((sum, of) => sum + of / 8, 0);
  expect(found).toMatchObject({ loss, tokens: 12, squares: Array(stages).fill(Float32Array.of(4)) });
});
