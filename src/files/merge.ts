// An adapter merged into its base model: each linear that it targets changes as its method says (methods/NAME.ts), all else
// stays. Weights go through memory in pieces of rows, so that a model needs no more than its adapter and one piece.

import { join } from "node:path";
import { replaceFile, writeFileAtomic } from "../base/atomic.ts";
import { bytesOf, type DType } from "../base/dtype.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { tensorShapes } from "../families/tensors.ts";
import { rankAt } from "../methods/placement.ts";
import { type BaseModelFiles, openBaseModel } from "./basemodel.ts";
import { toBf16 } from "./convert.ts";
import { mergeOf, type Site, sitesOf } from "./mergesites.ts";
import type { SavedAdapter } from "./peft.ts";
import { mergeTable, type TableChange } from "./pefttables.ts";
import { headerOf } from "./safetensors.ts";

export type StoredType = "bf16" | "f32";
export type Merge = {
  /** Of the merged model, which may have a head of its own where the base has none. */
  readonly spec: ModelSpec;
  readonly base: BaseModelFiles;
  readonly adapter: SavedAdapter;
  readonly dtype: StoredType;
};

export type MergedTensor = {
  readonly name: string;
  /** What the merged model's files call it. */
  readonly stored: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** The base model's tensor that it is made from. */
  readonly from: string;
  /** How it changes as a table of tokens. */
  readonly table: TableChange | null;
  /** What is added to it, or null for none. */
  readonly site: Site | null;
};
/** A file of the merged model. */
export type Shard = { readonly file: string; readonly tensors: readonly MergedTensor[]; readonly bytes: number };

const INDEX = "model.safetensors.index.json";
/** Elements that are in memory at a time, in f32 and as they are stored. */
const PIECE = 1 << 22;

/** The tensors of the merged model, in its order, without those of other parts. */
export function tensorsOf({ spec, base, adapter, dtype }: Merge): readonly Omit<MergedTensor, "bytes">[] {
  const sites = new Map<string, Site>();
  for (let layer = 0; layer < spec.layers; layer++)
    for (const linear of adapter.targets)
      if (rankAt(adapter, layer, linear) > 0) for (const [name, site] of sitesOf(spec, layer, linear)) sites.set(name, site);
  const { embedding, head } = familyOf(spec).tensors;
  // Older files of some models leave out "model.", which others need; what stands in its place is kept.
  const keepsNames = spec.tower !== "model" || base.stored(embedding).startsWith("backbone.");
  const tables = new Map([
    [embedding, adapter.changes?.embedding],
    [head, adapter.changes?.head],
  ]);
  return [...tensorShapes(spec)].map(([name, shape]) => {
    const from = name === head && base.spec.tiedEmbeddings ? embedding : name; // one table of the base becomes two
    const stored = keepsNames && from === name ? base.stored(name) : name;
    return { name, stored, from, shape, dtype, table: tables.get(name) ?? null, site: sites.get(name) ?? null };
  });
}

/**
 * The files of the merged model and what lies in each, in the model's order: at most `mostBytes` of tensors, or one tensor. A
 * model with other parts keeps those, and the names of its files. Throws a RequestError where one is of an unknown type.
 */
export function shardsOf(merge: Merge, mostBytes: number): Shard[] {
  const { spec, base } = merge;
  const shards: { tensors: MergedTensor[]; bytes: number }[] = [];
  const isPart = spec.tower !== "model";
  for (const tensor of [...tensorsOf(merge), ...(isPart ? base.unused.map((name) => otherPart(name, base)) : [])]) {
    const bytes = sizeOf(tensor.shape) * bytesOf(tensor.dtype);
    const last = shards.at(-1);
    const shard = last && last.bytes + bytes <= mostBytes ? last : { tensors: [], bytes: 0 };
    if (shard !== last) shards.push(shard);
    shard.tensors.push({ ...tensor, bytes });
    shard.bytes += bytes;
  }
  const five = (n: number) => `${n}`.padStart(5, "0");
  return shards.map((shard, i) => ({
    ...shard,
    file: shards.length === 1 ? "model.safetensors" : `model-${five(i + 1)}-of-${five(shards.length)}.safetensors`,
  }));
}

