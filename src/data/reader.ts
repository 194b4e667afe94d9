// The thread that reads, templates and tokenises data, so that a run trains, answers and hears signals meanwhile. Started by
// reading.ts.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parentPort } from "node:worker_threads";
import { MloraError, RequestError, RunError } from "../base/errors.ts";
import type { FilesOf } from "./data-file.ts";
import { type Dataset, type DatasetRecipe, loadDataset, type ReadFiles } from "./dataset.ts";
import type { TokenCache } from "./file-rows.ts";
import type { Source } from "./jsonl.ts";
import { buffersOf, type PackedRows, pack, sendable } from "./rows.ts";
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
};
export type PackedDataset = Omit<Dataset, "train" | "eval"> & { readonly train: PackedRows; readonly eval: PackedRows };
export type FromReader =
  | { readonly type: "read"; readonly data: readonly PackedDataset[] }
  | {
      readonly type: "failed";
      readonly wrong: boolean;
      readonly code: string;
      readonly message: string;
      readonly hint?: string;
    }
  | { readonly type: "bug"; readonly message: string };

/**
 * Where the thread is, in `place`: the number of the file, the line (0 between files), rows begun and bytes read of all files.
 */
export const PLACE = { file: 0, line: 1, rows: 2, bytes: 3, numbers: 4 } as const;

parentPort?.on("message", (asked: ToReader) => {
  const answer = (message: FromReader, buffers: readonly ArrayBuffer[] = []) => parentPort?.postMessage(message, [...buffers]);
  try {
    const data = readAll(asked);
    answer({ type: "read", data }, buffersOf(data.flatMap(({ train, eval: heldOut }) => [train, heldOut])));
  } catch (error) {
    if (!(error instanceof MloraError)) return answer({ type: "bug", message: `${(error as Error)?.stack ?? error}` });
    const { code, message, hint } = error;
    answer({ type: "failed", wrong: !(error instanceof RunError), code, message, ...(hint === undefined ? {} : { hint }) });
  }
});

function readAll({ adapters, files, names, model, vocab, mostBytes, cache, place }: ToReader): PackedDataset[] {
  const tokenizer = loadTokenizer(model);
  const kept = cache && { ...cache, maker: `${cache.maker} ${filesHash(model)}` };
  const numbers = new Map(names.map((name, i) => [name, i]));
  const read: ReadFiles = new Map(); // a sweep's adapters share their rows
  let [current, begun, before, inFile, heldBefore, heldHere] = ["", -1, 0, 0, 0, 0];
  const row = (at: Source | null, bytes: number, heldBytes: number): void => {
    if (!at) {
      place[PLACE.line] = 0; // what follows, over all rows, is no row's fault
      return;
    }
    const { file, line } = at;
    if (file !== current || line <= begun) [current, before, heldBefore] = [file, before + inFile, heldBefore + heldHere];
    [begun, inFile, heldHere] = [line, bytes, heldBytes];
    place[PLACE.file] = numbers.get(file) ?? 0;
    place[PLACE.line] = line;
    place[PLACE.rows]!++;
    place[PLACE.bytes] = before + inFile;
    if (heldBefore + heldBytes <= mostBytes) return;
    throw new RequestError(
      "data.memory",
      `${file}:${line}: the rows up to here take ${heldBefore + heldBytes} bytes, ${mostBytes} at most are there for them`,
      "use fewer rows, or lower max_length",
    );
  };
  return adapters.map((adapter) => {
    const { train, eval: heldOut, ...rest } = loadDataset(adapter, tokenizer, vocab, read, row, files, kept);
    return { ...rest, train: sendable(pack(train)), eval: sendable(pack(heldOut)) };
  });
}

/** Files that decide what a tokenizer makes of a text, but for chat templates. */
const TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"];

function filesHash(folder: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const name of TOKENIZER) {
    const path = join(folder, name);
    hasher.update(existsSync(path) ? readFileSync(path) : "none").update(";");
  }
  return hasher.digest("hex");
}
