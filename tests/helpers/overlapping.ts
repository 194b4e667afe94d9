// Layers of a pass over few rows that a device records and repeats: the bits of one launch after the other, also where kernels
// of the record begin before those that they follow have ended.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { attentionDecode, PAGE } from "../../src/ops/decode.ts";
import { fewRowsNorm, fewRowsNormed, fewRowsRope, fewRowsSwiglu } from "../../src/ops/fewrows/fused.ts";
import { fewRowsForward } from "../../src/ops/fewrows.ts";
import { adaptersOf, K, opened } from "./fewrows-fused.ts";

/** Layers that have weights of their own; more have theirs again. */
const OWN = 3;
const HEADS = { heads: 3, kvHeads: 1, headDim: 64 };
const QKV = [192, 64, 64];

/** A pass of layers over rows, each of which sees the keys that it is given and its own. */
function layersOn(device: Device, seed: number, rows: number, count: number) {
  const on = opened(device, new Rng(seed));
  const stream = range(count + 1).map(() => on.take(device.compute, rows, K));
  const [normed, rstd] = [on.take(device.compute, rows, K), on.take("f32", rows)];
  const [qkv, out, seen] = [320, 320, 192].map((width) => on.take(device.compute, rows, width)) as [Tensor, Tensor, Tensor];
  const [gateUp, h] = [on.take(device.compute, rows, 2 * K), on.take(device.compute, rows, K)];
  const norm = (x: Tensor, weight: Tensor) => fewRowsNorm(device, { x, weight, residual: null, y: normed, rstd, eps: 1e-5 });
  const pages = on.put("i32", Int32Array.from(range(rows).map((i) => (7 * i + 3) % rows)), rows);
  const bounds = on.put("i32", Int32Array.from(range(rows).flatMap((m) => [m * PAGE, m * PAGE + 1 + (m % PAGE)])), rows, 2);
  const places = on.put("i32", Int32Array.from(range(rows).map((m) => m * PAGE + (m % PAGE))), rows);
  const positions = on.put("i32", Int32Array.from(range(rows).map((m) => m % PAGE)), rows);
  const angles = { cos: on.floats("f32", 1, PAGE, 32), sin: on.floats("f32", 1, PAGE, 32), queryScale: null, rotated: 64 };
  const layers = range(Math.min(OWN, count)).map((i) => ({
    norms: range(2).map(() => on.floats("f32", 1, K)) as [Tensor, Tensor],
    qkv: { weight: on.values(K ** -0.5, sum(QKV), K), bias: on.values(1, sum(QKV)), lora: adaptersOf(on, QKV, rows) },
    cache: on.values(1, rows * PAGE, 128),
    o: { weight: on.values(0.3 * 192 ** -0.5, K, 192), bias: null, lora: null },
    gateUp: { weight: on.values(K ** -0.5, 2 * K, K), bias: null, lora: i === 1 ? null : adaptersOf(on, [K, K], rows) },
    down: { weight: on.values(0.3 * K ** -0.5, K, K), bias: null, lora: adaptersOf(on, [K], rows) },
  }));
  const pass = () => {
    for (const i of range(count)) {
      const [of, x, next] = [layers[i % OWN]!, stream[i]!, stream[i + 1]!];
      const [isFused, wasFused] = [i % 2 === 1, i % 2 === 0 && i > 0]; // norms in the kernels of the sums before them
      if (!wasFused) norm(x, of.norms[0]);
      fewRowsRope(device, {
        ...{ ...of.qkv, ...angles, ...HEADS, x: normed, y: qkv, out, places, pages, cache: of.cache, positions },
        ...{ qWeight: null, kWeight: null, eps: 1e-5 },
      });
      attentionDecode(device, {
        ...{ ...HEADS, qkv: out, cache: of.cache, pages, bounds, tiles: null, areAllTiled: false, sinks: null, out: seen },
        ...{ scale: 0.125, window: 0, cap: 0 },
      });
      const o = { ...of.o, x: seen, residual: x, y: next };
      if (isFused) fewRowsNormed(device, { ...o, norm: of.norms[1], h: normed, rstd, eps: 1e-5 });
      else {
        fewRowsForward(device, o);
        norm(next, of.norms[1]);
      }
      fewRowsSwiglu(device, { ...of.gateUp, x: normed, y: gateUp, h });
      const down = { ...of.down, x: h, residual: next, y: next };
      if (isFused) fewRowsNormed(device, { ...down, norm: layers[(i + 1) % OWN]!.norms[0], h: normed, rstd, eps: 1e-5 });
      else fewRowsForward(device, down);
    }
  };
  const inputs = range(2).map(() => on.values(1, rows, K));
  const end = async () => Buffer.from(await device.read(stream.at(-1)!)).toString("base64");
  return { first: stream[0]!, inputs, pass, end };
}

/** `layers` and passes of the recorded test. */
export function overlapsNothing(open: () => Device, allRows: readonly number[], layers: number, passes: number): void {
  test.each([...allRows])("a recorded pass of %d rows has the bits of its launches, one after the other", async (rows) => {
    using device = open();
    device.reserveScratch(2 ** 26);
    const seed = Math.floor(1e9 * Math.random());
    const { first, inputs, pass, end } = layersOn(device, seed, rows, layers);
    const wanted: string[] = [];
    for (const input of inputs) {
      device.copy(first, input);
      pass();
      wanted.push(await end());
    }
    expect(wanted[0]).not.toBe(wanted[1]);
    for (const i of range(passes)) {
      device.copy(first, inputs[i % 2]!);
      device.replay("a pass", pass);
      expect((await end()) === wanted[i % 2], `pass ${i} of ${rows} rows, seed ${seed}`).toBe(true);
    }
  });
}
