// One weight of a base model, whatever its file holds it as: its values are delivered as the reader computes.

import { bytesOf, type DType } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import { type StoredType, storedValues, type ValueType } from "./stored.ts";

/** nf4 with nested scales and the tables that devices have: bytes that may be copied as they are (device/packed.ts). */
export type Nf4Parts = {
  readonly readCodes: (into: Uint8Array, from: number) => void;
  /** Codes of the blocks' scales, one for each 64 values. */
  readonly absmax: () => Uint8Array;
  /** Scales of 256 of these each, and what is added. */
  readonly nested: () => Float32Array;
  readonly mean: number;
};

/** MXFP4 as devices have it: bytes that may be copied as they are (device/packed.ts). */
export type Mxfp4Parts = {
  readonly readCodes: (into: Uint8Array, from: number) => void;
  readonly readScales: (into: Uint8Array, from: number) => void;
};

export type ModelTensor = {
  /** As the file calls it: "BF16", "Q4_K", "F8_E4M3". */
  readonly type: string;
  /** That of its values: f32 where they are computed from codes and scales. Null where it holds no weights. */
  readonly dtype: DType | null;
  readonly shape: readonly number[];
  /** Why its values cannot be had, for a message; null where they can. */
  readonly fault: string | null;
  /** Fills `into` with values, as `as` or as the tensor's own type, from byte `from` of them on. */
  readonly read: (into: Uint8Array, as: DType, from?: number) => void;
  readonly nf4: Nf4Parts | null;
  readonly mxfp4?: Mxfp4Parts;
};

/** Whether it is read as it is, or each value is computed from codes and scales. */
export const isQuantisedTensor = ({ type }: ModelTensor): boolean => !["F32", "F16", "BF16"].includes(type);

/** Puts values [first, first + count), which are whole units, into `into`. */
export type Decode = (first: number, count: number, as: ValueType, into: Uint8Array) => void;

/** Values that are decoded at a time, about. */
const PIECE = 1 << 20;

/** A reader of `count` values that are decoded `unit` at a time. */
export function decoder(count: number, unit: number, decode: Decode): ModelTensor["read"] {
  return (into, as, from = 0) => {
    if (as !== "f32" && as !== "bf16") throw new Error(`values are delivered as f32 or bf16, not as ${as}`);
    const width = bytesOf(as);
    const [first, last] = [from / width, (from + into.length) / width];
    const piece = Math.max(1, Math.floor(PIECE / unit)) * unit;
    for (let at = Math.floor(first / unit) * unit; at < last; at += piece) {
      const end = Math.min(at + piece, Math.ceil(last / unit) * unit, count);
      if (at >= first && end <= last) decode(at, end - at, as, into.subarray((at - first) * width, (end - first) * width));
      else {
        const some = new Uint8Array(new ArrayBuffer((end - at) * width));
        decode(at, end - at, as, some);
        const [begin, stop] = [Math.max(at, first), Math.min(end, last)];
        into.set(some.subarray((begin - at) * width, (stop - at) * width), (begin - first) * width);
      }
    }
  };
}

let room = new Uint8Array(new ArrayBuffer(0));

/** Memory for bytes on their way; the next call may give the same. */
export function scratch(bytes: number): Uint8Array<ArrayBuffer> {
  if (room.byteLength < bytes) room = new Uint8Array(new ArrayBuffer(bytes));
  return room.subarray(0, bytes);
}

/** Reads the bytes of a tensor from byte `from` on. */
export type ReadBytes = (into: Uint8Array, from: number) => void;

const OWN: Readonly<Partial<Record<DType, StoredType>>> = { f32: "F32", f16: "F16", bf16: "BF16" };

/** A tensor whose values are in its file as they are. */
export function plainTensor(type: string, dtype: DType | null, shape: readonly number[], readBytes: ReadBytes): ModelTensor {
  const own = dtype === null ? undefined : OWN[dtype];
  const width = dtype === null ? 1 : bytesOf(dtype);
  const converted = decoder(sizeOf(shape), 1, (first, count, as, into) => {
    const raw = scratch(count * width);
    readBytes(raw, first * width);
    storedValues(own!, raw, count, as, into);
  });
  return {
    ...{ type, dtype, shape, fault: null, nf4: null },
    read: (into, as, from = 0) => (as === dtype || own === undefined ? readBytes(into, from) : converted(into, as, from)),
  };
}
