// GGUF files written once more with changes: what no library would write.

import { writeFileSync } from "node:fs";
import { type GgufFile, type GgufTensor, type GgufValue, openGguf } from "../../src/files/gguf/header.ts";

type Written = Pick<GgufTensor, "shape"> & { readonly type: number; readonly data: Uint8Array };
export type GgufChanges = {
  /** Null takes a key out. Whole numbers are written as u32, others as f32. */
  readonly metadata?: Readonly<Record<string, GgufValue | null>>;
  readonly tensors?: Readonly<Record<string, Partial<Written> | null>>;
  readonly version?: number;
};

const NUMBERS: Readonly<Record<string, number>> = {
  ...{ F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q5_0: 6, Q5_1: 7, Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14, BF16: 30 },
};
const ALIGNMENT = 32;

const u32 = (n: number) => new Uint8Array(Uint32Array.of(n).buffer);
const u64 = (n: number) => new Uint8Array(BigUint64Array.of(BigInt(n)).buffer);
const text = (of: string) => [u64(Buffer.byteLength(of)), new TextEncoder().encode(of)];

function value(of: GgufValue): Uint8Array[] {
  if (typeof of === "string") return [u32(8), ...text(of)];
  if (typeof of === "boolean") return [u32(7), Uint8Array.of(Number(of))];
  if (typeof of === "bigint") return [u32(10), u64(Number(of))];
  if (typeof of === "number")
    return Number.isInteger(of) ? [u32(4), u32(of)] : [u32(6), new Uint8Array(Float32Array.of(of).buffer)];
  const list = of as readonly (string | number)[];
  const isText = typeof list[0] === "string";
  const items = list.flatMap((item) => (isText ? text(item as string) : [u32(item as number)]));
  return [u32(9), u32(isText ? 8 : 4), u64(list.length), ...items];
}

/** The tensors of a file with their bytes. */
function tensorsOf(file: GgufFile): [string, Written][] {
  return [...file.tensors].map(([name, { type, shape, offset, bytes }]) => {
    const data = new Uint8Array(bytes!);
    file.read(data, offset);
    return [name, { type: NUMBERS[type]!, shape, data }];
  });
}

/** Writes `from` once more to `to`. */
export function rewriteGguf(from: string, to: string, { metadata = {}, tensors = {}, version = 3 }: GgufChanges): void {
  using file = openGguf(from);
  const pairs = Object.entries({ ...Object.fromEntries(file.metadata), ...metadata }).filter(([, of]) => of !== null);
  const kept = tensorsOf(file).filter(([name]) => tensors[name] !== null);
  const all = Object.entries({
    ...Object.fromEntries(kept.map(([name, of]) => [name, { ...of, ...tensors[name] }])),
    ...Object.fromEntries(Object.entries(tensors).filter(([name]) => !file.tensors.has(name))),
  }) as [string, Written][];
  let at = 0;
  const entries = all.flatMap(([name, { type, shape, data }]) => {
    const entry = [...text(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(type), u64(at)];
    at += Math.ceil(data.length / ALIGNMENT) * ALIGNMENT;
    return entry;
  });
  const head = [u32(0x46554747), u32(version), u64(all.length), u64(pairs.length)];
  const parts = [...head, ...pairs.flatMap(([key, of]) => [...text(key), ...value(of as GgufValue)]), ...entries];
  const pad = (length: number) => new Uint8Array(-length & (ALIGNMENT - 1));
  parts.push(pad(parts.reduce((sum, part) => sum + part.length, 0)));
  writeFileSync(to, Buffer.concat([...parts, ...all.flatMap(([, { data }]) => [data, pad(data.length)])]));
}
