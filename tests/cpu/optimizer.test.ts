// The optimizer kernel against torch.optim, adapters with different optimizers in one launch.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { OptimizerStep } from "../../src/bus/messages.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { stepTable } from "../../src/engine/optimizer.ts";
import { ADAMW_TABLE_WIDTH, adamwStep } from "../../src/ops/adamw.ts";

type Case = {
  readonly optimizer: { readonly name: "sgd" | "adamw"; readonly weight_decay: number } & Readonly<Record<string, never>>;
  readonly start: number[];
  readonly gradients: number[][];
  readonly rates: number[];
  readonly coefficients: number[];
  readonly end: number[];
};
const CASES: Case[] = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "optimizers", "steps.json"), "utf8"));
const SIZE = CASES[0]!.start.length;

test("ten steps of SGD and AdamW are PyTorch's, side by side, and an adapter that makes no step is not touched", async () => {
  using device = new CpuDevice(2);
  const slots = CASES.length + 1; // the last is idle
  using arena = new Arena(device, 1 << 16, "a test");
  const [params, grads, m, v] = [1, 2, 3, 4].map(() => arena.tensor("f32", slots, SIZE));
  const table = arena.tensor("f32", slots, ADAMW_TABLE_WIDTH);
  const factors = arena.tensor("i32", Math.ceil(SIZE / 128));
  device.write(
    factors,
    Int32Array.from({ length: factors.shape[0]! }, (_, i) => i % 2),
  );
  const idle = new Array(SIZE).fill(7) as number[];
  device.write(params!, Float32Array.from([...CASES.flatMap(({ start }) => start), ...idle]));
  for (const zeros of [m!, v!]) device.zero(zeros);
  for (let step = 0; step < CASES[0]!.rates.length; step++) {
    device.write(grads!, Float32Array.from([...CASES.flatMap(({ gradients }) => gradients[step]!), ...idle]));
    const steps = CASES.map(({ optimizer, rates, coefficients }, adapter): OptimizerStep => {
      const { name: _, weight_decay: weightDecay, ...rule } = optimizer;
      const common = {
        adapter,
        t: step + 1,
        learningRate: rates[step]!,
        weightDecay,
        coefficient: coefficients[step]!,
        ratio: 1,
      };
      return { ...common, ...rule } as unknown as OptimizerStep;
    });
    device.write(table, stepTable(steps, slots));
    adamwStep(device, { params: params!, grads: grads!, m: m!, v: v!, copy: null, factors, table });
  }
  const read = async (of: typeof table) => new Float32Array((await device.read(of)).buffer);
  const [p, g, second] = [await read(params!), await read(grads!), await read(v!)];
  for (const [i, { end, optimizer }] of CASES.entries()) {
    // ten roundings of numbers about 1
    for (const [k, want] of end.entries())
      expect(Math.abs(p[i * SIZE + k]! - want), JSON.stringify(optimizer)).toBeLessThan(2e-6);
    if (optimizer.name === "sgd") expect(second.subarray(i * SIZE, (i + 1) * SIZE).every((x) => x === 0)).toBe(true);
  }
  expect([...p.subarray(-SIZE)]).toEqual(idle);
  expect([...g.subarray(-SIZE)]).toEqual(idle);
  expect(g.subarray(0, -SIZE).every((x) => x === 0)).toBe(true);
});
