// The GGUF format: magic, version, counts, key-value pairs, the list of tensors, then their bytes, each at a multiple of the
// alignment. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

import { closeSync, fstatSync, openSync } from "node:fs";
import { RequestError, textOf } from "../../base/errors.ts";
import { readHintOf } from "../../base/faults.ts";
import { sizeOf } from "../../base/shape.ts";
import { counted } from "../../base/units.ts";
import { readAll } from "../safetensors.ts";
import { isStoredType, STORED_TYPES, type StoredType } from "../stored.ts";

/** Lists are kept up to this length; of longer ones (the tokens) only the length is known. */
const KEPT_LIST = 4096;
export type GgufValue =
  | number
  | bigint
  | boolean
  | string
  | readonly (number | bigint | boolean | string)[]
  | { readonly length: number };

export type GgufTensor = {
  /** As ggml calls it: "Q4_K"; a number where it is not known. */
  readonly type: string;
  /** Rows first, as all others have it; the file has the opposite order. */
  readonly shape: readonly number[];
  readonly offset: number; // from the beginning of the file
  readonly bytes: number | null; // of a type that is known
};

export type GgufFile = Disposable & {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** Where each key lies in the file, with its value, and where it ends. */
  readonly places: ReadonlyMap<string, readonly [from: number, to: number]>;
  /** Fills `into` with bytes of the file, from `position` on. */
  readonly read: (into: Uint8Array, position: number) => void;
};

