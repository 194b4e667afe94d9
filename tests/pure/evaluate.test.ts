// Held-out rows go through the model by whole passes, and what they come to does not depend on how large these are.

import { expect, test } from "bun:test";
import type { DeviceReport } from "../../src/base/device-report.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import { type Objective, objectiveOf } from "../../src/objectives/registry.ts";
import type { Plan } from "../../src/plan/plan.ts";
import type { MicroBatch } from "../../src/schedule/micro-batch.ts";
import { inputLength, type Row } from "../../src/schedule/pack.ts";
import { evaluate } from "../../src/session/evaluate.ts";
import { randomTokens } from "../helpers/tiny.ts";

/** A CPU whose products sum a row alike wherever it lies. */
const OWN = { kind: "cpu", packsTables: true } as const;
type More = {
  readonly objective?: Objective;
  readonly samples?: readonly Row[];
  readonly device?: Pick<DeviceReport, "kind" | "packsTables">;
};
const SEED = 31;
const rng = new Rng(SEED);
const samples: readonly Row[] = range(60).map(() => randomTokens(rng, 50, 2 + rng.below(40)));

/** Evaluates by stages with room for `rows` rows, whose losses follow from a sequence's tokens; with the batches they saw. */
async function evaluated(rows: number, stages = 1, { device = OWN, ...more }: More = {}) {
  const batches: MicroBatch[] = [];
  const lossOf = ({ targetIds }: MicroBatch, { firstTarget, targets }: MicroBatch["sequences"][number]) => {
    const own = [...targetIds.subarray(firstTarget, firstTarget + targets)];
    return { loss: sum(own.map((id, i) => Math.sin(id + i))) / 3, correct: own[0]! % 2 === 0 ? targets : 0 };
  };
  const bus = {
    stages,
    request: async (stage: number, { batch }: { batch: MicroBatch }) => {
      if (stage < stages - 1) return null;
      batches.push(batch);
      return batch.sequences.map((sequence) => lossOf(batch, sequence));
    },
  } as unknown as Bus;
  const plan = {
    ...{ slots: 2, tokensPerMicrobatch: 4096, device: { rowTile: 8 } },
    stages: range(stages).map(() => ({ sizes: { rows }, device })),
  } as unknown as Plan;
  const work = { slot: 1, samples, batchSize: 2, objective: { name: "sft" } as const, references: null, ...more };
  return { batches, result: await evaluate(bus, plan, work).result };
}

test("a row's part of the loss does not depend on the rows next to it", async () => {
  const { result } = await evaluated(48);
  expect(result.rows).toBe(60);
  expect(result.exact).toBeGreaterThan(10);
  for (const [rows, stages] of [
    [264, 1],
    [4096, 1],
    [4096, 3],
  ] as const)
    expect((await evaluated(rows, stages)).result).toEqual(result);
});

test("passes have no more rows than there is room for, and not many fewer; one for each stage at least", async () => {
  const tokens = sum(samples.map(inputLength));
  for (const rows of [48, 264, 1000]) {
    const { batches } = await evaluated(rows);
    for (const { ids } of batches) expect(ids.length, `${rows} rows, seed ${SEED}`).toBeLessThanOrEqual(rows);
    expect(batches.length).toBeLessThanOrEqual(2 * Math.ceil(tokens / rows));
  }
  expect((await evaluated(4096)).batches.length).toBe(1);
  expect((await evaluated(4096, 3)).batches.length).toBe(3);
});

test("where their bits might depend on it, rows come as many at a time as the adapter's own batches have", async () => {
  for (const device of [{ kind: "cpu", packsTables: false }, { kind: "cuda" }] as const)
    for (const { sequences } of (await evaluated(4096, 1, { device })).batches) expect(sequences.length).toBe(2);
});

test("rows that an objective judges together come as many at a time as its batches have", async () => {
  const pairs = samples.slice(0, 9).map((row) => ({ ...row, other: randomTokens(rng, 50, 5) }));
  const { batches } = await evaluated(4096, 1, { objective: objectiveOf("cpo", String), samples: pairs });
  expect(batches.map(({ sequences }) => sequences.length / 2)).toEqual([2, 2, 2, 2, 1]);
});
