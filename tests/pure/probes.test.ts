// Adapters that are stopped together are looked at in few passes, and each gets the loss of its own rows.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { alignUp, range, sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import type { MicroBatch } from "../../src/schedule/micro-batch.ts";
import type { Row } from "../../src/schedule/pack.ts";
import { Probes } from "../../src/session/probes.ts";

/** What the fake stages answer for a sequence: a number of its adapter, its targets and its input. */
const lossOf = (adapter: number, targets: readonly number[], inputs: readonly number[]): number =>
  (adapter + 1) * sum(targets) + sum(inputs) / 64;

/** Stages that note each pass; `fails`: the pass of this number does not come back. */
function fakeStages(stages: number, fails = -1) {
  const passes: MicroBatch[] = [];
  const request = async (stage: number, { type, batch }: { type: string; batch: MicroBatch }) => {
    expect(type).toBe("evaluate");
    const number = stage === 0 ? passes.push(batch) - 1 : passes.indexOf(batch);
    await Promise.resolve();
    if (number === fails) throw new Error("the stage is gone");
    if (stage < stages - 1) return null;
    return batch.sequences.map(({ adapter, firstTarget, targets }) => {
      const at = range(targets).map((i) => batch.targetRows[firstTarget + i]!);
      const [from, to] = [batch.bounds[2 * at[0]!]!, batch.bounds[2 * at[0]! + 1]!];
      const ids = range(targets).map((i) => batch.targetIds[firstTarget + i]!);
      return { loss: lossOf(adapter, ids, [...batch.ids.slice(from, to)]), correct: 0 };
    });
  };
  return { bus: { stages, request } as unknown as Bus, passes };
}

function randomRow(rng: Rng, most: number): Row {
  const length = 2 + Math.floor(rng.uniform() * (most - 1));
  const mask = new Uint8Array(length).fill(1, 1 + Math.floor(rng.uniform() * (length - 1)));
  return { ids: Int32Array.from({ length }, () => Math.floor(rng.uniform() * 200)), mask };
}

const expected = (slot: number, rows: readonly Row[]): number => {
  const targets = ({ ids, mask }: Row) => [...ids].filter((_, i) => i > 0 && mask[i] === 1);
  const losses = rows.map((row) => lossOf(slot, targets(row), [...row.ids.slice(0, -1)]));
  return sum(losses) / sum(rows.map((row) => targets(row).length));
};

const planOf = (slots: number, stages: number, passRows: number, rows: number) => ({
  slots,
  passRows,
  stages: range(stages).map(() => ({ sizes: { rows } })) as never,
  device: { rowTile: 8 } as never,
});

test.each([1, 2, 3])(
  "each adapter gets the loss of its first rows, in passes that the plan has room for, over %i stages",
  async (stages) => {
    for (let seed = 0; seed < 20; seed++) {
      const rng = new Rng(seed, stages);
      const [slots, passRows] = [1 + Math.floor(rng.uniform() * 40), 8 + Math.floor(rng.uniform() * 120)];
      const rows = alignUp(passRows, 8) + (seed % 2) * 64;
      const { bus, passes } = fakeStages(stages);
      const probes = new Probes(bus, planOf(slots, stages, passRows, rows));
      const data = range(slots).map(() => range(1 + Math.floor(rng.uniform() * 6)).map(() => randomRow(rng, rows)));
      const found = await Promise.all(data.map((of, slot) => probes.loss(slot, of)));
      for (const [slot, of] of data.entries())
        expect(found[slot], `seed ${seed}`).toBeCloseTo(expected(slot, of.slice(0, 4)), 9);
      const most = alignUp(passRows, 8);
      for (const { ids, sequences } of passes) {
        expect(ids.length).toBeLessThanOrEqual(sequences.length === 1 ? rows : most);
        const adapters = sequences.map(({ adapter }) => adapter);
        expect(adapters).toEqual([...adapters].sort((a, b) => a - b)); // one share each
      }
      expect(sum(passes.map(({ sequences }) => sequences.length))).toBe(sum(data.map((of) => Math.min(4, of.length))));
      // Two passes in a row would not fit into one.
      for (const [i, { ids }] of passes.entries()) {
        const next = passes[i + 1];
        if (next) expect(ids.length + next.ids.length, `seed ${seed}`).toBeGreaterThan(most - 8);
      }
    }
  },
);

test("a row without targets has no loss, a prompt is predicted itself, and a pass that fails fails its adapters alone", async () => {
  const rng = new Rng(7);
  const ids = Int32Array.from([3, 1, 4, 1, 5]);
  const { bus, passes } = fakeStages(1, 1);
  const probes = new Probes(bus, planOf(9, 1, 16, 16));
  expect(await probes.loss(0, [{ ids, mask: new Uint8Array(5) }])).toBeNull();
  expect(passes.length).toBe(0);
  const prompt: Row = { ids, mask: new Uint8Array(5), columns: "{}" };
  expect(await probes.loss(3, [prompt])).toBeCloseTo(expected(3, [{ ids, mask: new Uint8Array(5).fill(1) }]), 9);
  const rows = range(3).map(() => range(4).map(() => randomRow(rng, 5)));
  const found = await Promise.allSettled(rows.map((of, i) => probes.loss(i, of)));
  const failed = found.flatMap(({ status }, i) => (status === "rejected" ? [i] : []));
  const inFailed = new Set(passes[1]!.sequences.map(({ adapter }) => adapter));
  expect(failed).toEqual([...inFailed]);
  expect(failed.length).toBeLessThan(3);
});
