// Adapters in a step share a few buffers for their gradients: one that begins when the schedule says that there is room has a
// buffer of zeros, and what it adds stays until its step.

import { expect, test } from "bun:test";
import { hostView } from "../../ffi/memory.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { GradientBuffers, gradientBytes } from "../../src/engine/pool/gradient-buffers.ts";
import { memberOf, Pool } from "../../src/schedule/balance.ts";
import { fitBuffers, GradientRoom } from "../../src/schedule/gradients.ts";

const valuesOf = ({ ptr, shape }: Tensor) => new Float32Array(hostView(ptr, 4 * shape[0]!));

test("10,000 mini-batches of unequal adapters begin and end in any order: none disturbs another", () => {
  using device = new CpuDevice(1);
  const rng = new Rng(3);
  const sizes = range(40).map(() => (rng.below(8) === 0 ? 300 + rng.below(50) : 1 + rng.below(40)));
  const elements = sizes.toSorted((a, b) => b - a).slice(0, 6);
  const before = device.allocated;
  const at = new Map<number, Tensor>();
  const buffers = new GradientBuffers(device, elements, (slot, gradients) => at.set(slot, gradients));
  const room = new GradientRoom({ buffers: [elements], needed: (adapter) => [sizes[adapter]!] });
  expect(device.allocated - before).toBe(gradientBytes(elements, "cpu"));
  const inStep = new Map<number, number>();
  let [begun, refused, most] = [0, 0, 0];
  while (begun < 10_000) {
    for (const [slot, value] of inStep) expect(valuesOf(at.get(slot)!).every((of) => of === value)).toBe(true);
    const slot = rng.below(sizes.length);
    if (inStep.has(slot)) {
      // A step leaves zeros; an adapter that fails or leaves has none.
      const kind = rng.below(3);
      if (kind === 0) {
        valuesOf(at.get(slot)!).fill(0);
        buffers.stepped(slot);
      } else if (kind === 1) buffers.drop(slot);
      else buffers.release(slot);
      inStep.delete(slot);
      room.release(slot);
      continue;
    }
    if (!room.selection().fits(slot)) {
      expect(
        fitBuffers(
          [...inStep.keys(), slot].map((of) => sizes[of]!).sort((a, b) => b - a),
          elements,
        ),
      ).toBe(false);
      refused++;
      const first = [...inStep.keys()][rng.below(inStep.size)]!;
      buffers.drop(first);
      inStep.delete(first);
      room.release(first);
      continue;
    }
    room.take(slot);
    const taken = buffers.take(slot, sizes[slot]!);
    expect(taken).toEqual(at.get(slot)!);
    expect(valuesOf(taken).every((of) => of === 0)).toBe(true);
    inStep.set(slot, ++begun);
    valuesOf(taken).fill(begun);
    most = Math.max(most, inStep.size);
  }
  expect([most, refused > 0]).toEqual([6, true]);
  buffers[Symbol.dispose]();
  expect(device.allocated).toBe(before);
});

test("with a buffer for each, every adapter keeps its own and none is lent anew", () => {
  using device = new CpuDevice(1);
  let moves = 0;
  using buffers = new GradientBuffers(device, [64, 8, 8], () => moves++);
  for (const _ of range(5))
    for (const [slot, size] of [8, 64, 8].entries()) {
      buffers.take(slot, size);
      buffers.stepped(slot);
    }
  expect(moves).toBe(3);
});

test("a pass is of adapters that have buffers, one that was begun continues, and every mini-batch comes to its turn", () => {
  const sizes = [5, 1, 1, 1, 5, 1];
  const needs = { buffers: [[5, 1, 1]], needed: (adapter: number) => [sizes[adapter]!] };
  const limits = { tokensPerMicrobatch: 10, passRows: 60, rowTile: 10 };
  const pool = new Pool({ kind: "lorapp", packing: "filled", stages: 1, gradients: needs, ...limits });
  const work = { lengths: [10, 10], batchSize: 1, accumulation: 2, epochs: null, steps: 4, shuffle: false, seed: 0 };
  for (const adapter of sizes.keys()) pool.add(memberOf(adapter, work, 0, limits));
  const held = new Set<number>();
  const steps = sizes.map(() => 0);
  for (let now = 1; pool.readyAt() < Number.POSITIVE_INFINITY; now++) {
    const { segments } = pool.take(now, 60);
    for (const { adapter } of segments) held.add(adapter);
    const sorted = [...held].map((adapter) => sizes[adapter]!).sort((a, b) => b - a);
    expect(fitBuffers(sorted, needs.buffers[0]!)).toBe(true);
    for (const { adapter } of segments.filter(({ last }) => last)) {
      pool.stepped(adapter);
      pool.release(adapter, now);
      held.delete(adapter);
      steps[adapter]!++;
    }
    pool.sift(() => false);
  }
  expect(steps).toEqual([4, 4, 4, 4, 4, 4]);
});

test("a stage on which no adapter has an element has buffers, which are empty", () => {
  using device = new CpuDevice(1);
  using buffers = new GradientBuffers(device, [0, 0], () => undefined);
  expect(sizeOf(buffers.take(0, 0).shape)).toBe(0);
  expect(device.allocated).toBe(gradientBytes([0, 0], "cpu"));
});
