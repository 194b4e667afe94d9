// What tests of the C kernels of recurrences and convolutions share: tensors, and rows of packed sequences with padding.

import type { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";

export type Values = Float32Array | Float64Array;

/** A cpu device of two threads, and its tensors; each test file's own: it has the kernels that are imported by then. */
export function onCpu() {
  const device = new CpuDevice(2);
  const put = (values: Values | readonly number[], ...shape: number[]): Tensor => {
    const to = { ptr: device.allocate(4 * sizeOf(shape), "a test"), dtype: "f32", shape } as const;
    device.write(to, Float32Array.from(values));
    return to;
  };
  const putInts = (values: readonly number[], ...shape: number[]): Tensor => {
    const to = { ptr: device.allocate(4 * sizeOf(shape), "a test"), dtype: "i32", shape } as const;
    device.write(to, Int32Array.from(values));
    return to;
  };
  /** Poisoned. */
  const empty = (...shape: number[]): Tensor => put(new Float32Array(sizeOf(shape)).fill(Number.NaN), ...shape);
  const read = async (from: Tensor): Promise<Float32Array> => new Float32Array((await device.read(from)).buffer);
  return { device, put, putInts, empty, read };
}

export const random = (rng: Rng, size: number, scale = 1): Float32Array =>
  Float32Array.from({ length: size }, () => scale * rng.normal());

/** Relative to `want`, in the 2-norm. */
export const distance = (got: Values, want: Values): number =>
  Math.sqrt(
    [...want].reduce((sum, value, i) => sum + (value - got[i]!) ** 2, 0) /
      [...want].reduce((sum, value) => sum + value ** 2, 1e-30),
  );
export const along = (a: Values, b: Values): number => [...a].reduce((sum, value, i) => sum + value * b[i]!, 0);

/**
 * Rows of sequences one after the other, with rows of padding after each third. `places` has a range of a cache for each
 * sequence, the last first.
 */
export function packedRows(lengths: readonly number[]) {
  const gap = 3;
  const starts: number[] = [];
  let rows = 0;
  for (const [i, length] of lengths.entries()) {
    starts.push(rows);
    rows += length + (i % 3 === 2 ? gap : 0);
  }
  const sequenceOf = (row: number) => starts.findLastIndex((start, i) => row >= start && row < start + lengths[i]!);
  const bounds = range(rows).flatMap((row) => {
    const i = sequenceOf(row);
    return i < 0 ? [row, row] : [starts[i]!, starts[i]! + lengths[i]!];
  });
  const isPadding = (row: number) => bounds[2 * row]! === bounds[2 * row + 1]!;
  const capacity = Math.max(...lengths) + 10;
  const slotOf = (i: number) => lengths.length - 1 - i;
  const places = range(rows).map((row) => {
    const i = sequenceOf(row);
    return isPadding(row) ? -1 : slotOf(i) * capacity + row - starts[i]!;
  });
  return { lengths, starts, rows, bounds, isPadding, capacity, slotOf, places };
}
