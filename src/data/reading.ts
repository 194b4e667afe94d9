// Reads data in a thread of its own (reader.ts), and with more threads where rows are many (row-worker.ts), within limits of
// time and memory.

import { statSync } from "node:fs";
import { MessageChannel, Worker } from "node:worker_threads";
import { now } from "../base/clock.ts";
import { RequestError, textOf } from "../base/errors.ts";
import { memory, usableCores } from "../base/machine.ts";
import { range, sum } from "../base/shape.ts";
import { count, counted } from "../base/units.ts";
import { checkDataFile, type FilesOf, filesNamed } from "./data-file.ts";
import type { Dataset, DatasetRecipe } from "./dataset.ts";
import type { TokenCache } from "./file-rows.ts";
import { PLACE, placeOfThread } from "./place.ts";
import type { FromReader, PackedDataset, ToReader } from "./reader.ts";
import type { RowWorkerData } from "./row-worker.ts";
import { opened, type PackedFile, type PackedRows, unpack } from "./rows.ts";
import { errorOf } from "./thread-failure.ts";
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
  /** Threads that read at most; left out: as many as this machine has cores and memory for. */
  readonly threads?: number;
  /** Milliseconds for one row: to parse it, to apply its template and to tokenise it. */
  readonly rowMs?: number;
  /** Milliseconds for all of it. */
  readonly allMs?: number;
  /** Bytes of packed rows at most. */
  readonly mostBytes?: number;
  /** Bytes that the process may grow by at most meanwhile: a long row takes many times its size while it is read. */
  readonly mostGrowth?: number;
  /** Bytes that the process takes for other work that was begun meanwhile. */
  readonly elsewhere?: () => number;
  /** Called, once or more, where a row has become none or several. */
  readonly uneven?: () => void;
};

const ROW_MS = 30_000;
const LOOK_MS = 100;
/** The share of the free memory that rows may take, and reading them. */
const SHARE = 0.8;

/** Threads beyond these would wait for the first, which reads the files and packs the rows; and memory that each may take. */
const [MOST_THREADS, THREAD_BYTES] = [8, 1 << 30];

/** As bus/heartbeat.ts has it. */
const codeOf = (name: string) => (Bun.isStandaloneExecutable ? `./src/data/${name}` : new URL(`./${name}`, import.meta.url));

/**
 * The data of each adapter. Throws what `loadDataset` throws, a RequestError, `data.slow`, for a row that takes too long or all
 * that take more than `allMs`, and `data.memory` for rows that take too much, at rest or while they are read.
 */
export async function readData(adapters: readonly DatasetRecipe[], options: ReadingOptions): Promise<Dataset[]> {
  const { model, vocab, files = new Map(), cache = null, signal, rowMs = ROW_MS, allMs = Number.POSITIVE_INFINITY } = options;
  const { availableBytes } = memory();
  const most = Math.floor(SHARE * availableBytes);
  const { mostBytes = most, mostGrowth = most } = options;
  const { threads = Math.min(usableCores(), MOST_THREADS, Math.max(1, Math.floor(availableBytes / THREAD_BYTES))) } = options;
  signal?.throwIfAborted();
  const listed = [...new Set(adapters.flatMap(({ train, eval: heldOut }) => [...train, ...heldOut]))];
  const read = [...new Map(filesNamed(listed, files).map((file) => [file.name, file])).values()];
  for (const file of read) checkDataFile(file);
  const names = read.map(({ name }) => name);
  const totalBytes = read.reduce((all, { path }) => all + statSync(path).size, 0);
  const places = new Float64Array(new SharedArrayBuffer(8 * PLACE.numbers * threads));
  const placed = range(threads).map((thread) => placeOfThread(places, thread));
  const place = placed[0]!;
  const bell = new Int32Array(new SharedArrayBuffer(4));
  const channels = range(threads - 1).map(() => new MessageChannel());
  const { promise, resolve, reject } = Promise.withResolvers<readonly PackedDataset[]>();
  const stop = () => reject(signal!.reason);
  signal?.addEventListener("abort", stop);
  const start = (name: string, workerData?: RowWorkerData): Worker => {
    const thread = new Worker(codeOf(name), workerData ? { workerData, transferList: [workerData.port] } : {});
    thread.on("error", (error) => reject(new Error(`the reader: ${textOf(error)}`)));
    return thread;
  };
  const thread = start("reader.ts");
  const helpers: Worker[] = [];
  thread.on("message", (message: FromReader) => {
    if (message.type === "read") return resolve(message.data);
    if (message.type !== "threads") return reject(errorOf(message));
    for (const [i, { port2 }] of channels.entries())
      helpers.push(start("row-worker.ts", { port: port2, bell, model, names, place: placed[i + 1]! }));
  });
  const [begun, before] = [now(), process.memoryUsage.rss()];
  const since = placed.map(() => ({ rows: -1, at: begun }));
  const at = (of: Float64Array) => `${names[of[PLACE.file]!]}${of[PLACE.line]! > 0 ? `:${of[PLACE.line]}` : ""}`;
  /** The thread whose row has taken the longest so far; the first where none reads one. */
  const longest = () =>
    placed.filter((of) => of[PLACE.line]! > 0).sort((a, b) => since[placed.indexOf(a)]!.at - since[placed.indexOf(b)]!.at)[0] ??
    place;
  const look = setInterval(() => {
    const progress = {
      rows: sum(placed.map((of) => of[PLACE.rows]!)),
      bytes: Math.min(place[PLACE.bytes]!, totalBytes),
      totalBytes,
    };
    options.progress?.(progress);
    for (const [i, of] of placed.entries()) {
      if (of[PLACE.rows] !== since[i]!.rows) since[i] = { rows: of[PLACE.rows]!, at: now() };
      if (of[PLACE.line]! > 0 && now() - since[i]!.at > rowMs) reject(tooSlow(at(of), rowMs));
    }
    if (now() - begun > allMs) reject(tooLong(progress, allMs));
    if (place[PLACE.uneven]! > 0) options.uneven?.();
    const grown = process.memoryUsage.rss() - before - (options.elsewhere?.() ?? 0);
    if (grown > mostGrowth) reject(tooMuch(at(longest()), grown, mostGrowth));
  }, LOOK_MS);
  try {
    const ports = channels.map(({ port1 }) => port1);
    const asked: ToReader = { adapters, files, names, model, vocab, mostBytes, cache, place, ports, bell };
    thread.postMessage(asked, ports);
    const data = await promise;
    const mapped = new Map<string, PackedFile>(); // once, for all that read the same rows: each would count as memory
    const map = (path: string, file: string) => mapped.getOrInsertComputed(`${path} ${file}`, () => mapTokens(path, file));
    const rowsOf = (rows: PackedRows) => unpack(opened(rows, map));
    return data.map(({ train, eval: heldOut, ...rest }) => ({ ...rest, train: rowsOf(train), eval: rowsOf(heldOut) }));
  } finally {
    clearInterval(look);
    signal?.removeEventListener("abort", stop);
    await Promise.all([thread, ...helpers].map((one) => one.terminate()));
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
    `the data is not read after ${ms / 1000} s: ${counted(rows, "row")}, ${counted(bytes, "byte")} of ${count(totalBytes)} so far`,
    "use fewer rows, or a template that takes less time",
  );

const tooMuch = (place: string, grown: number, most: number): RequestError =>
  new RequestError(
    "data.memory",
    `${place}: the process has grown by ${counted(grown, "byte")} while data is read, ${count(most)} at most are there for it`,
    "use fewer or shorter rows, or lower max_length",
  );
