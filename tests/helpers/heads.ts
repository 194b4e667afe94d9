// Sequences of adapters that change the head, several of them in a pass: each has its own adapter's head, on any device.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { crowdTables } from "./crowd.ts";
import { ADAPTERS, nextLogits, tinyGenerator } from "./generation.ts";

/** `isExact`: alone and among others to the bit, else as near as rounding. */
export function ownHeads(name: string, open: () => Device, spec: ModelSpec, isExact: boolean): void {
  const expectAlike = (found: readonly Float32Array[], wanted: readonly Float32Array[]): void => {
    if (isExact) return void expect(found).toEqual([...wanted]);
    expect(found.length).toBe(wanted.length);
    for (const [i, want] of wanted.entries()) {
      const apart = Math.hypot(...want.map((value, j) => value - found[i]![j]!));
      expect(apart / Math.hypot(...want)).toBeLessThan(1e-5);
    }
  };
  test(`alone and among others: ${name}`, async () => {
    const tables = range(5).map((i) => crowdTables(i, spec));
    const ofTables = tables.flatMap((of): PoolAdapter[] => (of ? [{ ...ADAPTERS[0]!, tables: of }] : []));
    const adapters = [...ADAPTERS, ...ofTables];
    using generator = await tinyGenerator(open(), spec, { sequences: 40 }, adapters);
    const { tile } = generator;
    const sequences = range(2 * adapters.length + 3).map((i) => {
      const adapter = ((5 * i) % (adapters.length + 1)) - 1;
      return { adapter, ids: range(3 + (i % 5)).map((j) => (7 * i + 3 * j + 1) % spec.vocab), firstRow: 128 * i };
    });

    const first = [...new Map(sequences.map((of) => [of.adapter, of])).values()]; // a prompt of each
    const apart: Float32Array[] = [];
    for (const of of first) apart.push((await nextLogits(generator, prefill([of], adapters.length, tile)))[0]!);
    expectAlike(await nextLogits(generator, prefill(first, adapters.length, tile)), apart);

    for (const of of sequences) await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], adapters.length, tile));
    const alone: Float32Array[] = [];
    for (const of of sequences) alone.push((await nextLogits(generator, decode([of], adapters.length, tile)))[0]!);
    for (const of of sequences) await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], adapters.length, tile));
    expectAlike(await nextLogits(generator, decode(sequences, adapters.length, tile)), alone);
  });
}
