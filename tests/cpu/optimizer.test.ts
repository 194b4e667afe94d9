// The optimizer kernel against torch.optim, adapters with different optimizers.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { MadeOptimizerStep } from "../../src/bus/messages.ts";
import { Arena, rowsFrom } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { stepTable } from "../../src/engine/pool/optimizer.ts";
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
  using arena = new Arena(device, 1 << 16, "a test");
  const take = () => [1, 2, 3, 4].map(() => arena.tensor("f32", SIZE)) as [Tensor, Tensor, Tensor, Tensor];
  const adapters = [...CASES.map(() => take()), take()]; // the last is idle
  const table = arena.tensor("f32", adapters.length, ADAMW_TABLE_WIDTH);
  const factors = arena.tensor("i32", Math.ceil(SIZE / 128));
  device.write(
    factors,
    Int32Array.from({ length: factors.shape[0]! }, (_, i) => i % 2),
  );
  const idle = new Array(SIZE).fill(7) as number[];
  for (const [i, [params, , m, v]] of adapters.entries()) {
    device.write(params, Float32Array.from(CASES[i]?.start ?? idle));
    for (const zeros of [m, v]) device.zero(zeros);
  }
  for (let step = 0; step < CASES[0]!.rates.length; step++) {
    for (const [i, [, grads]] of adapters.entries()) device.write(grads, Float32Array.from(CASES[i]?.gradients[step] ?? idle));
    const steps = CASES.map(({ optimizer, rates, coefficients }, adapter): MadeOptimizerStep => {
      const { name: _, weight_decay: weightDecay, ...rule } = optimizer;
      const common = {
        adapter,
        t: step + 1,
        learningRate: rates[step]!,
        weightDecay,
        coefficient: coefficients[step]!,
        ratio: 1,
      };
      return { ...common, ...rule } as unknown as MadeOptimizerStep;
    });
    device.write(table, stepTable(steps, adapters.length));
    for (const [i, [params, grads, m, v]] of adapters.entries()) {
      const row = { ...rowsFrom(table, i, 1), shape: [ADAMW_TABLE_WIDTH] };
      adamwStep(device, { params, grads, m, v, copy: null, factors, table: row });
    }
  }
  const read = async (which: number) => {
    const all = await Promise.all(adapters.map(async (of) => new Float32Array((await device.read(of[which]!)).buffer)));
    return Float32Array.from(all.flatMap((values) => [...values]));
  };
  const [p, g, second] = [await read(0), await read(1), await read(3)];
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