function otherPart(name: string, base: BaseModelFiles): Omit<MergedTensor, "bytes"> {
  const { dtype, shape, type, fault } = base.tensor(name);
  if (dtype && fault === null) return { name, stored: name, from: name, shape, dtype, table: null, site: null };
  throw new RequestError(
    "export.base",
    `the base model's ${name} is ${type}, which cannot be copied`,
    "save the base model in bf16",
  );
}

/** Names of all files of the merged model's weights. */
export const filesOf = (shards: readonly Shard[]): string[] => [...shards.map(({ file }) => file), INDEX];

/** A file of a merged model, and the folder that it goes to. */
export type MergedFile = { readonly folder: string; readonly shard: Shard; readonly merge: Merge };

/**
 * Writes a file of each of several merged models, of the same tensors, synced and renamed, piece by piece together. Throws a
 * RunError.
 */
export function writeShards(files: readonly MergedFile[]): void {
  const open = (writes: readonly ((bytes: Uint8Array) => void)[]): void => {
    if (writes.length === files.length) {
      writeTogether(files, writes);
      return;
    }
    const { folder, shard } = files[writes.length]!;
    const entries = shard.tensors.map(({ stored, shape, dtype }) => ({ name: stored, shape, dtype }));
    replaceFile(join(folder, shard.file), (write) => {
      write(headerOf(entries, { format: "pt" }));
      open([...writes, write]);
    });
  };
  open([]);
}

function writeTogether(files: readonly MergedFile[], writes: readonly ((bytes: Uint8Array) => void)[]): void {
  for (const at of files[0]!.shard.tensors.keys()) {
    const all = files.map(({ shard, merge }) => piecesOf(shard.tensors[at]!, merge));
    for (let pieces = all.map((one) => one.next()); pieces.some(({ done }) => !done); pieces = all.map((one) => one.next()))
      for (const [i, { value }] of pieces.entries()) if (value) writes[i]!(value.bytes);
  }
}

/** A base model of which several merges read the same pieces one after another: each is read once. */
export function sharedBase(base: BaseModelFiles): BaseModelFiles {
  let place = "";
  const kept = new Map<string, Uint8Array>();
  const read: BaseModelFiles["read"] = (name, into, from = 0, as) => {
    if (place !== `${name} ${from}`) kept.clear();
    place = `${name} ${from}`;
    const known = kept.get(`${as} ${into.length}`);
    if (known) into.set(known);
    else {
      base.read(name, into, from, as);
      kept.set(`${as} ${into.length}`, into.slice());
    }
  };
  return { ...base, read, [Symbol.dispose]: () => base[Symbol.dispose]() };
}

/** Where each tensor lies; one file needs none. */
export function writeIndex(folder: string, shards: readonly Shard[]): void {
  if (shards.length === 1) return;
  const tensors = shards.flatMap(({ file, tensors }) => tensors.map(({ stored, bytes }) => ({ name: stored, bytes, file })));
  const index = {
    metadata: { total_size: tensors.reduce((all, { bytes }) => all + bytes, 0) },
    weight_map: Object.fromEntries(tensors.map(({ name, file }) => [name, file])),
  };
  writeFileAtomic(join(folder, INDEX), `${JSON.stringify(index, null, 2)}\n`);
}

/**
 * Opens what was written of several merged models, of the same tensors, and compares each byte of it with what it is to be,
 * piece by piece together. A RunError, `export.verify`, where one differs.
 */
