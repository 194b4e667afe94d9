// The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes without holes.
// https://github.com/huggingface/safetensors

import { closeSync, fstatSync, readSync } from "node:fs";
import { replaceFile } from "../base/atomic.ts";
import { bytesOf, type DType } from "../base/dtype.ts";
import { RequestError, textOf } from "../base/errors.ts";
import { readError, readHintOf } from "../base/faults.ts";
import { openToRead } from "../base/open-file.ts";
import { counted } from "../base/units.ts";
import { beginSync, hasBytes } from "./factors.ts";

const LARGEST_HEADER = 100_000_000; // the limit of the reference implementation
const READ_CHUNK = 64 << 20;
/** Bytes after which the disk gets what was written, while more is. */
const BEGUN = 32 << 20;

/** Bits of an element of every type of the format (0.8); we compute with some of them. */
const ELEMENT_BITS: Readonly<Record<string, number>> = {
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6, BOOL: 8, U8: 8, I8: 8 },
  ...{ F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8 },
  ...{ I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32, I64: 64, U64: 64, F64: 64, C64: 64 },
};
const DTYPES: Readonly<Record<string, DType>> = { F32: "f32", F16: "f16", BF16: "bf16", I32: "i32", I64: "i64", U8: "u8" };
const NAMES: Readonly<Record<DType, string>> = { f32: "F32", f16: "F16", bf16: "BF16", i32: "I32", i64: "I64", u8: "U8" };

export type TensorEntry = {
  /** As the file calls it: "BF16". */
  readonly type: string;
  /** Ours, or null where we do not compute with that type. */
  readonly dtype: DType | null;
  readonly shape: readonly number[];
  readonly offset: number; // from the beginning of the file
  readonly bytes: number;
};

export type SafetensorsFile = Disposable & {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
  /** Fills `target` with the tensor's bytes from byte `from` of it on. */
  readonly readInto: (name: string, target: Uint8Array, from?: number) => void;
  /** Whether the tensor has exactly these bytes. */
  readonly holds: (name: string, bytes: Uint8Array) => boolean;
};

/**
 * Opens and checks a file without reading tensors. Every fault is a RequestError "safetensors.*" with the path and the numbers.
 */
export function openSafetensors(path: string): SafetensorsFile {
  let fd: number;
  try {
    fd = openToRead(path);
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    const message = missing ? `${path}: no such file` : `${path}: ${textOf(error)}`;
    throw new RequestError("safetensors.file", message, readHintOf(error), { cause: error });
  }
  try {
    const { tensors, metadata } = readHeader(fd, path);
    let open = true;
    return {
      path,
      tensors,
      metadata,
      readInto: (name, target, from = 0) => {
        const { offset, bytes } = tensors.get(name)!;
        if (from + target.length > bytes) throw new Error(`${name}: ${from} + ${target.length} bytes of ${bytes}`);
        readAll(fd, target, offset + from, path);
      },
      holds: (name, expected) => {
        const { offset, bytes } = tensors.get(name)!;
        if (expected.length !== bytes) return false;
        try {
          return bytes === 0 || hasBytes(fd, offset, expected);
        } catch (error) {
          throw readError(path, error);
        }
      },
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

/** Fills `target` from byte `position` of the file on. Throws a RequestError where the file ends before that. */
export function readAll(fd: number, target: Uint8Array, position: number, path: string): void {
  for (let done = 0; done < target.length; ) {
    let got: number;
    try {
      got = readSync(fd, target, done, Math.min(READ_CHUNK, target.length - done), position + done);
    } catch (error) {
      throw readError(path, error);
    }
    if (got === 0) throw new RequestError("safetensors.short", `${path}: ends at byte ${position + done}, while it is read`);
    done += got;
  }
}

function readHeader(fd: number, path: string) {
  const wrong = (what: string) =>
    new RequestError("safetensors.header", `${path}: ${what}`, "the file is damaged or cut short; fetch it again");
  const { size } = fstatSync(fd);
  if (size < 8) throw wrong(`has ${counted(size, "byte")}, a safetensors file has at least 8`);
  const prefix = new Uint8Array(new ArrayBuffer(8));
  readAll(fd, prefix, 0, path);
  const said = new DataView(prefix.buffer).getBigUint64(0, true);
  const length = Number(said);
  if (length > LARGEST_HEADER || length > size - 8) throw wrong(`says that its header has ${said} bytes; the file has ${size}`);
  const raw = new Uint8Array(length);
  readAll(fd, raw, 8, path);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(raw));
  } catch (error) {
    throw wrong(`has a header that is no JSON: ${textOf(error)}`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header))
    throw wrong("has a header that is no JSON object");
  const tensors = new Map<string, TensorEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") metadata = value as Record<string, string>;
    else tensors.set(name, entryOf(name, value, 8 + length, wrong));
  }
  checkCover([...tensors], 8 + length, size, wrong);
  return { tensors, metadata };
}

