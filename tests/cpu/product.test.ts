// Products of matrices on the cpu device (ffi/native/product.c, gemm.c): right at all sizes, an element's sum the same in all.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { openHost } from "../../src/device/cpu/host.ts";
import { CpuDevice } from "../../src/device/cpu.ts";

using device = new CpuDevice(2);
const host = openHost(2, () => 0);
const rng = new Rng(7);

/** Values in the device's memory, with room before a row of `ld`. */
function matrix(rows: number, ld: number) {
  const ptr = device.allocate(Math.max(1, rows * ld) * 4, "a test");
  const tensor = { ptr, dtype: "f32", shape: [rows, ld] } as const;
  const values = Float32Array.from({ length: rows * ld }, () => rng.uniform() - 0.5);
  device.write(tensor, values);
  return { tensor, values, ptr, ld };
}
const valuesOf = async ({ tensor }: ReturnType<typeof matrix>) => new Float32Array((await device.read(tensor)).buffer);

const SIZES = [
  [1, 1, 1],
  [7, 17, 15],
  [24, 48, 16],
  [37, 100, 193],
  [130, 301, 400],
  [9, 47, 0],
  [0, 5, 3],
  [5, 0, 3],
] as const;

for (const [m, n, k] of SIZES)
  for (const [ta, tb] of [[false, false], [false, true], [true, false], [true, true]] as const) // biome-ignore format: pairs
    test(`a product of ${m} x ${n} x ${k}${ta ? ", a transposed" : ""}${tb ? ", b transposed" : ""}`, async () => {
      const [a, b, c] = [matrix(ta ? k : m, (ta ? m : k) + 3), matrix(tb ? n : k, (tb ? k : n) + 5), matrix(m, n + 2)];
      for (const [alpha, beta] of [
        [1, 0],
        [0.5, 1],
        [2, -1],
      ] as const) {
        // biome-ignore format: pairs
        const before = beta === 0 ? c.values.fill(Number.NaN) : await valuesOf(c);
        device.write(c.tensor, before);
        host.product([m, n, k], a, ta, b, tb, c, alpha, beta);
        const after = await valuesOf(c);
        let worst = 0;
        for (const i of range(m)) {
          for (const j of range(n)) {
            let sum = 0;
            for (const l of range(k))
              sum += a.values[ta ? l * a.ld + i : i * a.ld + l]! * b.values[tb ? j * b.ld + l : l * b.ld + j]!;
            const expected = alpha * sum + (beta === 0 ? 0 : beta * before[i * c.ld + j]!);
            worst = Math.max(worst, Math.abs(after[i * c.ld + j]! - expected)); // a NaN stays
          }
          const beyond = (of: Float32Array) => new Uint32Array(of.slice(i * c.ld + n, (i + 1) * c.ld).buffer); // bits: NaN, too
          expect(beyond(after)).toEqual(beyond(before));
        }
        expect(worst).toBeLessThan(2e-5);
      }
    });

// What batch invariance rests on, and that the number of threads may decide how a product is cut.
test.skipIf(!host.gemm)("an element has the same bits whatever rows and columns are computed with it", async () => {
  const [m, n, k] = [200, 340, 777];
  for (const [ta, tb] of [
    [false, true],
    [false, false],
    [true, false],
  ] as const) {
    const [a, b, whole, part] = [matrix(ta ? k : m, ta ? m : k), matrix(tb ? n : k, tb ? k : n), matrix(m, n), matrix(m, n)];
    host.product([m, n, k], a, ta, b, tb, whole);
    const expected = await valuesOf(whole);
    for (const [row, rows, column, columns] of [
      [0, 1, 0, 1],
      [5, 90, 0, 340],
      [24, 24, 33, 100],
      [199, 1, 100, 240],
    ] as const) {
      // biome-ignore format: places
      const from = { ptr: a.ptr + 4 * row * (ta ? 1 : a.ld), ld: a.ld };
      const of = { ptr: b.ptr + 4 * column * (tb ? b.ld : 1), ld: b.ld };
      host.product([rows, columns, k], from, ta, of, tb, part);
      const got = await valuesOf(part);
      for (const i of range(rows))
        expect(got.subarray(i * n, i * n + columns)).toEqual(
          expected.subarray((row + i) * n + column, (row + i) * n + column + columns),
        );
    }
  }
});
