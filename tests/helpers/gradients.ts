// The hand-written backward pass against finite differences of the forward pass, in f32 with a step that balances truncation
// and rounding, along random directions of each factor.

import { expect } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { SequenceLoss } from "../../src/bus/messages.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { StageSizes } from "../../src/engine/layers/buffers.ts";
import type { Stage } from "../../src/engine/stage.ts";
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

/** The loss of one adapter's segment that the gradients are of: of weighted targets, or of preferences. */
export type SegmentLoss = (batch: MicroBatch, losses: readonly SequenceLoss[], adapter: number) => number;
export const weightedLoss: SegmentLoss = ({ sequences }, losses, adapter) =>
  losses.reduce((total, { loss }, i) => total + (sequences[i]!.adapter === adapter ? WEIGHT * loss : 0), 0);
export const preferenceLoss: SegmentLoss = (batch, losses, adapter) =>
  batch.preferences
    .filter(({ firstSequence }) => batch.sequences[firstSequence]!.adapter === adapter)
    .flatMap((preference) => scoreSegment(batch, preference, losses).found)
    .reduce((total, { loss }) => total + loss, 0);

/** Adapters of a stage, and the segments of a pass. */
type Setting = {
  readonly spec: ModelSpec;
  readonly changes: Partial<StageSizes>;
  readonly sharesOf: (rng: Rng) => readonly Segment[];
  readonly given: readonly PoolAdapter[];
};

/** Zero where a factor is frozen: rows of A, columns of B. */
function withinTrained(adapter: PoolAdapter, at: FactorTensor): FactorTensor {
  if (adapter.trainedRank === undefined || isOfTable(at)) return at;
  const [rank, trained] = [rankAt(adapter, at.layer, at.linear), trainedAt(adapter, at.layer, at.linear)];
  const width = at.values.length / rank;
  const rankOf = (i: number) => (at.factor === "A" ? Math.floor(i / width) : i % rank);
  return { ...at, values: at.values.map((value, i) => (rankOf(i) < trained ? value : 0)) };
}

/** The stage after a backward pass, and its micro-batch. */
async function afterBackward({ spec, changes, sharesOf, given }: Setting) {
  const of = given.map((adapter) => adapterOn(spec, adapter));
  const seeds = of.map((_, adapter) => 5 + adapter);
  const stage = await tinyStage(new CpuDevice(2), spec, of, seeds, changes);
  const batch = pack(sharesOf(new Rng(9)), of.length, stage.device.rowTile);
  await stage.forward(0, batch);
  await stage.backward(0);
  return { of, stage, batch };
}

const gradientsOf = async (stage: Stage, adapter: number) => factorsOf(stage, adapter, await stage.pool.read(adapter, "grads"));

/** Of all factors of these adapters in one pass; `total` is the loss that the segments are of. */
export async function expectGradients(
  spec: ModelSpec,
  changes: Partial<StageSizes>,
  sharesOf: Setting["sharesOf"],
  total: SegmentLoss,
  given: readonly PoolAdapter[],
): Promise<void> {
  const { of, stage: opened, batch } = await afterBackward({ spec, changes, sharesOf, given });
  using stage = opened;
  const tried = await Promise.all(
    of.map(async (adapter, slot) => {
      const gradients = await gradientsOf(stage, slot);
      for (const at of gradients) expect(at.values).toEqual(withinTrained(adapter, at).values);
      const directions = (await randomFactors(stage, slot, 123)).map((at) => withinTrained(adapter, at).values);
      const start = await readAdapter(stage, slot);
      return start.map((at, i) => ({ ...factorOf(at), slot, at, gradient: gradients[i]!.values, direction: directions[i]! }));
    }),
  );

  // A factor of each adapter at once: the others' losses do not change with it. The same masks: they are a function of seed,
  // step, module and row.
  for (let i = 0; tried.some((factors) => i < factors.length); i++) {
    const moving = tried.flatMap((factors) => factors[i] ?? []);
    const [lengths, products] = [moving.filter(({ at }) => at.factor === "M"), moving.filter(({ at }) => at.factor !== "M")];
    const move = async (some: typeof moving, by: number) => {
      for (const { slot, at, step, direction } of some) {
        const values = at.values.map((value, j) => value + by * step * direction[j]!);
        await writeAdapter(stage, slot, [{ ...at, values }]);
      }
    };
    const lossesAt = async (by: number): Promise<readonly number[]> => {
      await move(products, by);
      stage.pool.takeStale("dora"); // DoRA's norms count as constants: they stay as they are
      await move(lengths, by);
      const losses = (await stage.evaluate(batch))!;
      return moving.map(({ slot }) => total(batch, losses, slot));
    };
    // Four points, so that the error of the difference is of fourth order.
    const points = { above: await lossesAt(1), below: await lossesAt(-1), high: await lossesAt(2), low: await lossesAt(-2) };
    await move(moving, 0);
    if (lengths.length > 0) await stage.evaluate(batch); // computes the gains of the magnitudes that are back
    for (const [j, { slot, at, step, most, gradient, direction }] of moving.entries()) {
      const [near, far] = [points.above[j]! - points.below[j]!, points.high[j]! - points.low[j]!];
      const numeric = (8 * near - far) / (12 * step);
      const along = gradient.reduce((total, g, k) => total + g * direction[k]!, 0);
      const size = Math.hypot(...gradient) * Math.hypot(...direction);
      const where = `${at.layer}.${at.linear}.${at.factor} of adapter ${slot}: ${along} against ${numeric}`;
      expect(size, where).toBeGreaterThan(0);
      expect(Math.abs(along - numeric) / size, where).toBeLessThan(most); // a wrong mask or scale is off by 0.1 and more
    }
  }
}

/**
 * The step of a factor's differences, and the error allowed. A vector is few numbers: a short step drowns in rounding, which is
 * seen in a longer one, too: 0.21 % at most, by one processor's products or another's; 0.07 % of matrices.
 */
function factorOf({ factor, values }: FactorTensor): { readonly step: number; readonly most: number } {
  const isVector = factor.startsWith("lambda") || values.length < 8;
  return isVector ? { step: 0.03, most: 5e-3 } : { step: 0.004, most: 2e-3 };
}

/** What is kept from forward to backward and what is computed again changes no bit of a gradient. */
export async function expectSameRecomputed(
  spec: ModelSpec,
  changes: Partial<StageSizes>,
  sharesOf: Setting["sharesOf"],
  given: readonly PoolAdapter[],
): Promise<void> {
  const found = async (recomputation: StageSizes["recomputation"]) => {
    const { of, stage: opened } = await afterBackward({ spec, changes: { ...changes, recomputation }, sharesOf, given });
    using stage = opened;
    const gradients = (await Promise.all(of.map((_, slot) => gradientsOf(stage, slot)))).flat();
    return gradients.map(({ layer, linear, factor, values }) => [`${layer}.${linear}.${factor}`, Bun.hash(values)]);
  };
  const kept = await found("none");
  for (const recomputation of ["selective", "full", "offload"] as const) expect(await found(recomputation)).toEqual(kept);
}
