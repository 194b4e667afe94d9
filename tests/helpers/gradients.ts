// The hand-written backward pass against finite differences of the forward pass, in f32 with a step that balances truncation
// and rounding, along random directions of each factor.

import { expect } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { SequenceLoss } from "../../src/bus/messages.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { StageSizes } from "../../src/engine/buffers.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { type FactorTensor, isOfTable } from "../../src/methods/layout.ts";
import { rankAt, trainedAt } from "../../src/methods/placement.ts";
import { scoreSegment } from "../../src/objectives/loss-weights.ts";
import type { MicroBatch } from "../../src/schedule/micro-batch.ts";
import { pack, type Segment } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter, writeAdapter } from "./factors.ts";
import { adapterOn, randomFactors, tinyStage } from "./tiny.ts";

const WEIGHT = 0.05;
export const common = (adapter: number, dropout: number) => ({
  adapter,
  seed: 40 + adapter,
  step: 3,
  dropout,
  firstRow: 7,
  weight: WEIGHT,
});

/** The loss that the gradients are of: of weighted targets, or of preferences. */
export const weightedLoss = (_: MicroBatch, losses: readonly SequenceLoss[]): number =>
  losses.reduce((total, { loss }) => total + WEIGHT * loss, 0);
export const preferenceLoss = (batch: MicroBatch, losses: readonly SequenceLoss[]): number =>
  batch.preferences
    .flatMap((preference) => scoreSegment(batch, preference, losses).found)
    .reduce((total, { loss }) => total + loss, 0);

/** Zero where a factor is frozen: rows of A, columns of B. */
function withinTrained(adapter: PoolAdapter, at: FactorTensor): FactorTensor {
  if (adapter.trainedRank === undefined || isOfTable(at)) return at;
  const [rank, trained] = [rankAt(adapter, at.layer, at.linear), trainedAt(adapter, at.layer, at.linear)];
  const width = at.values.length / rank;
  const rankOf = (i: number) => (at.factor === "A" ? Math.floor(i / width) : i % rank);
  return { ...at, values: at.values.map((value, i) => (rankOf(i) < trained ? value : 0)) };
}

/** Of all factors of these adapters in one pass; `total` is the loss that the segments are of. */
export async function expectGradients(
  spec: ModelSpec,
  changes: Partial<StageSizes>,
  sharesOf: (rng: Rng) => readonly Segment[],
  total: typeof weightedLoss,
  given: readonly PoolAdapter[],
): Promise<void> {
  const of = given.map((adapter) => adapterOn(spec, adapter));
  const seeds = of.map((_, adapter) => 5 + adapter);
  using stage = await tinyStage(new CpuDevice(2), spec, of, seeds, changes);
  const shares = sharesOf(new Rng(9));
  const packed = (some: readonly Segment[]) => pack(some, of.length, stage.device.rowTile);
  await stage.forward(0, packed(shares));
  await stage.backward(0);

  for (const adapter of of.keys()) {
    // The others' losses do not change with its factors. The same masks: they are a function of seed, step, module and row.
    const own = packed(shares.filter((share) => share.adapter === adapter));
    const lossOf = async (): Promise<number> => total(own, (await stage.evaluate(own))!);
    const gradients = factorsOf(stage, adapter, await stage.pool.read(adapter, "grads"));
    const start = await readAdapter(stage, adapter);
    const directions = (await randomFactors(stage, adapter, 123)).map((at) => withinTrained(of[adapter]!, at));
    for (const [i, at] of start.entries()) {
      const direction = directions[i]!.values;
      const gradient = gradients[i]!.values;
      expect(gradient).toEqual(withinTrained(of[adapter]!, gradients[i]!).values);
      const along = gradient.reduce((total, g, j) => total + g * direction[j]!, 0);
      // A vector is few numbers: a short step drowns in rounding, which is seen in a longer one, too: 0.21 % at most, by one
      // processor's products or another's; 0.07 % of matrices.
      const isVector = at.factor.startsWith("lambda") || at.values.length < 8;
      const [step, most] = isVector ? [0.03, 5e-3] : [0.004, 2e-3];
      const lossAt = async (moved: number): Promise<number> => {
        const values = at.values.map((value, j) => value + moved * step * direction[j]!);
        await writeAdapter(stage, adapter, [{ ...at, values }]);
        if (at.factor !== "M") stage.pool.takeStale("dora"); // DoRA's norms count as constants: they stay as they are
        return lossOf();
      };
      // Four points, so that the error of the difference is of fourth order.
      const [near, far] = [(await lossAt(1)) - (await lossAt(-1)), (await lossAt(2)) - (await lossAt(-2))];
      await writeAdapter(stage, adapter, [at]);
      if (at.factor === "M") await lossOf(); // computes the gains of the magnitudes that are back
      const numeric = (8 * near - far) / (12 * step);
      const size = Math.hypot(...gradient) * Math.hypot(...direction);
      const where = `${at.layer}.${at.linear}.${at.factor} of adapter ${adapter}: ${along} against ${numeric}`;
      expect(size, where).toBeGreaterThan(0);
      expect(Math.abs(along - numeric) / size, where).toBeLessThan(most); // a wrong mask or scale is off by 0.1 and more
    }
  }
}
