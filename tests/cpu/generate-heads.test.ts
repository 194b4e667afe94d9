// Sequences of adapters that change the head, several of them in a pass: each has its own adapter's head.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { crowdTables } from "../helpers/crowd.ts";
import { ADAPTERS, nextLogits, tinyGenerator } from "../helpers/generation.ts";
import { tinyFamilies } from "../helpers/tiny.ts";

/** Extends sequences as a GPU does. */
class RowDevice extends CpuDevice {
  override readonly hasFewRows = true;
}

/** The same bits by tile; by row a CPU multiplies as many rows as there are, which rounds otherwise. */
function expectAlike(device: CpuDevice, found: readonly Float32Array[], wanted: readonly Float32Array[]): void {
  if (!device.hasFewRows) return void expect(found).toEqual(wanted);
  expect(found.length).toBe(wanted.length);
  for (const [i, want] of wanted.entries()) {
    const apart = Math.hypot(...want.map((value, j) => value - found[i]![j]!));
    expect(apart / Math.hypot(...want)).toBeLessThan(1e-5);
  }
}

for (const [family, spec] of Object.entries(tinyFamilies))
  for (const device of [new CpuDevice(2), new RowDevice(2)])
    test(`alone and among others: ${family}, ${device.hasFewRows ? "by row" : "by tile"}`, async () => {
      const tables = range(5).map((i) => crowdTables(i, spec));
      const ofTables = tables.flatMap((of): PoolAdapter[] => (of ? [{ ...ADAPTERS[0]!, tables: of }] : []));
      const adapters = [...ADAPTERS, ...ofTables];
      using generator = await tinyGenerator(device, spec, { sequences: 40 }, adapters);
      const { tile } = generator;
      const sequences = range(2 * adapters.length + 3).map((i) => {
        const adapter = ((5 * i) % (adapters.length + 1)) - 1;
        return { adapter, ids: range(3 + (i % 5)).map((j) => (7 * i + 3 * j + 1) % spec.vocab), firstRow: 128 * i };
      });

      const first = [...new Map(sequences.map((of) => [of.adapter, of])).values()]; // a prompt of each
      const apart: Float32Array[] = [];
      for (const of of first) apart.push((await nextLogits(generator, prefill([of], adapters.length, tile)))[0]!);
      expectAlike(device, await nextLogits(generator, prefill(first, adapters.length, tile)), apart);

      for (const of of sequences) await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], adapters.length, tile));
      const alone: Float32Array[] = [];
      for (const of of sequences) alone.push((await nextLogits(generator, decode([of], adapters.length, tile)))[0]!);
      for (const of of sequences) await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], adapters.length, tile));
      expectAlike(device, await nextLogits(generator, decode(sequences, adapters.length, tile)), alone);
    });