const isCount = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 0;

function entryOf(name: string, value: unknown, start: number, wrong: (what: string) => RequestError): TensorEntry {
  const { dtype: type, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>;
  if (typeof type !== "string" || !Object.hasOwn(ELEMENT_BITS, type))
    throw wrong(`tensor '${name}' has the type ${JSON.stringify(type)}`);
  if (!Array.isArray(shape) || !shape.every(isCount)) throw wrong(`tensor '${name}' has the shape ${JSON.stringify(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
    throw wrong(`tensor '${name}' has the offsets ${JSON.stringify(offsets)}`);
  const [begin, end] = offsets as [number, number];
  const bytes = shape.reduce((a: number, b: number) => a * b, ELEMENT_BITS[type]!) / 8;
  if (bytes !== end - begin) throw wrong(`tensor '${name}', ${type} [${shape}], needs ${bytes} bytes and has ${end - begin}`);
  return { type, dtype: DTYPES[type] ?? null, shape, offset: start + begin, bytes };
}

/** The tensors cover the rest of the file: no overlap, no hole, nothing beyond its end. */
function checkCover(
  tensors: readonly (readonly [string, TensorEntry])[],
  start: number,
  size: number,
  wrong: (what: string) => RequestError,
): void {
  let at = start;
  for (const [name, { offset, bytes }] of tensors.toSorted(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (offset + bytes > size) throw wrong(`tensor '${name}' ends at byte ${offset + bytes}; the file has ${size}`);
    if (offset !== at) throw wrong(`tensor '${name}' begins at byte ${offset}, the one before ends at ${at}`);
    at = offset + bytes;
  }
  if (at !== size) throw wrong(`its tensors end at byte ${at}; the file has ${size}`);
}

export type TensorData = {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
};

export type HeaderEntry = { readonly name: string; readonly dtype: DType; readonly shape: readonly number[] };

/** What stands before the tensors' bytes, which follow in the order given without holes. */
export function headerOf(entries: readonly HeaderEntry[], metadata: Readonly<Record<string, string>> = {}): Uint8Array {
  let at = 0;
  const tensors = entries.map(({ name, dtype, shape }) => {
    const begin = at;
    at += shape.reduce((a, b) => a * b, bytesOf(dtype));
    return [name, { dtype: NAMES[dtype], shape, data_offsets: [begin, at] }];
  });
  const json = new TextEncoder().encode(
    JSON.stringify({
      ...(Object.keys(metadata).length > 0 ? { __metadata__: metadata } : {}),
      ...Object.fromEntries(tensors),
    }),
  );
  const length = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(8 + length).fill(0x20); // spaces fill it up
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, 8);
  return bytes;
}

/** Writes a file whole or not at all, tensors in the order given. Throws a RunError. */
export function writeSafetensors(
  path: string,
  tensors: readonly TensorData[],
  metadata: Readonly<Record<string, string>> = {},
): void {
  for (const { name, dtype, shape, data } of tensors) {
    const bytes = shape.reduce((a, b) => a * b, bytesOf(dtype));
    if (bytes !== data.byteLength) throw new Error(`${name}: ${data.byteLength} bytes for ${dtype} [${shape}]`);
  }
  replaceFile(path, (write, fd) => {
    let [written, begun] = [0, 0];
    const put = (bytes: Uint8Array) => {
      write(bytes);
      written += bytes.length;
      if (written - begun < BEGUN) return;
      beginSync(fd, begun, written - begun);
      begun = written;
    };
    put(headerOf(tensors, metadata));
    for (const { data } of tensors)
      for (let at = 0; at < data.byteLength; at += BEGUN)
        put(new Uint8Array(data.buffer, data.byteOffset + at, Math.min(BEGUN, data.byteLength - at)));
  });
}
