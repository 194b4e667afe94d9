// The choice of next tokens on any device, against that of base/sample.ts on the same logits.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { shapedLogits } from "../../src/base/logits.ts";
import { Rng } from "../../src/base/rng.ts";
import { candidates, choose, type Sampling } from "../../src/base/sample.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { chooseTokens, nextIds } from "../../src/ops/choose.ts";
import { tensorsOn } from "./on-device.ts";

const SAMPLINGS: readonly Sampling[] = [0, 0.6, 1, 1.7].flatMap((temperature) =>
  [0, 1, 3, 50, 100_000].flatMap((topK) => [1, 0.95, 0.5, 0.01].map((topP) => ({ temperature, topK, topP }))),
);

/** Whether a chance is so near to the end of a token's share that rounding may give it to the next one. */
function isNear(logits: Float32Array, sampling: Sampling, uniform: number): boolean {
  if (sampling.temperature === 0 || sampling.topK === 1) return false;
  let mass = 0;
  return candidates(logits, sampling).some(([, probability]) => {
    mass += probability;
    return Math.abs(mass - uniform) < 3e-5;
  });
}

export function choosesAsHosts(open: () => Device): void {
  for (const [vocab, scale, cap] of [
    [300, 1, 0],
    [50, 1, 0],
    [32_000, 1, 0],
    [49_157, 0.5, 30],
  ] as const)
    test(`of ${vocab} tokens`, async () => {
      using device = open();
      const seed = Math.floor(1e9 * Math.random());
      const rng = new Rng(seed);
      const width = 8 * Math.ceil((vocab + 3) / 8);
      const { compute } = device;
      const take = (dtype: Tensor["dtype"], ...shape: number[]): Tensor => {
        return { ptr: device.allocate(sizeOf(shape) * bytesOf(dtype), "a test"), dtype, shape };
      };
      const rows = SAMPLINGS.length;
      const [spread, broken] = [SAMPLINGS.map((_, t) => [0.3, 2, 5][t % 3]!), [7, 29]];
      // Of every fourth row few different logits, so that many are equal.
      const values = Float32Array.from({ length: rows * width }, (_, i) => {
        const t = Math.floor(i / width);
        const value = spread[t]! * rng.normal();
        return t % 4 === 3 ? Math.round(2 * value) / 2 : value;
      });
      for (const t of broken) values[t * width + (t % vocab)] = t === 7 ? Number.NaN : Number.POSITIVE_INFINITY;
      const logits = take(compute, rows, width);
      device.write(logits, compute === "bf16" ? toBf16(values) : values);
      const held = toF32(await device.read(logits), compute);
      const targets = Int32Array.from(range(rows), (t) => (t % 11 === 5 ? -1 : t));
      const uniforms = SAMPLINGS.map(() => rng.uniform());
      const settings = Float32Array.from(
        SAMPLINGS.flatMap(({ temperature, topK, topP }, t) => [temperature, topK, topP, uniforms[t]!]),
      );
      const [wanted, table, chosen] = [take("i32", rows), take("f32", rows, 4), take("f32", rows, 4)];
      device.write(wanted, targets);
      device.write(table, settings);
      device.write(chosen, new Float32Array(4 * rows).fill(7));
      chooseTokens(device, { logits, classes: vocab, targets: wanted, settings: table, chosen, scale, cap });
      const bytes = await device.read(chosen);
      const [tokens, found] = [new Int32Array(bytes.buffer), new Float32Array(bytes.buffer)];
      let compared = 0;
      for (const t of range(rows)) {
        if (targets[t]! < 0) {
          expect([...found.subarray(4 * t, 4 * t + 4)]).toEqual([7, 7, 7, 7]);
          continue;
        }
        const row = shapedLogits(held.subarray(t * width, t * width + vocab), scale, cap);
        const sampling = { ...SAMPLINGS[t]!, temperature: settings[4 * t]!, topP: settings[4 * t + 2]! };
        const want = choose(row, sampling, uniforms[t]!);
        const about = `row ${t} of seed ${seed}: ${JSON.stringify(sampling)}, chance ${uniforms[t]}`;
        if (isNear(row, sampling, uniforms[t]!)) continue;
        compared++;
        expect(tokens[4 * t], about).toBe(want.token);
        if (want.token < 0) continue;
        expect(found[4 * t + 1], about).toBeCloseTo(want.logProb, 3);
        expect(found[4 * t + 2], about).toBeCloseTo(want.drawnLogProb, 3);
      }
      expect(compared).toBeGreaterThan(rows / 2);
    });

  test("ids of rows that follow are what was chosen for others", async () => {
    for (const rows of [1, 40, 700]) {
      using device = open();
      const { put } = tensorsOn(device);
      const rng = new Rng(rows);
      const [targets, words] = [rows + 3, new Int32Array(4 * (rows + 3)).map(() => rng.below(2 ** 17))];
      const [source, ids] = [range(rows).map(() => rng.below(targets + 1) - 1), range(rows).map(() => rng.below(2 ** 17))];
      const chosen = { ...put("i32", words, targets, 4), dtype: "f32" as const };
      const to = put("i32", Int32Array.from(ids), rows);
      nextIds(device, { chosen, source: put("i32", Int32Array.from(source), rows), ids: to });
      const found = [...new Int32Array((await device.read(to)).buffer)];
      expect(found).toEqual(source.map((t, m) => (t < 0 ? ids[m]! : words[4 * t]!)));
    }
  });
}
