// Frozen weights in fewer bits on the cpu device: the bytes of nf4 are bitsandbytes's, errors are what the formats promise, and
// all that is computed over them is what is computed over their values.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { PackedFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Device } from "../../src/device/device.ts";
import { linearOf, NESTED_BLOCK, NF4_BLOCK, type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { hostBytes } from "../../src/device/shared.ts";
import type { FillTensor } from "../../src/engine/weights/weights.ts";
import { dequantise, quantise } from "../../src/ops/packed.ts";
import { expectSame, type Ground, train } from "../helpers/crowd.ts";
import { randomFill, sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

type Case = Readonly<Record<"rows" | "columns" | "mean", number>> &
  Readonly<Record<"weight" | "codes" | "absmax" | "nested" | "back", string>>;
const GOLDEN = join(import.meta.dir, "..", "golden", "nf4", "nf4.json");
const FORMATS = ["bf16", "int8", "nf4"] as const;

const bytesIn = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "base64"));
const f32Of = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.slice().buffer);
const f32In = (text: string): Float32Array => f32Of(bytesIn(text));

/** A weight of linears of that many rows, quantised from `values`, and what it stands for. */
async function packed(device: CpuDevice, format: PackedFormat, rows: readonly number[], columns: number, values: Float32Array) {
  const firstRow = [0, ...rows.map((_, g) => rows.slice(0, g + 1).reduce((a, b) => a + b))];
  const layout = { format, shape: [firstRow.at(-1)!, columns] as const, firstRow };
  const capacity = 3 * sizeOf(layout.shape) * 4 + partsOf(layout).bytes + 4096;
  using arena = new Arena(device, capacity, "a test");
  const weight: PackedWeight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
  const absmax = arena.tensor("f32", Math.ceil(values.length / NF4_BLOCK));
  const [from, out] = [arena.tensor("f32", ...layout.shape), arena.tensor("f32", ...layout.shape)];
  device.write(from, values);
  for (const [linear, count] of rows.entries()) {
    const ptr = from.ptr + firstRow[linear]! * columns * 4;
    quantise(device, { from: { ...from, ptr, shape: [count, columns] }, weight, linear, absmax });
  }
  dequantise(device, { weight, out });
  const at = linearOf(weight, 0);
  const first = {
    codes: hostBytes(at.codes, Math.floor((rows[0]! * columns) / 2)).slice(),
    absmax: hostBytes(at.absmax, format === "nf4" ? at.blocks : 0).slice(),
    nested: f32Of(hostBytes(at.nested, format === "nf4" ? 4 * Math.ceil(at.blocks / NESTED_BLOCK) : 0)),
    mean: f32Of(hostBytes(at.mean, format === "nf4" ? 4 : 0)),
  };
  return { first, back: new Float32Array((await device.read(out)).buffer) };
}

test("nf4 with double quantisation has the bytes of bitsandbytes, and gives its values", async () => {
  using device = new CpuDevice(2);
  for (const { rows, columns, weight: text, codes, absmax, nested, mean, back } of JSON.parse(readFileSync(GOLDEN, "utf8"))
    .cases as Case[]) {
    const halves = new Uint16Array(bytesIn(text).buffer);
    const values = new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    const { first, back: got } = await packed(device, "nf4", [rows], columns, values);
    expect(Buffer.from(first.codes).equals(bytesIn(codes))).toBe(true);
    expect([...first.absmax]).toEqual([...bytesIn(absmax)]);
    for (const [i, want] of f32In(nested).entries()) expect(first.nested[i]! / want).toBeCloseTo(1, 6);
    expect(first.mean[0]! / mean).toBeCloseTo(1, 6);
    for (const [i, want] of f32In(back).entries())
      expect(Math.abs(got[i]! - want)).toBeLessThan(2e-6 * Math.max(1e-2, Math.abs(want)));
  }
});

/** Fills linear weights with what is left of them in a format. */
const rounded =
  (device: CpuDevice, format: PackedFormat, fill: FillTensor): FillTensor =>
  async (name, to, how) => {
    await fill(name, to, how);
    if (!/(_proj(_with_mqa)?|_linear|\.w[123]|layers\.\d+\.per_layer_(input_gate|projection))\.weight$/.test(name)) return;
    const [rows, columns] = to.shape as [number, number];
    const values = new Float32Array((await device.read(to)).buffer);
    device.write(to, (await packed(device, format, [rows], columns, values)).back);
  };

/** Of normal values, relative to their size: what the format itself loses. */
const LOSES = { bf16: [1e-3, 2e-3], int8: [4e-3, 1.2e-2], nf4: [8e-2, 1.1e-1] } as const;

describe.each(FORMATS)("%s", (format) => {
  test("loses what it must and no more; linears of a group are each quantised as if alone", async () => {
    using device = new CpuDevice(2);
    const rng = new Rng(4, FORMATS.indexOf(format));
    const [rows, columns] = [[72, 24, 40], 200] as const;
    const values = Float32Array.from({ length: 136 * columns }, () => 0.02 * rng.normal());
    values.fill(0, 0, 3 * columns); // rows of zeros stay zero
    const { back } = await packed(device, format, rows, columns, values);
    const error = Math.hypot(...back.map((value, i) => value - values[i]!)) / Math.hypot(...values);
    expect(error).toBeGreaterThan(LOSES[format][0]);
    expect(error).toBeLessThan(LOSES[format][1]);
    expect(back.subarray(0, 2 * columns).every((value) => Math.abs(value) < (format === "nf4" ? 1e-3 : 1e-30))).toBe(true);
    const second = values.slice(72 * columns, 96 * columns);
    const alone = (await packed(device, format, [24], columns, second)).back;
    expect([...back.subarray(72 * columns, 96 * columns)]).toEqual([...alone]);
  });

  const families = { ...tinyFamilies, mixtral: sparseFamilies["mixtral"]!, gemma4: sparseFamilies["gemma4"]! };
  const ground = (family: string): Ground => ({
    ...{ spec: families[family as "mixtral"], open: () => new CpuDevice(2), passRows: 160 },
    format,
  });

  test("trains every adapter as a base of the same values does, bit for bit", async () => {
    for (const family of Object.keys(families)) {
      const held = await train(range(8), ground(family));
      const fill = (device: Device) => rounded(device as CpuDevice, format, randomFill(device, 1));
      const dense = await train(range(8), { ...ground(family), format: "dense", fill });
      for (const i of range(8)) expectSame(held.get(i)!, dense.get(i)!);
    }
  });

  test("other adapters change nothing, nor does a second stage", async () => {
    const everyone = await train(range(8), ground("qwen3"));
    const two = await train([1, 2, 5], ground("qwen3"), [1]);
    for (const i of [2, 5]) {
      const alone = (await train([i], ground("qwen3"))).get(i)!;
      expectSame(everyone.get(i)!, alone);
      expectSame(two.get(i)!, alone);
    }
  });
});
