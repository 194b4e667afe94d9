// The C kernels fuse a product to a sum where their sources say so, and nowhere else, in each place of a row: the vectors of a
// loop and its rest are the same operations, so that no number depends on which of them a compiler gave it to.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CPU_ROW_TILE } from "../../src/device/tile.ts";
import { adamwStep } from "../../src/ops/adamw.ts";
import { doraForward } from "../../src/ops/dora.ts";
import { gateBackward } from "../../src/ops/gate.ts";
import { gegluBackward } from "../../src/ops/geglu.ts";
import { rmsnormBackward, rmsnormForward } from "../../src/ops/rmsnorm.ts";
import { ropeBackward, ropeForward } from "../../src/ops/rope.ts";
import { swigluBackward, swigluForward } from "../../src/ops/swiglu.ts";
import { onCpu, random } from "../helpers/recurrence.ts";

const { device, put, putInts, empty, read } = onCpu();
const { fround } = Math;
const WIDTHS = [...range(41).map((i) => i + 1), 64, 100, 257];

/** a b + c rounded once: a product of two f32 is exact in a double, whose own rounding of the sum shows in one of 2^29. */
const fused = (a: number, b: number, c: number) => fround(a * b + c);

test("a rotation fuses one of its products to the other", async () => {
  const rng = new Rng(1);
  for (const half of WIDTHS) {
    const [D, positions] = [2 * half, putInts([0], 1)];
    const [x, cos, sin] = [random(rng, 3 * D), random(rng, half), random(rng, half)];
    const tables = {
      positions,
      cos: put(cos, 1, half),
      sin: put(sin, 1, half),
      queryScale: null,
      qWeight: null,
      kWeight: null,
    };
    const of = { ...tables, heads: 1, kvHeads: 1, headDim: D, rotated: D, eps: 1e-6 };
    const [out, dqkv] = [empty(1, 3 * D), put(x, 1, 3 * D)];
    ropeForward(device, { ...of, qkv: put(x, 1, 3 * D), out });
    ropeBackward(device, { ...of, dqkv, qkv: null });
    const want = (sign: number) =>
      Float32Array.from(x, (value, at) => {
        const [i, isSecond] = [at % half, at % D >= half];
        if (at >= 2 * D) return value;
        const [lo, hi] = isSecond ? [x[at - half]!, value] : [value, x[at + half]!];
        const turned = fround(sign * (isSecond ? lo : -hi) * sin[i]!);
        return fused(value, cos[i]!, turned);
      });
    expect(await read(out), `${half} pairs`).toEqual(want(1));
    expect(await read(dqkv), `${half} pairs`).toEqual(want(-1));
  }
});

test("a DoRA's rows are rounded after their gain, too", async () => {
  const [rng, rows] = [new Rng(2), CPU_ROW_TILE];
  let differ = 0;
  for (const width of WIDTHS) {
    const [z, gain, bias, residual] = [rows * width, width, width, rows * width].map((size) => random(rng, size)) as [
      ...[Float32Array, Float32Array, Float32Array, Float32Array],
    ];
    const vectors = { ptr: device.allocate(32, "a test"), dtype: "i64", shape: [1, 1, 4] } as const;
    device.write(vectors, new BigInt64Array(4).fill(BigInt(put(gain, width).ptr)));
    const y = empty(rows, width);
    const tables = { vectors, decomposed: putInts([1], 1), tileAdapter: putInts([0], 1) };
    doraForward(device, { ...tables, z: put(z, rows, width), bias: put(bias, width), residual: put(residual, rows, width), y });
    const rest = (i: number, scaled: number) => fround(fround(scaled + bias[i % width]!) + residual[i]!);
    const want = z.map((value, i) => rest(i, fround(gain[i % width]! * value)));
    differ += want.filter(
      (value, i) => value !== fround(fused(gain[i % width]!, z[i]!, bias[i % width]!) + residual[i]!),
    ).length;
    expect(await read(y), `${width} columns`).toEqual(want);
  }
  expect(differ).toBeGreaterThan(100); // of numbers that would be others if they were fused
});

test("what is alike comes out alike, wherever it stands in a row", async () => {
  const rng = new Rng(3);
  for (const width of WIDTHS)
    for (const _ of range(8)) {
      const row = (value = rng.normal()) => put(new Float32Array(width).fill(value), 1, width);
      const flat = () => put(new Float32Array(width).fill(rng.normal()), width);
      const halves = (a = rng.normal(), b = rng.normal()) =>
        put(
          range(2 * width).map((i) => (i < width ? a : b)),
          1,
          2 * width,
        );
      const made = range(9).map(() => empty(1, width));
      const [h, y, dx, dg, du, dgate, dxg] = made as [(typeof made)[0], ...typeof made];
      const [gateUp, rstd, dgateUp] = [halves(), put([Math.abs(rng.normal()) + 0.1], 1), empty(1, 2 * width)];
      swigluForward(device, { gateUp, h });
      swigluBackward(device, { dh: row(), gateUp, dgateUp });
      rmsnormForward(device, { x: row(), weight: flat(), residual: row(), y: y!, rstd: put([0], 1), eps: 1e-5 });
      rmsnormBackward(device, { dy: row(), x: row(), weight: flat(), rstd, residual: row(), dx: dx! });
      gegluBackward(device, { dh: row(), gate: row(), up: row(), dgate: dg!, dup: du! });
      gateBackward(device, { dy: row(), x: row(), gate: row(), dx: dxg!, dgate: dgate! });
      const [params, grads, m] = [flat(), flat(), flat()];
      const table = put([1, 1e-3, 0.1, 0.999, 1e-3, 1e-8, 0.01, 0.5, 0.3, 0.9, 1e-3], 11);
      const v = put(new Float32Array(width).fill(Math.abs(rng.normal())), width);
      adamwStep(device, {
        params,
        grads,
        m,
        v,
        copy: null,
        factors: putInts(
          range(3).map(() => 0),
          3,
        ),
        table,
      });
      const doubled = await read(dgateUp);
      const outputs = await Promise.all([h, y!, dx!, dg!, du!, dxg!, dgate!, params, m, v].map(read));
      for (const [which, values] of [...outputs, doubled.subarray(0, width), doubled.subarray(width)].entries())
        expect(new Set(values).size, `output ${which} of ${width} columns: ${[...values].slice(-20)}`).toBe(1);
    }
});