/** ggml's numbers of types, those of old formats left out. */
const TYPES: Readonly<Record<number, string>> = {
  ...{
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
  },
  ...{ 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S" },
  ...{ 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0" },
  ...{ 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4" },
};

const MAGIC = 0x46554747; // "GGUF"
const CHUNK = 1 << 20;
const MOST_HEADER = 256 << 20;
const MOST_TEXT = 64 << 20;
const DAMAGED = "the file is damaged or cut short; fetch it again";

/**
 * Opens and checks a file without reading tensors; long lists are kept by the keys in `kept`. Every fault is a RequestError
 * "gguf.*" with the path and the numbers.
 */
export function openGguf(path: string, kept: readonly string[] = []): GgufFile {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw new RequestError("gguf.file", `${path}: ${textOf(error)}`, readHintOf(error), { cause: error });
  }
  try {
    const header = readHeader(fd, path, kept);
    let open = true;
    return {
      ...header,
      path,
      read: (into, position) => readAll(fd, into, position, path),
      [Symbol.dispose]: () => {
        if (open) closeSync(fd);
        open = false;
      },
    };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

const wrongIn = (path: string) => (what: string, hint: string) => new RequestError("gguf.header", `${path}: ${what}`, hint);
type Wrong = (what: string, hint?: string) => RequestError;

/** Reads the header from its beginning on, growing as it goes. */
class Cursor {
  #bytes = new Uint8Array(0);
  #view = new DataView(new ArrayBuffer(0));
  at = 0;

  constructor(
    readonly fd: number,
    readonly path: string,
    readonly size: number,
    readonly wrong: Wrong,
  ) {}

  /** Makes the next `count` bytes readable; returns where they begin. */
  take(count: number): number {
    const begin = this.at;
    const end = begin + count;
    if (end > this.size)
      throw this.wrong(`its header needs ${counted(end, "byte")}, the file has ${counted(this.size, "byte")}`);
    if (end > MOST_HEADER) throw this.wrong(`its header has more than ${MOST_HEADER} bytes`);
    if (end > this.#bytes.length) {
      const bytes = new Uint8Array(new ArrayBuffer(Math.min(this.size, Math.max(end, 2 * this.#bytes.length, CHUNK))));
      bytes.set(this.#bytes);
      readAll(this.fd, bytes.subarray(this.#bytes.length), this.#bytes.length, this.path);
      this.#bytes = bytes;
      this.#view = new DataView(bytes.buffer);
    }
    this.at = end;
    return begin;
  }

  u32 = (): number => {
    const at = this.take(4);
    return this.#view.getUint32(at, true);
  };

  /** A size or a count, which must be one. */
  u64(what: string): number {
    const at = this.take(8);
    const value = this.#view.getBigUint64(at, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.wrong(`${what} is ${value}`);
    return Number(value);
  }

  text(what: string): string {
    const length = this.u64(`the length of ${what}`);
    if (length > MOST_TEXT) throw this.wrong(`the length of ${what} is ${length}`);
    const at = this.take(length);
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(this.#bytes.subarray(at, at + length));
    } catch {
      throw this.wrong(`${what} is no UTF-8`);
    }
  }

  skipText(): void {
    this.take(this.u64("the length of a text"));
  }

  number(type: number): number | bigint | boolean {
    const at = this.take(WIDTHS[type]!);
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(at);
      case 1:
        return view.getInt8(at);
      case 2:
        return view.getUint16(at, true);
      case 3:
        return view.getInt16(at, true);
      case 4:
        return view.getUint32(at, true);
      case 5:
        return view.getInt32(at, true);
      case 6:
        return view.getFloat32(at, true);
      case 7:
        return view.getUint8(at) !== 0;
      case 10:
        return view.getBigUint64(at, true);
      case 11:
        return view.getBigInt64(at, true);
      default:
        return view.getFloat64(at, true);
    }
  }
}

/** Bytes of a value of each type: u8, i8, u16, i16, u32, i32, f32, bool, text, list, u64, i64, f64. */
const WIDTHS: readonly (number | null)[] = [1, 1, 2, 2, 4, 4, 4, 1, null, null, 8, 8, 8];
const [TEXT, LIST] = [8, 9];

function readValue(cursor: Cursor, type: number, key: string, isKept: boolean): GgufValue {
  if (type === TEXT) return cursor.text(key);
  if (type !== LIST) {
    if (WIDTHS[type] == null) throw cursor.wrong(`${key} has the type ${type}`);
    return cursor.number(type);
  }
  const [of, length] = [cursor.u32(), cursor.u64(`the length of ${key}`)];
  const width = WIDTHS[of];
  if (of !== TEXT && width == null) throw cursor.wrong(`${key} is a list of type ${of}`);
  if (length * (width ?? 8) > cursor.size)
    throw cursor.wrong(`${key} has ${counted(length, "value")}, the file ${counted(cursor.size, "byte")}`);
  if (isKept || length <= KEPT_LIST) return Array.from({ length }, () => (of === TEXT ? cursor.text(key) : cursor.number(of)));
  if (of === TEXT) for (let i = 0; i < length; i++) cursor.skipText();
  else cursor.take(length * width!);
  return { length };
}

function readHeader(fd: number, path: string, kept: readonly string[]): Pick<GgufFile, "metadata" | "tensors" | "places"> {
  const refuse = wrongIn(path);
  const wrong: Wrong = (what, hint = DAMAGED) => refuse(what, hint);
  const stat = fstatSync(fd);
  if (!stat.isFile()) throw wrong("is not a file");
  const cursor = new Cursor(fd, path, stat.size, wrong);
  if (cursor.u32() !== MAGIC) throw wrong("does not begin with GGUF");
  const version = cursor.u32();
  if (version !== 2 && version !== 3)
    throw wrong(
      (version & 0xffff) === 0 ? "is for machines of the other byte order" : `is of version ${version}`,
      "mlora reads versions 2 and 3, little-endian; convert the model again with a newer llama.cpp",
    );
  const [tensorCount, pairCount] = [cursor.u64("the number of tensors"), cursor.u64("the number of keys")];
  if ((tensorCount + pairCount) * 12 > stat.size)
    throw wrong(
      `says that it has ${counted(tensorCount, "tensor")} and ${counted(pairCount, "key")}; the file has ${counted(stat.size, "byte")}`,
    );
  const metadata = new Map<string, GgufValue>();
  const places = new Map<string, readonly [number, number]>();
  for (let i = 0; i < pairCount; i++) {
    const from = cursor.at;
    const key = cursor.text("a key");
    if (metadata.has(key)) throw wrong(`has ${key} twice`);
    metadata.set(key, readValue(cursor, cursor.u32(), key, kept.includes(key)));
    places.set(key, [from, cursor.at]);
  }
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || !(alignment > 0) || (alignment & (alignment - 1)) !== 0)
    throw wrong(`general.alignment is ${alignment}, expected a power of two`);
  const listed = Array.from({ length: tensorCount }, () => readEntry(cursor));
  const start = Math.ceil(cursor.at / alignment) * alignment;
  const tensors = new Map<string, GgufTensor>();
  for (const [name, entry] of listed) {
    if (tensors.has(name)) throw wrong(`has the tensor ${name} twice`);
    tensors.set(name, { ...entry, offset: start + entry.offset });
  }
  checkPlaces(tensors, stat.size, wrong);
  return { metadata, tensors, places };
}

function readEntry(cursor: Cursor): readonly [string, GgufTensor] {
  const name = cursor.text("the name of a tensor");
  const dimensions = cursor.u32();
  if (dimensions > 4) throw cursor.wrong(`the tensor ${name} has ${dimensions} dimensions`);
  const shape = Array.from({ length: dimensions }, () => cursor.u64(`a size of ${name}`)).reverse();
  if (!Number.isSafeInteger(sizeOf(shape) * 4)) throw cursor.wrong(`the tensor ${name} has the shape [${shape}]`);
  const number = cursor.u32();
  const type = TYPES[number] ?? `type ${number}`;
  const offset = cursor.u64(`the offset of ${name}`);
  return [name, { type, shape, offset, bytes: isStoredType(type) ? bytesIn(cursor, name, type, shape) : null }];
}

/** Rows are whole blocks. */
function bytesIn(cursor: Cursor, name: string, type: StoredType, shape: readonly number[]): number {
  const { values, bytes } = STORED_TYPES[type];
  const width = shape.at(-1) ?? 1;
  if (width % values !== 0)
    throw cursor.wrong(
      `the tensor ${name} is ${type} with rows of ${counted(width, "value")}, expected multiples of ${values}`,
    );
  return (sizeOf(shape) / values) * bytes;
}

/** Tensors lie in the file and do not overlap. */
function checkPlaces(tensors: ReadonlyMap<string, GgufTensor>, size: number, wrong: Wrong): void {
  let [at, before] = [0, ""];
  for (const [name, { offset, bytes }] of [...tensors].sort(([, a], [, b]) => a.offset - b.offset)) {
    if (offset + (bytes ?? 0) > size)
      throw wrong(`the tensor ${name} ends at byte ${offset + (bytes ?? 0)}; the file has ${size}`);
    if (offset < at) throw wrong(`the tensor ${name} begins at byte ${offset}, within ${before}`);
    [at, before] = [offset + (bytes ?? 0), name];
  }
}
