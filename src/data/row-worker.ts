// A thread that reads rows for the reader: parses, templates and tokenises them. Started by reading.ts.

import { type MessagePort, workerData } from "node:worker_threads";
import { parseOwnJson } from "./json.ts";
import { type Parsed, parseRow } from "./jsonl.ts";
import { PLACE } from "./place.ts";
import { chunkReader } from "./row-chunks.ts";
import type { FromRowWorker, RowTexts, ToRowWorker } from "./row-pool.ts";
import { tokenizerOf } from "./row-reader.ts";
import { buffersOf, pack } from "./rows.ts";
import { failureOf } from "./thread-failure.ts";
import { loadTokenizer } from "./tokenizer.ts";

export type RowWorkerData = {
  readonly port: MessagePort;
  readonly bell: Int32Array;
  readonly model: string;
  readonly names: readonly string[];
  /** Of this thread alone. */
  readonly place: Float64Array;
};

const decoder = new TextDecoder("utf-8", { fatal: true });

function work({ port, bell, model, names, place }: RowWorkerData): void {
  const tokenizer = loadTokenizer(model);
  let read: ReturnType<typeof chunkReader> | null = null;
  const answer = (message: FromRowWorker, buffers: readonly ArrayBuffer[] = []): void => {
    port.postMessage(message, [...buffers]);
    Atomics.add(bell, 0, 1);
    Atomics.notify(bell, 0);
  };
  port.on("message", (message: ToRowWorker) => {
    if (message.type === "reading") {
      const { reading } = message;
      place[PLACE.file] = names.indexOf(reading.file.name);
      read = chunkReader(reading, tokenizerOf(reading.recipe, tokenizer), (source) => {
        place[PLACE.line] = source?.line ?? 0;
        place[PLACE.rows]! += Number(source !== null);
      });
      return;
    }
    const { number, lines, texts } = message;
    try {
      const rows = [...lines].map((line, i) => ({ line, bytes: 0, read: () => parsed(texts, i) }));
      const { samples, ...chunk } = read!(rows);
      const packed = pack(samples);
      answer({ type: "rows", number, chunk: { ...chunk, samples: packed } }, buffersOf([packed]));
    } catch (error) {
      answer({ type: "refused", number, failure: failureOf(error) });
    }
  });
  answer({ type: "ready" });
}

function parsed(texts: RowTexts, i: number): Parsed | null {
  if ("parsed" in texts) return parseOwnJson(texts.parsed[i]!) as Parsed;
  const { bytes, ends, isElement } = texts;
  return parseRow(decoder, { bytes: bytes.subarray(ends[i - 1] ?? 0, ends[i]!), isElement });
}

work(workerData);
