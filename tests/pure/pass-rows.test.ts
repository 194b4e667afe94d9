// How many rows a pass has: what docs/architecture.md says of it, where micro-batches are smaller and memory is enough.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { makePlan, type StageDevice } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { recipeOf } from "../../src/session/benchmark/work.ts";

const GIB = 2 ** 30;
const DEVICES: readonly StageDevice[] = [
  { kind: "cpu", compute: "f32", rowTile: 24, threads: 2, ordinal: 0 } as const,
  { kind: "cuda", compute: "bf16", rowTile: 128, threads: 0, ordinal: 0 } as const,
].map((of) => ({ ...of, name: "a device", totalBytes: 79 * GIB, freeBytes: 78 * GIB, count: 1, note: null, host: "" }));

/** Rows of a pass of adapters of 4 rows each. */
const rowsOf = (device: StageDevice, adapters: number, length: number): number =>
  planOf([device], adapters, length).stages[0]!.sizes.rows;

function planOf(devices: readonly StageDevice[], adapters: number, length: number) {
  const [shape, spec] = ["smollm2-135m", shapeOf("smollm2-135m")];
  const recipe = recipeOf({ adapters, rows: 4, length }, { shape, spec }, 10);
  const row = { length, longest: length, targets: length };
  const data = range(adapters).map(() => ({ train: range(4).map(() => row), eval: [], reference: null }));
  return makePlan(recipe, spec, data, devices);
}

test("micro-batches of several adapters share passes of 264 rows on a CPU, of 4096 on a GPU", () => {
  const [cpu, cuda] = DEVICES as [StageDevice, StageDevice];
  expect(range(3).map((i) => rowsOf(cpu, 20, 8 << i))).toEqual([264, 264, 264]);
  expect(range(3).map((i) => rowsOf(cuda, 20, 64 << i))).toEqual([4096, 4096, 4096]);
});

test("a micro-batch that is larger is a pass of its own, in whole tiles", () => {
  const [cpu, cuda] = DEVICES as [StageDevice, StageDevice];
  expect([rowsOf(cpu, 3, 100), rowsOf(cuda, 3, 1024)]).toEqual([408, 4096]);
  expect([rowsOf(cpu, 3, 1024), rowsOf(cuda, 3, 1000)]).toEqual([4104, 4096]);
});

test("stages of several processors have the larger row tile in common", () => {
  const [large] = DEVICES as [StageDevice];
  const small = { ...large, rowTile: 8, host: "b" };
  for (const devices of [
    [small, large],
    [large, small],
    [small, small],
  ]) {
    // biome-ignore format: pairs
    const plan = planOf(devices, 3, 50);
    const tile = devices.includes(large) ? 24 : 8;
    expect(plan.device.rowTile).toBe(tile);
    expect(setupsOf(plan, { randomSeed: 1 }).map(({ device }) => device.rowTile)).toEqual([tile, tile]);
    for (const { sizes } of plan.stages)
      expect([sizes.rows % tile, sizes.targets % tile, sizes.chunk % tile]).toEqual([0, 0, 0]);
  }
});
