// A GGUF as it is written: the header, and tensors one after another, each at a multiple of the alignment. header.ts reads it.

import { sizeOf } from "../../base/shape.ts";
import type { GgufKeys, GgufWrittenValue } from "../../families/gguf.ts";
import { type EncodedType, STORED_TYPES } from "../stored.ts";

export const ALIGNMENT = 32;

/** ggml's numbers. */
const NUMBERS: Readonly<Record<EncodedType, number>> = {
  ...{ F32: 0, F16: 1, Q5_0: 6, Q5_1: 7, Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14, BF16: 30 },
};

export type GgufEntry = { readonly name: string; readonly type: EncodedType; readonly shape: readonly number[] };

export function bytesOfEntry({ type, shape }: GgufEntry): number {
  const { values, bytes } = STORED_TYPES[type];
  return (sizeOf(shape) / values) * bytes;
}

/** What has to follow `bytes` of a tensor or the header. */
export const padding = (bytes: number): Uint8Array => new Uint8Array(-bytes & (ALIGNMENT - 1));

/** The header: `raw` are keys with their values as another file has them. */
export function ggufHeader(keys: GgufKeys, entries: readonly GgufEntry[], raw: readonly Uint8Array[] = []): Uint8Array {
  const out = new Bytes();
  out.add(new TextEncoder().encode("GGUF"));
  out.u32(3);
  out.u64(entries.length);
  out.u64(keys.length + raw.length);
  for (const [key, value] of keys) {
    out.text(key);
    writeValue(out, value);
  }
  for (const pair of raw) out.add(pair);
  let at = 0;
  for (const entry of entries) {
    out.text(entry.name);
    out.u32(entry.shape.length);
    for (const size of entry.shape.toReversed()) out.u64(size);
    out.u32(NUMBERS[entry.type]);
    out.u64(at);
    const bytes = bytesOfEntry(entry);
    at += bytes + padding(bytes).length;
  }
  out.add(padding(out.length));
  return out.whole();
}

/** GGUF's numbers of types. */
const [U32, I32, F32, BOOLEAN, STRING, LIST] = [4, 5, 6, 7, 8, 9];

function writeValue(out: Bytes, value: GgufWrittenValue): void {
  if (typeof value === "string") {
    out.u32(STRING!);
    out.text(value);
  } else if (typeof value === "boolean") {
    out.u32(BOOLEAN!);
    out.add(Uint8Array.of(Number(value)));
  } else if ("u32" in value) {
    out.u32(U32!);
    out.u32(value.u32);
  } else if ("f32" in value) {
    out.u32(F32!);
    out.add(new Uint8Array(Float32Array.of(value.f32).buffer));
  } else writeList(out, value);
}

function writeList(out: Bytes, value: Extract<GgufWrittenValue, object>): void {
  out.u32(LIST!);
  const head = (type: number, length: number) => {
    out.u32(type);
    out.u64(length);
  };
  if ("strings" in value) {
    head(STRING!, value.strings.length);
    for (const text of value.strings) out.text(text);
  } else if ("booleans" in value) {
    head(BOOLEAN!, value.booleans.length);
    out.add(Uint8Array.from(value.booleans, Number));
  } else if ("i32s" in value) {
    head(I32!, value.i32s.length);
    out.add(new Uint8Array(Int32Array.from(value.i32s).buffer));
  } else if ("f32s" in value) {
    head(F32!, value.f32s.length);
    out.add(new Uint8Array(Float32Array.from(value.f32s).buffer));
  }
}

/** Bytes that grow. */
class Bytes {
  #bytes = new Uint8Array(1 << 20);
  length = 0;

  #make(count: number): number {
    const [at, end] = [this.length, this.length + count];
    if (end > this.#bytes.length) {
      const bytes = new Uint8Array(2 * end);
      bytes.set(this.#bytes);
      this.#bytes = bytes;
    }
    this.length = end;
    return at;
  }

  add(bytes: Uint8Array): void {
    const at = this.#make(bytes.length); // which may move what there is
    this.#bytes.set(bytes, at);
  }

  u32(value: number): void {
    const at = this.#make(4);
    new DataView(this.#bytes.buffer).setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#make(8);
    new DataView(this.#bytes.buffer).setBigUint64(at, BigInt(value), true);
  }

  text(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.add(bytes);
  }

  whole = (): Uint8Array => this.#bytes.slice(0, this.length);
}
