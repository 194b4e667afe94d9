// How the weights in files become numbers, by the C of ffi/native/stored.c: all types of GGUF and safetensors that are weights,
// FP8 with scales, 4-bit codes; and how numbers become those of GGUF, by encode.c.

import { openLibrary } from "../../ffi/open.ts";
import { stored } from "../../ffi/stored.ts";
import { assetPath } from "../base/assets.ts";
import { requireProcessor, usableCores } from "../base/machine.ts";

/** Values that are encoded together in each type, and their bytes. In the order of the C. */
export const STORED_TYPES = {
  F32: { values: 1, bytes: 4 },
  F16: { values: 1, bytes: 2 },
  BF16: { values: 1, bytes: 2 },
  Q8_0: { values: 32, bytes: 34 },
  Q4_0: { values: 32, bytes: 18 },
  Q4_1: { values: 32, bytes: 20 },
  Q5_0: { values: 32, bytes: 22 },
  Q5_1: { values: 32, bytes: 24 },
  Q4_K: { values: 256, bytes: 144 },
  Q5_K: { values: 256, bytes: 176 },
  Q6_K: { values: 256, bytes: 210 },
} as const;
export type StoredType = keyof typeof STORED_TYPES;
const NUMBERS = Object.keys(STORED_TYPES) as readonly StoredType[];

export const isStoredType = (type: string): type is StoredType => Object.hasOwn(STORED_TYPES, type);

/** What values are delivered as: f32, or the nearest bf16. */
export type ValueType = "f32" | "bf16";
const isBf16 = (as: ValueType): number => (as === "bf16" ? 1 : 0);

const open = () => {
  requireProcessor(); // before an instruction that it may lack
  return openLibrary(assetPath("libmlora.so"), stored);
};
let opened: ReturnType<typeof open> | undefined;
const library = () => {
  opened ??= open();
  return opened;
};

/** Has all cores share the work, in a process without a cpu device, which sets that for itself. */
export function useAllCores(): void {
  library().native_threads(usableCores(), usableCores());
}

/** The first `count` values of whole blocks of a type, into `count` values of `into`. */
export function storedValues(type: StoredType, from: Uint8Array, count: number, as: ValueType, into: Uint8Array): void {
  library().stored_values(NUMBERS.indexOf(type), from, count, isBf16(as), into);
}

/** Types that values can be written as. */
const ENCODED_TYPES = ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"] as const;
export type EncodedType = (typeof ENCODED_TYPES)[number];

/** Values, of whole blocks, as a type has them: to the bit as ggml's own encoders. */
export function encodeValues(type: EncodedType, values: Float32Array): Uint8Array<ArrayBuffer> {
  const { values: each, bytes } = STORED_TYPES[type];
  const into = new Uint8Array(new ArrayBuffer((values.length / each) * bytes));
  library().stored_encode(NUMBERS.indexOf(type), values, values.length, into);
  return into;
}

/** The rows of a weight [rows, columns] from row `row` on. */
export type Rows = { readonly row: number; readonly rows: number; readonly columns: number };
/** Rows and columns of the weight that share a scale; scales lie in the order of their blocks, row by row. */
export type Block = readonly [number, number];

/** e4m3 codes of some rows of a weight, times the scales of its blocks. */
export function fp8Values(
  codes: Uint8Array,
  scales: Float32Array,
  { row, rows, columns }: Rows,
  [high, wide]: Block,
  as: ValueType,
  into: Uint8Array,
): void {
  library().stored_fp8(codes, scales, row, rows, columns, high, wide, isBf16(as), into);
}

/** A weight in 4-bit codes, as bitsandbytes has it: book[code] times the scale of each `block` values. */
export type Codes4 = { readonly book: Float32Array; readonly absmax: Float32Array; readonly block: number };

/** Values [first, first + count) of a weight, from their codes, which begin at a whole byte. */
export function codes4Values(
  codes: Uint8Array,
  { book, absmax, block }: Codes4,
  first: number,
  count: number,
  as: ValueType,
  into: Uint8Array,
): void {
  library().stored_codes4(codes, absmax, book, first, count, block, isBf16(as), into);
}

/** What the codes of the nf4 that devices hold stand for: values, and the scales of their blocks. */
export function nf4Tables(): { readonly book: Float32Array; readonly nested: Float32Array } {
  const tables = { book: new Float32Array(new ArrayBuffer(64)), nested: new Float32Array(new ArrayBuffer(1024)) };
  library().packed_tables(tables.book, tables.nested);
  return tables;
}
