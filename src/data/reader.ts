// The thread that reads, templates and tokenises data, so that a run trains, answers and hears signals meanwhile. Started by
// reading.ts.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type MessagePort, parentPort } from "node:worker_threads";
import { RequestError } from "../base/errors.ts";
import { count, counted } from "../base/units.ts";
import type { FilesOf } from "./data-file.ts";
import { type Dataset, type DatasetRecipe, loadDataset, type ReadFiles } from "./dataset.ts";
import type { TokenCache } from "./file-rows.ts";
import type { Source } from "./jsonl.ts";
import type { ReadingWatch } from "./pack-rows.ts";
import { PLACE } from "./place.ts";
import { RowPool } from "./row-pool.ts";
import { buffersOf, type PackedRows, pack, sendable } from "./rows.ts";
import { failureOf, type ThreadFailure } from "./thread-failure.ts";
import { loadTokenizer } from "./tokenizer.ts";

export type ToReader = {
  readonly adapters: readonly DatasetRecipe[];
  readonly files: FilesOf;
  /** Of all files that are read. */
  readonly names: readonly string[];
  readonly model: string;
  readonly vocab: number;
  /** Bytes of packed rows at most, of all files together. */
  readonly mostBytes: number;
  /** Where rows are kept as tokens, with the program's name; null: nowhere. */
  readonly cache: TokenCache | null;
  /** PLACE numbers, shared. */
  readonly place: Float64Array;
  /** To threads that read rows, too, once they are asked for; `bell` is theirs to raise. */
  readonly ports: readonly MessagePort[];
  readonly bell: Int32Array;
};
export type PackedDataset = Omit<Dataset, "train" | "eval"> & { readonly train: PackedRows; readonly eval: PackedRows };
export type FromReader =
  | { readonly type: "read"; readonly data: readonly PackedDataset[] }
  | { readonly type: "threads" }
  | ThreadFailure;

parentPort?.on("message", (asked: ToReader) => {
  const answer = (message: FromReader, buffers: readonly ArrayBuffer[] = []) => parentPort?.postMessage(message, [...buffers]);
  try {
    const data = readAll(asked, () => answer({ type: "threads" }));
    answer({ type: "read", data }, buffersOf(data.flatMap(({ train, eval: heldOut }) => [train, heldOut])));
  } catch (error) {
    answer(failureOf(error));
  }
});

function readAll(
  { adapters, files, names, model, vocab, mostBytes, cache, place, ports, bell }: ToReader,
  startThreads: () => void,
): PackedDataset[] {
  const tokenizer = loadTokenizer(model);
  const kept = cache && { ...cache, maker: `${cache.maker} ${filesHash(model)}` };
  const numbers = new Map(names.map((name, i) => [name, i]));
  const read: ReadFiles = new Map(); // a sweep's adapters share their rows
  const pool = ports.length > 0 ? new RowPool(ports, bell, startThreads) : null;
  let [before, inFile, heldBefore, heldHere] = [0, 0, 0, 0];
  let latest: Source | null = null;
  const isAgain = ({ file, line }: Source) => latest !== null && (file !== latest.file || line <= latest.line);
  const watch: ReadingWatch = {
    begin: (source, bytes) => {
      place[PLACE.line] = source?.line ?? 0; // 0: what follows is no row's fault
      if (!source) return;
      place[PLACE.file] = numbers.get(source.file) ?? 0;
      place[PLACE.rows]!++;
      place[PLACE.bytes] = Math.max(place[PLACE.bytes]!, (isAgain(source) ? before + inFile : before) + bytes);
    },
    read: ({ last, bytes, held, isEven }) => {
      if (!isEven) place[PLACE.uneven]!++;
      if (isAgain(last)) [before, heldBefore] = [before + inFile, heldBefore + heldHere];
      [latest, inFile, heldHere] = [last, bytes, held];
      if (heldBefore + held <= mostBytes) return;
      throw new RequestError(
        "data.memory",
        `${last.file}:${last.line}: the rows up to here take ${counted(heldBefore + held, "byte")}, ${count(mostBytes)} at most are there for them`,
        "use fewer rows, or lower max_length",
      );
    },
  };
  return adapters.map((adapter) => {
    const { train, eval: heldOut, ...rest } = loadDataset(adapter, tokenizer, vocab, read, watch, files, kept, pool);
    return { ...rest, train: sendable(pack(train)), eval: sendable(pack(heldOut)) };
  });
}

/** Files that decide what a tokenizer makes of a text, but for chat templates. */
const TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"];

function filesHash(folder: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const name of TOKENIZER) {
    const path = join(folder, name);
    hasher.update(existsSync(path) ? readFileSync(path) : "none").update(";");
  }
  return hasher.digest("hex");
}
