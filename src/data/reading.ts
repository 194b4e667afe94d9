// Reads data in a thread of its own (reader.ts), within limits of time and memory.

import { statSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { now } from "../base/clock.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { memory } from "../base/machine.ts";
import { checkDataFile, type FilesOf, filesNamed } from "./data-file.ts";
import type { Dataset, DatasetRecipe } from "./dataset.ts";
import type { TokenCache } from "./file-rows.ts";
import { type FromReader, type PackedDataset, PLACE, type ToReader } from "./reader.ts";
import { opened, type PackedRows, unpack } from "./rows.ts";
import { mapTokens } from "./token-file.ts";

/**
 * How far the reading is; `bytes` of `totalBytes`, which are the sizes of all files, each once. While a file is fetched: its
 * name, and the bytes of it that are there.
 */
export type ReadProgress = {
  readonly rows: number;
  readonly bytes: number;
  readonly totalBytes: number;
  readonly fetching?: string;
};

export type ReadingOptions = {
  /** The base model's folder, which has the tokenizer. */
  readonly model: string;
  readonly vocab: number;
  /** What the recipes' names of data stand for, where these are no paths. */
  readonly files?: FilesOf;
  /** Where rows are kept as tokens; left out: nowhere. */
  readonly cache?: TokenCache;
  /** Aborted: the thread ends at once, and the reading fails with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Called a few times a second. */
  readonly progress?: (progress: ReadProgress) => void;
  /** Milliseconds for one row: to parse it, to apply its template and to tokenise it. */
  readonly rowMs?: number;
  /** Milliseconds for all of it. */
  readonly allMs?: number;
  /** Bytes of packed rows at most. */
  readonly mostBytes?: number;
  /** Bytes that the process may grow by at most meanwhile: a long row takes many times its size while it is read. */
  readonly mostGrowth?: number;
};

const ROW_MS = 30_000;
const LOOK_MS = 100;
/** The share of the free memory that rows may take, and reading them. */
const SHARE = 0.8;

/** As bus/heartbeat.ts has it. */
const CODE = Bun.isStandaloneExecutable ? "./src/data/reader.ts" : new URL("./reader.ts", import.meta.url);

/**
 * The data of each adapter. Throws what `loadDataset` throws, a RequestError, `data.slow`, for a row that takes too long or all
 * that take more than `allMs`, and `data.memory` for rows that take too much, at rest or while they are read.
 */
export async function readData(adapters: readonly DatasetRecipe[], options: ReadingOptions): Promise<Dataset[]> {
  const { model, vocab, files = new Map(), cache = null, signal, rowMs = ROW_MS, allMs = Number.POSITIVE_INFINITY } = options;
  const most = Math.floor(SHARE * memory().availableBytes);
  const { mostBytes = most, mostGrowth = most } = options;
  signal?.throwIfAborted();
  const names = [...new Set(adapters.flatMap(({ train, eval: heldOut }) => [...train, ...heldOut]))];
  const read = [...new Map(filesNamed(names, files).map((file) => [file.name, file])).values()];
  for (const file of read) checkDataFile(file);
  const totalBytes = read.reduce((all, { path }) => all + statSync(path).size, 0);
  const place = new Float64Array(new SharedArrayBuffer(8 * PLACE.numbers));
  const thread = new Worker(CODE);
  const { promise, resolve, reject } = Promise.withResolvers<readonly PackedDataset[]>();
  const stop = () => reject(signal!.reason);
  signal?.addEventListener("abort", stop);
  thread.on("message", (message: FromReader) => {
    if (message.type === "read") return resolve(message.data);
    if (message.type === "bug") return reject(new Error(`the reader: ${message.message}`));
    const { wrong, code, message: text, hint } = message;
    reject(wrong ? new RequestError(code, text, hint) : new RunError(code, text, hint));
  });
  thread.on("error", (error) => reject(new Error(`the reader: ${textOf(error)}`)));
  const [begun, before] = [now(), process.memoryUsage.rss()];
  let [rows, since] = [-1, begun];
  const at = () => `${read[place[PLACE.file]!]!.name}${place[PLACE.line]! > 0 ? `:${place[PLACE.line]}` : ""}`;
  const look = setInterval(() => {
    const progress = { rows: place[PLACE.rows]!, bytes: Math.min(place[PLACE.bytes]!, totalBytes), totalBytes };
    options.progress?.(progress);
    if (place[PLACE.rows] !== rows) [rows, since] = [place[PLACE.rows]!, now()];
    if (place[PLACE.line]! > 0 && now() - since > rowMs) reject(tooSlow(at(), rowMs));
    if (now() - begun > allMs) reject(tooLong(progress, allMs));
    const grown = process.memoryUsage.rss() - before;
    if (grown > mostGrowth) reject(tooMuch(at(), grown, mostGrowth));
  }, LOOK_MS);
  try {
    thread.postMessage({
      adapters,
      files,
      names: read.map(({ name }) => name),
      model,
      vocab,
      mostBytes,
      cache,
      place,
    } satisfies ToReader);
    const data = await promise;
    const rowsOf = (rows: PackedRows) => unpack(opened(rows, mapTokens));
    return data.map(({ train, eval: heldOut, ...rest }) => ({ ...rest, train: rowsOf(train), eval: rowsOf(heldOut) }));
  } finally {
    clearInterval(look);
    signal?.removeEventListener("abort", stop);
    await thread.terminate();
  }
}

const tooSlow = (place: string, ms: number): RequestError =>
  new RequestError(
    "data.slow",
    `${place}: reading this row has taken more than ${ms / 1000} s`,
    "see whether a loop of the template ends, or remove the row",
  );

const tooLong = ({ rows, bytes, totalBytes }: ReadProgress, ms: number): RequestError =>
  new RequestError(
    "data.slow",
    `the data is not read after ${ms / 1000} s: ${rows} rows, ${bytes} bytes of ${totalBytes} so far`,
    "use fewer rows, or a template that takes less time",
  );

const tooMuch = (place: string, grown: number, most: number): RequestError =>
  new RequestError(
    "data.memory",
    `${place}: the process has grown by ${grown} bytes while data is read, ${most} at most are there for it`,
    "use fewer or shorter rows, or lower max_length",
  );
