// The threads that read rows with the reader (row-worker.ts), as the reader sees them. The reader waits for them without its
// event loop, so that reading is plain calls in order, and reads rows itself where none is free.

import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import { stringifyJson } from "./json.ts";
import type { ReadRow } from "./jsonl.ts";
import type { ReadChunk, RowReading } from "./row-chunks.ts";
import { type PackedRows, unpack } from "./rows.ts";
import { errorOf, type ThreadFailure } from "./thread-failure.ts";

/** Rows that are still text: the bytes of all, with the end of each; or what `read` made of each, as JSON. */
export type RowTexts =
  | { readonly bytes: Uint8Array; readonly ends: Int32Array; readonly isElement: boolean }
  | { readonly parsed: readonly string[] };

export type ToRowWorker =
  /** What the rows are that follow. */
  | { readonly type: "reading"; readonly reading: RowReading }
  | { readonly type: "rows"; readonly number: number; readonly lines: Int32Array; readonly texts: RowTexts };
export type FromRowWorker =
  | { readonly type: "ready" }
  | { readonly type: "rows"; readonly number: number; readonly chunk: PackedChunk }
  | { readonly type: "refused"; readonly number: number; readonly failure: ThreadFailure };
export type PackedChunk = Omit<ReadChunk, "samples"> & { readonly samples: PackedRows };

/** Chunks that a thread has at once: the next is there when one is done. */
const AHEAD = 2;
/** Milliseconds; a thread that is to end can do so no earlier. */
const LOOK_MS = 50;

type Thread = { readonly port: MessagePort; reading: RowReading | null; isReady: boolean; ahead: number };

export class RowPool {
  readonly #threads: readonly Thread[];
  readonly #done = new Map<number, PackedChunk | ThreadFailure>();
  #isStarted = false;
  #next = 0;

  /**
   * `bell`: one number, shared, that a thread raises after each message. `start` starts the threads at the ports' ends. Smaller
   * files than `leastBytes` are read by one thread, as each first has to read the tokenizer.
   */
  constructor(
    ports: readonly MessagePort[],
    private readonly bell: Int32Array,
    private readonly start: () => void,
    readonly leastBytes = 4 << 20,
  ) {
    this.#threads = ports.map((port) => ({ port, reading: null, isReady: false, ahead: 0 }));
  }

  /** Starts the threads, if they are not: what is to be read is worth it. */
  want(): void {
    if (!this.#isStarted) this.start();
    this.#isStarted = true;
  }

  /** Has a thread read rows, and gives a function that waits for what became of them; null where all are busy. */
  submit(reading: RowReading, rows: readonly ReadRow[]): (() => ReadChunk) | null {
    this.#receive();
    const free = this.#threads.filter(({ isReady, ahead }) => isReady && ahead < AHEAD);
    const thread = free.sort((a, b) => a.ahead - b.ahead)[0];
    if (!thread) return null;
    if (thread.reading !== reading) thread.port.postMessage({ type: "reading", reading } satisfies ToRowWorker);
    thread.reading = reading;
    thread.ahead++;
    const number = this.#next++;
    const lines = Int32Array.from(rows, ({ line }) => line);
    const texts = textsOf(rows);
    const owned = "bytes" in texts ? [texts.bytes.buffer as ArrayBuffer, texts.ends.buffer as ArrayBuffer] : [];
    thread.port.postMessage({ type: "rows", number, lines, texts } satisfies ToRowWorker, owned);
    return () => this.#await(number);
  }

  #await(number: number): ReadChunk {
    for (;;) {
      const rung = Atomics.load(this.bell, 0);
      this.#receive();
      const done = this.#done.get(number);
      if (done === undefined) {
        Atomics.wait(this.bell, 0, rung, LOOK_MS);
        continue;
      }
      this.#done.delete(number);
      if ("type" in done) throw errorOf(done);
      return { ...done, samples: unpack(done.samples) };
    }
  }

  #receive(): void {
    for (const thread of this.#threads)
      for (let got = receiveMessageOnPort(thread.port); got; got = receiveMessageOnPort(thread.port)) {
        const message: FromRowWorker = got.message;
        if (message.type === "ready") {
          thread.isReady = true;
          continue;
        }
        thread.ahead--;
        this.#done.set(message.number, message.type === "rows" ? message.chunk : message.failure);
      }
  }
}

function textsOf(rows: readonly ReadRow[]): RowTexts {
  const { isElement } = rows[0]!.json ?? {};
  if (isElement === undefined) return { parsed: rows.map(({ read }) => stringifyJson(read())!) };
  const ends = new Int32Array(rows.length);
  let length = 0;
  for (const [i, { json }] of rows.entries()) ends[i] = length += json!.bytes.length;
  const bytes = new Uint8Array(length);
  for (const [i, { json }] of rows.entries()) bytes.set(json!.bytes, ends[i]! - json!.bytes.length);
  return { bytes, ends, isElement };
}
