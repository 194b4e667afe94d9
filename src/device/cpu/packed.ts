// Packed weights on the cpu: how C sees them (ffi/native/packed.h), and the kernels that make them and take them apart.

import { fixedBytes } from "../../../ffi/memory.ts";
import type { PackedFormat } from "../../base/precision.ts";
import { range } from "../../base/shape.ts";
import type { Kernels } from "../kernels.ts";
import { linearOf, type PackedWeight } from "../packed.ts";
import type { Host, Matrix } from "./host.ts";

/** Grow-only memory of the device for what a kernel needs while it runs. */
export type Scratch = (bytes: number) => number;

const FORMATS: Readonly<Partial<Record<PackedFormat, number>>> = { bf16: 1, int8: 2, nf4: 3 };
const MOST_LINEARS = 3;
const FIELDS = 3 + MOST_LINEARS * 7;

/** C's view of each weight, made once. */
const seen = new WeakMap<PackedWeight, BigInt64Array>();

function seenByC(weight: PackedWeight): BigInt64Array {
  const known = seen.get(weight);
  if (known) return known;
  const { format, shape, firstRow } = weight;
  const count = firstRow.length - 1;
  const linears = range(count).flatMap((g) => {
    const { row, rows, codes, scale, absmax, nested, mean } = linearOf(weight, g);
    return [row, row + rows, codes, scale, absmax, nested, mean];
  });
  const fields = new BigInt64Array(fixedBytes(8 * FIELDS).buffer, 0, FIELDS);
  fields.set([FORMATS[format]!, shape[1], count, ...linears].map(BigInt));
  seen.set(weight, fields);
  return fields;
}

/** Columns of a product that a piece has at most: ffi/native/product.c has the same. */
export const widestPiece = (cores: number): number => (cores <= 2 ? 288 : 192);

/** c[m, n] = a op(w) + beta c, as Host.product over the weight in f32 would. */
export function packedProduct(
  host: Host,
  scratch: Scratch,
  [m, n, k]: readonly [number, number, number],
  a: Matrix,
  weight: PackedWeight,
  transposed: boolean,
  c: Matrix,
  beta: number,
): void {
  const room = scratch(host.threads * widestPiece(host.cores) * k * 4);
  const [w, t] = [seenByC(weight), transposed ? 1 : 0];
  host.kernels.product_packed(host.sgemmPtr, t, m, n, k, a.ptr, a.ld, w, beta, c.ptr, c.ld, room);
}

/** Some rows of a packed weight as f32, in scratch; their address. */
export function expandRows(host: Host, scratch: Scratch, weight: PackedWeight, row: number, rows: number): number {
  const room = scratch(rows * weight.shape[1] * 4);
  host.kernels.packed_expand(seenByC(weight), row, rows, 0, weight.shape[1], room, weight.shape[1]);
  return room;
}

export const packedKernels = (host: Host) => ({
  quantise({ from, weight, linear, absmax }: Kernels["quantise"]): void {
    host.kernels.packed_quantise(seenByC(weight), linear, from.ptr, absmax.ptr);
  },
  dequantise({ weight, out }: Kernels["dequantise"]): void {
    host.kernels.packed_dequantise(seenByC(weight), out.ptr);
  },
});
