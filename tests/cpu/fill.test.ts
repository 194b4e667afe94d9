// Random weights are the same numbers on every device: here against the formula of ops/fill.ts, bit for bit.

import { describe, expect, test } from "bun:test";
import { mix } from "../../src/base/rng.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { randomFill } from "../../src/ops/fill.ts";

/** `size` numbers by the formula; all of them have the high word 0. */
function formula(size: number, seed: number, scale: number): Float32Array {
  const key = mix(mix(seed));
  return Float32Array.from({ length: size }, (_, i) => ((mix(key ^ i) >>> 8) / 2 ** 23 - 1) * Math.fround(scale));
}

async function filled(threads: number, size: number, seed: number, scale: number): Promise<Float32Array> {
  using device = new CpuDevice(threads);
  const out = { ptr: device.allocate(4 * size, "a test"), dtype: "f32", shape: [1, size] } as const;
  randomFill(device, { out, seed, scale });
  return new Float32Array((await device.read(out)).buffer);
}

describe("random_fill", () => {
  test.each([
    [1, 0, 1],
    [4097, 7, 0.02],
    [100_003, 0xfffffff3, 0.0137],
    [513, -5, 3e-5],
  ])("%i numbers of seed %i and scale %f", async (size, seed, scale) => {
    expect(await filled(2, size, seed, scale)).toEqual(formula(size, seed, scale));
  });

  test("does not depend on the threads", async () => {
    expect(await filled(1, 20_000, 3, 1)).toEqual(await filled(2, 20_000, 3, 1));
  });

  test("is uniform, and another seed makes other numbers", async () => {
    const n = 200_000;
    const [a, b] = [await filled(2, n, 1, 2), await filled(2, n, 2, 2)];
    const mean = (values: Float32Array, of: (value: number, i: number) => number) =>
      values.reduce((total, value, i) => total + of(value, i), 0) / n;
    expect(Math.abs(mean(a, (value) => value))).toBeLessThan(0.02);
    expect(mean(a, (value) => value ** 2)).toBeCloseTo(4 / 3, 1);
    expect(Math.abs(mean(a, (value, i) => value * b[i]!))).toBeLessThan(0.02);
    expect(Math.abs(mean(a, (value, i) => value * (a[i + 1] ?? 0)))).toBeLessThan(0.02);
    expect(a.every((value) => value >= -2 && value < 2)).toBe(true);
  });
});
