// Factors of adapters by the C of ffi/native/factors.c: out of a block and into it, and random ones. Large ones are shared out
// among cores.

import { factors } from "../../ffi/factors.ts";
import { openLibrary } from "../../ffi/open.ts";
import { assetPath } from "../base/assets.ts";
import { requireProcessor, usableCores } from "../base/machine.ts";
import type { FactorPlace } from "../methods/layout.ts";
import type { Values } from "../methods/optimizers.ts";

const open = () => {
  requireProcessor(); // before an instruction that it may lack
  return { c: openLibrary(assetPath("libmlora.so"), factors), threads: usableCores() };
};
let opened: ReturnType<typeof open> | undefined;
/** The functions of ffi/native/factors.c, and how many threads they may take. */
export const native = () => {
  opened ??= open();
  return opened;
};

/** A factor's values out of a block, row by row: a copy, or a part of the block where that has them so. */
export function takeFactor<V extends Values>(block: V, { offset, rows, columns, isTransposed }: FactorPlace): V {
  const held = block.subarray(offset, offset + rows * columns) as V;
  if (!isTransposed) return held;
  const values = new (block.constructor as new (length: number) => V)(rows * columns);
  turn(held, values, columns, rows);
  return values;
}

/** Puts a factor's values into a block. */
export function putFactor<V extends Values>(block: V, { offset, rows, columns, isTransposed }: FactorPlace, values: V): void {
  const held = block.subarray(offset, offset + rows * columns);
  if (isTransposed) turn(values, held, rows, columns);
  else held.set(values);
}

/** to[c, r] = from[r, c]. */
export function turn(from: Values, to: Values, rows: number, columns: number): void {
  const { c, threads } = native();
  c.factor_turn(threads, from, to, rows, columns, from.BYTES_PER_ELEMENT);
}

/** f32[count] uniform in [-bound, bound): the first numbers of the stream with this key (base/rng.ts). */
export function uniformValues(count: number, key: number, bound: number): Float32Array<ArrayBuffer> {
  const { c, threads } = native();
  const values = new Float32Array(count);
  c.factor_uniform(threads, values, count, key, bound);
  return values;
}

/** The same, normal with the deviation 1 / divisor. */
export function normalValues(count: number, key: number, divisor: number): Float32Array<ArrayBuffer> {
  const { c, threads } = native();
  const values = new Float32Array(count);
  c.factor_normal(threads, values, count, key, divisor);
  return values;
}
