// A frozen weight that is held in fewer bits than the device computes with: one block of memory, and what lies where in it.
//
//   bf16   values bf16[N, K]; so are those of bf16-products
//   int8   codes i8[N, K]; scale f32[N]: w = code scale, the largest of a row is 127
//   fp8    codes e4m3[N, K]; turned e4m3[K, N], the same codes for the product with W; scale f32[N], a row's largest is 448
//   mxfp4  codes u8[N K / 2], two to a byte, the first in the low half; scale u8[N K / 32]: w = e2m1[code] 2^(scale - 127)
//   nf4    codes u8[N K / 2], two to a byte, the first in the high half; absmax u8[B]; nested f32[S]; mean f32[G]
//
// nf4 is QLoRA's (Dettmers et al. 2023) as bitsandbytes has it: a linear is flattened and cut into blocks of 64 values, w =
// book[code] absmax; the blocks' absmax less their mean are cut into blocks of 256, absmax = dynamic[code] nested + mean, with
// the 8-bit dynamic code of Dettmers et al. 2021. B and S count blocks of each linear, which begin at 16 bytes, for every
// linear of a group is quantised as if it were alone: G linears lie under each other, linear g from row firstRow[g] on.

import { invariant } from "../base/errors.ts";
import { isBf16, type PackedFormat } from "../base/precision.ts";
import { alignUp, sum } from "../base/shape.ts";
import type { Tensor } from "./device.ts";

export type PackedWeight = {
  readonly ptr: number;
  readonly format: PackedFormat;
  readonly shape: readonly [number, number];
  /** Where each linear begins, and N: [0, N] or [0, Nq, Nq + Nk, N]. */
  readonly firstRow: readonly number[];
  /** Of fp8, without the turned copy: it is taken apart for every product. */
  readonly isSingle?: true;
};

/** A frozen weight [N, K]: as the device computes, or packed. */
export type Weight = Tensor | PackedWeight;

export const isPacked = (weight: Weight): weight is PackedWeight => "format" in weight;

/** A weight's values as a tensor, of one whose values are as the device computes or bf16. */
export function valuesOf(weight: Weight): Tensor {
  if (!isPacked(weight)) return weight;
  invariant(isBf16(weight.format), `a weight in ${weight.format} has no values in place`);
  return { ptr: weight.ptr + partsOf(weight).codes, dtype: "bf16", shape: weight.shape };
}

/** Values of a block of mxfp4. */
export const MXFP4_BLOCK = 32;
/** Values of a block of nf4, and blocks that share a nested scale. */
export const NF4_BLOCK = 64;
export const NESTED_BLOCK = 256;

const ALIGN = 256;
type Layout = Omit<PackedWeight, "ptr">;

/**
 * What a linear has in addition to its codes in nf4: blocks, and the bytes of each part, whole for loads of 16 bytes.
 */
function nf4Of(rows: number, width: number) {
  const blocks = Math.ceil((rows * width) / NF4_BLOCK);
  return { blocks, absmax: alignUp(blocks, 16), nested: alignUp(4 * Math.ceil(blocks / NESTED_BLOCK), 16), mean: 16 };
}

/** Whether a byte has two codes. */
const isHalf = (format: PackedFormat): boolean => format === "nf4" || format === "mxfp4";

/** Where the parts of a packed weight begin, in bytes from its block, and how many there are in all. */
export function partsOf({ format, shape: [rows, width], firstRow, isSingle }: Layout) {
  const size = rows * width;
  const linears = format === "nf4" ? firstRow.slice(1).map((last, g) => nf4Of(last - firstRow[g]!, width)) : [];
  const bytes = {
    codes: isBf16(format) ? 2 * size : isHalf(format) ? size / 2 : size,
    transposed: format === "fp8" && !isSingle ? size : 0,
    scale: format === "int8" || format === "fp8" ? 4 * rows : format === "mxfp4" ? size / MXFP4_BLOCK : 0,
    absmax: sum(linears.map(({ absmax }) => absmax)),
    nested: sum(linears.map(({ nested }) => nested)),
    mean: sum(linears.map(({ mean }) => mean)),
  };
  let at = 0;
  const begin = (part: keyof typeof bytes): number => {
    const begins = at;
    at = alignUp(at + bytes[part], ALIGN);
    return begins;
  };
  const [codes, transposed, scale] = [begin("codes"), begin("transposed"), begin("scale")];
  return { codes, transposed, scale, absmax: begin("absmax"), nested: begin("nested"), mean: begin("mean"), bytes: at };
}

/** One linear of a packed weight: its rows, and addresses of its own codes, scales and blocks. */
export function linearOf(weight: PackedWeight, linear: number) {
  const { ptr, format, shape, firstRow } = weight;
  const width = shape[1];
  const [row, end] = [firstRow[linear]!, firstRow[linear + 1]!];
  const parts = partsOf(weight);
  const before = firstRow.slice(1, linear + 1).map((last, g) => nf4Of(last - firstRow[g]!, width));
  const codes = row * width * (isBf16(format) ? 2 : isHalf(format) ? 0.5 : 1);
  return {
    row,
    rows: end - row,
    codes: ptr + parts.codes + codes,
    scale: ptr + parts.scale + (format === "mxfp4" ? (row * width) / MXFP4_BLOCK : 4 * row),
    absmax: ptr + parts.absmax + sum(before.map(({ absmax }) => absmax)),
    nested: ptr + parts.nested + sum(before.map(({ nested }) => nested)),
    mean: ptr + parts.mean + sum(before.map(({ mean }) => mean)),
    blocks: nf4Of(end - row, width).blocks,
  };
}

/**
 * The weight [N, K] of each expert: that of the first, as a dense tensor or packed, and bytes from one expert's to the next's,
 * which has the same parts at the same offsets.
 */
export type ExpertWeight = { readonly first: Weight; readonly experts: number; readonly stride: number };

const each = new WeakMap<ExpertWeight, readonly Weight[]>();

/** The weight of one expert, the same object each time. */
export function expertOf(weight: ExpertWeight, expert: number): Weight {
  if (!each.has(weight)) {
    const { first, experts, stride } = weight;
    each.set(
      weight,
      Array.from({ length: experts }, (_, e) => ({ ...first, ptr: first.ptr + e * stride })),
    );
  }
  return each.get(weight)![expert]!;
}

/** Bytes of experts that a GPU takes apart at once, at most, but for one. */
const GROUP_BYTES = 256 * 2 ** 20;

/** Experts that a GPU takes apart at once, of `bytes` each. */
export const groupSize = (experts: number, bytes: number): number =>
  Math.min(experts, Math.max(1, Math.floor(GROUP_BYTES / bytes)));
