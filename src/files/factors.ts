// Factors of adapters by the C of ffi/native/factors.c: out of a block and into it, and random ones. Large ones are shared out
// among cores.

import { getSystemErrorMessage, getSystemErrorName } from "node:util";
import { native } from "../../ffi/factors.ts";
import { invariant } from "../base/errors.ts";
import type { FactorPlace } from "../methods/layout.ts";
import type { Values } from "../methods/optimizers.ts";

/** A factor's values out of a block, row by row: a copy, or a part of the block where that has them so. */
export function takeFactor<V extends Values>(block: V, { offset, rows, columns, isTransposed, pitch = rows }: FactorPlace): V {
  const held = block.subarray(offset, offset + pitch * columns) as V;
  if (!isTransposed) return held;
  const values = new (block.constructor as new (length: number) => V)(pitch * columns);
  turn(held, values, columns, pitch);
  return pitch === rows ? values : (values.slice(0, rows * columns) as V);
}

/** Puts a factor's values, all of them, into a block. */
export function putFactor<V extends Values>(block: V, place: FactorPlace, values: V): void {
  const { offset, rows, columns, isTransposed, pitch = rows } = place;
  invariant(values.length === rows * columns, `${values.length} values for a factor of ${rows} x ${columns}`);
  const held = block.subarray(offset, offset + pitch * columns);
  if (!isTransposed) held.set(values);
  else if (pitch === rows) turn(values, held, rows, columns);
  else {
    const all = takeFactor(block, { ...place, rows: pitch }); // what lies after each row of the block stays
    all.set(values);
    turn(all, held, pitch, columns);
  }
}

/** to[c, r] = from[r, c]. */
export function turn(from: Values, to: Values, rows: number, columns: number): void {
  const { c, threads } = native();
  c.factor_turn(threads, from, to, rows, columns, from.BYTES_PER_ELEMENT);
}

/** Fills `values` with numbers uniform in [-bound, bound): the first of the stream with this key (base/rng.ts). */
export function fillUniform(values: Float32Array, key: number, bound: number): void {
  const { c, threads } = native();
  c.factor_uniform(threads, values, values.length, key, bound);
}

/** The same, normal with the deviation 1 / divisor. */
export function fillNormal(values: Float32Array, key: number, divisor: number): void {
  const { c, threads } = native();
  c.factor_normal(threads, values, values.length, key, divisor);
}

/** Whether a file has these bytes from byte `from` on; throws where it cannot be read, as node:fs does. */
export function hasBytes(fd: number, from: number, bytes: Uint8Array): boolean {
  const { c, threads } = native();
  const found = c.factor_in_file(threads, fd, from, bytes, bytes.length);
  if (found >= 0) return found === 1;
  const code = getSystemErrorName(found);
  throw Object.assign(new Error(`${code}: ${getSystemErrorMessage(found)}, read`), { code, errno: found });
}

/** Has a part of a file written to the disk from now on, without waiting; where the system cannot, its sync does all later. */
export function beginSync(fd: number, from: number, bytes: number): void {
  native().c.file_begin_sync(fd, from, bytes);
}