export function verifyAll(
  models: readonly { readonly folder: string; readonly shards: readonly Shard[]; readonly merge: Merge }[],
): void {
  const all = models.map(({ folder, shards, merge }) => verification(folder, shards, merge));
  for (let going = true; going; ) going = all.map((one) => one.next().done !== true).some(Boolean);
}

export const verifyMerged = (folder: string, shards: readonly Shard[], merge: Merge): void =>
  verifyAll([{ folder, shards, merge }]);

function* verification(folder: string, shards: readonly Shard[], merge: Merge): Generator<void> {
  using written = openBaseModel(folder, merge.spec);
  for (const { file, tensors } of shards)
    for (const tensor of tensors) {
      const differs = (what: string) =>
        new RunError(
          "export.verify",
          `${join(folder, file)}: ${tensor.name} was written and ${what}`,
          "nothing of it is kept; check the disk, and that no program changes the base model meanwhile",
        );
      const { dtype } = written.tensor(tensor.name);
      if (dtype !== tensor.dtype) throw differs(`reads as ${dtype}, not ${tensor.dtype}`);
      for (const { bytes, from } of piecesOf(tensor, merge)) {
        const found = new Uint8Array(bytes.length);
        written.read(tensor.name, found, from);
        if (Buffer.compare(found, bytes) !== 0) throw differs(`reads otherwise, from byte ${from} of it on`);
        yield;
      }
    }
}

/** The rows of a tensor of the merged model; a call of `read` has rows of one matrix, of which each has `each`. */
export type MergedRows = {
  readonly rows: number;
  readonly width: number;
  readonly each: number;
  /** Whether the adapter changes them. */
  readonly isChanged: boolean;
  /** Throws a RunError, `export.values`, where they are no finite numbers. */
  readonly read: (row: number, count: number) => Float32Array<ArrayBuffer>;
};

export function rowsOf(tensor: Omit<MergedTensor, "bytes">, { spec, base, adapter }: Merge): MergedRows {
  const { name, from, shape, table, site } = tensor;
  const width = shape.at(-1) ?? 1;
  const rows = sizeOf(shape) / width;
  const change = table ? { each: rows, merge: mergeTable(table, width) } : site && mergeOf(spec, adapter, site, rows, width);
  const read = (row: number, count: number): Float32Array<ArrayBuffer> => {
    const values = new Float32Array(new ArrayBuffer(count * width * 4));
    base.read(from, new Uint8Array(values.buffer), row * width * 4, "f32");
    change?.merge(values, row);
    if (allFinite(values)) return values;
    throw new RunError(
      "export.values",
      `${name} has values that are no finite numbers when it is merged`,
      "the base model is damaged, or the adapter's values are too large",
    );
  };
  return { rows, width, each: change?.each ?? rows, isChanged: change !== null, read };
}

/** Rows that are in memory at a time. */
export const rowsAtOnce = (width: number): number => Math.max(1, Math.floor(PIECE / width));

/** The stored bytes of a tensor of the merged model, piece by piece, with the byte where each begins. */
function* piecesOf(tensor: MergedTensor, merge: Merge) {
  const { from, dtype } = tensor;
  const { rows, width, each, isChanged, read } = rowsOf(tensor, merge);
  const most = rowsAtOnce(width);
  for (let row = 0, count = 0; row < rows; row += count) {
    count = Math.min(most, each - (row % each));
    const at = row * width * bytesOf(dtype);
    if (!isChanged) {
      const bytes = new Uint8Array(new ArrayBuffer(count * width * bytesOf(dtype)));
      merge.base.read(from, bytes, at, dtype);
      yield { bytes, from: at };
      continue;
    }
    const values = read(row, count);
    const stored = dtype === "bf16" ? toBf16(values) : values;
    yield { bytes: new Uint8Array(stored.buffer), from: at };
  }
}

function allFinite(values: Float32Array): boolean {
  let zero = 0; // NaN from the first value on that is not finite
  for (let i = 0; i < values.length; i++) zero += values[i]! * 0;
  return zero === 0;
}
