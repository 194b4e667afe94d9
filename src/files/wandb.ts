// W&B's transaction log, run-ID.wandb, as `wandb sync` reads it: records of LevelDB's log format with a header of its own, each
// a protocol buffer of the message Record (wandb_internal.proto). One run a file, which may be continued after a kill.

import { closeSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { writeError } from "../base/faults.ts";
import { bytesIn, fieldsOf, Message, textIn } from "../base/protobuf.ts";

/** ":W&B", a magic number, the version of the format. */
const HEADER = Uint8Array.of(0x3a, 0x57, 0x26, 0x42, 0xe1, 0xbe, 0);
/** Of a block, and of what stands before each fragment of a record: checksum, length, kind. */
const [BLOCK, HEAD] = [32_768, 7];
const [FULL, FIRST, MIDDLE, LAST] = [1, 2, 3, 4];

/** Bytes of a record that begins at `at` of a file, whose first is the file's own header. */
function framed(at: number, payload: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = at === 0 ? [HEADER] : [];
  let position = at === 0 ? HEADER.length : at;
  const put = (bytes: Uint8Array): void => {
    parts.push(bytes);
    position += bytes.length;
  };
  for (let from = 0, begun = false; !begun || from < payload.length; begun = true) {
    const left = BLOCK - (position % BLOCK);
    if (left < HEAD) put(new Uint8Array(left));
    const data = payload.subarray(from, from + BLOCK - (position % BLOCK) - HEAD);
    from += data.length;
    const isLast = from === payload.length;
    const kind = begun ? (isLast ? LAST : MIDDLE) : isLast ? FULL : FIRST;
    const head = new DataView(new ArrayBuffer(HEAD));
    head.setUint32(0, checksum(kind, data), true);
    head.setUint16(4, data.length, true);
    head.setUint8(6, kind);
    put(new Uint8Array(head.buffer));
    put(data);
  }
  return Buffer.concat(parts);
}

const checksum = (kind: number, data: Uint8Array): number => Bun.hash.crc32(Buffer.concat([Uint8Array.of(kind), data])) >>> 0;

/** A record and where its bytes end in the file. */
type Read = { readonly payload: Uint8Array; readonly end: number };

/** The records of a file, up to its end or to what a kill has cut off. */
export function* recordsOf(bytes: Uint8Array): Generator<Read> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (HEADER.some((byte, i) => bytes[i] !== byte)) return;
  let parts: Uint8Array[] = [];
  for (let at = HEADER.length; ; ) {
    const left = BLOCK - (at % BLOCK);
    if (left < HEAD) at += left;
    if (at + HEAD > bytes.length) return;
    const [length, kind] = [view.getUint16(at + 4, true), bytes[at + 6]!];
    const data = bytes.subarray(at + HEAD, at + HEAD + length);
    const fits = kind === FULL || kind === FIRST ? parts.length === 0 : parts.length > 0;
    if (!fits || kind < FULL || kind > LAST || data.length < length || view.getUint32(at, true) !== checksum(kind, data))
      return;
    at += HEAD + length;
    parts.push(data);
    if (kind !== FULL && kind !== LAST) continue;
    yield { payload: Buffer.concat(parts), end: at };
    parts = [];
  }
}

/** Numbers by their names, of one moment. */
export type Row = Readonly<Record<string, number>>;

/** JSON with the names that Python's json and W&B give to what is not finite. */
const json = (value: unknown): string => {
  if (typeof value !== "number" || Number.isFinite(value)) return JSON.stringify(value) ?? "null";
  return Number.isNaN(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
};

const items = (message: Message, field: number, values: Readonly<Record<string, unknown>>, key: number): Message => {
  for (const [name, value] of Object.entries(values))
    message.message(field, new Message().text(key, name).text(16, json(value)));
  return message;
};

/** Numbers of Record's fields. */
const [HISTORY, SUMMARY, METRIC, RUN, EXIT, FILE_HEADER] = [2, 3, 12, 17, 18, 21];

export type RunFacts = {
  readonly id: string;
  readonly entity: string;
  readonly project: string;
  readonly group: string;
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  /** Seconds since 1970. */
  readonly began: number;
  readonly host: string;
  readonly version: string;
};

/** The metric over which W&B draws all others, as transformers defines it. */
export const STEP = "train/global_step";

/** A file's bytes as they come; `position` is where the next one goes, `rows` of history are before it. */
export class WandbLog {
  #number: number;

  /** Of a new file, or of one that has this already. */
  constructor(
    private position = 0,
    private rows = 0,
    records = 0,
  ) {
    this.#number = records;
  }

  #record(field: number, value: Message): Uint8Array {
    const bytes = framed(
      this.position,
      new Message()
        .int(1, ++this.#number)
        .message(field, value)
        .done(),
    );
    this.position += bytes.length;
    return bytes;
  }

  /** What a file begins with. */
  begin({ id, entity, project, group, name, config, began, host, version }: RunFacts): Uint8Array {
    const time = new Message().int(1, Math.floor(began)).int(2, Math.floor((began % 1) * 1e9));
    const run = new Message()
      .text(1, id)
      .text(2, entity)
      .text(3, project)
      .message(4, items(new Message(), 1, config, 1));
    run.text(6, group).text(8, name).text(13, host).message(17, time);
    const defined = (metric: Message, ...options: number[]) =>
      metric.message(
        6,
        options.reduce((of, option) => of.int(option, 1), new Message()),
      );
    return Buffer.concat([
      this.#record(FILE_HEADER, new Message().message(1, new Message().text(1, `mlora ${version}`))),
      this.#record(RUN, run),
      this.#record(METRIC, defined(new Message().text(1, STEP), 3)),
      this.#record(METRIC, defined(new Message().text(2, "*").text(4, STEP), 1, 3)),
    ]);
  }

  history(row: Row): Uint8Array {
    const step = this.rows++;
    const record = items(new Message(), 1, { ...row, _step: step }, 2);
    return this.#record(HISTORY, record.message(2, new Message().int(1, step)));
  }

  /** The last of each number, which W&B shows in its tables. */
  summary(row: Row): Uint8Array {
    return this.#record(SUMMARY, items(new Message(), 1, row, 2));
  }

  /** The run has ended; `seconds` it took. */
  end(isFailed: boolean, seconds: number): Uint8Array {
    return this.#record(EXIT, new Message().int(1, isFailed ? 1 : 0).int(2, Math.floor(seconds)));
  }
}

/** A row of history with its numbers; null for other records. */
export function historyIn(payload: Uint8Array): Row | null {
  for (const field of fieldsOf(payload)) {
    if (field.number !== HISTORY) continue;
    const found: Record<string, number> = {};
    for (const item of fieldsOf(bytesIn(field))) {
      if (item.number !== 1) continue;
      const texts = new Map([...fieldsOf(bytesIn(item))].map((of) => [of.number, textIn(of)]));
      found[texts.get(2) ?? texts.get(1) ?? ""] = Number(texts.get(16));
    }
    return found;
  }
  return null;
}

/** The name of the record's field that says what it is. */
const kindOf = (payload: Uint8Array): number => [...fieldsOf(payload)].find(({ number }) => number !== 1)?.number ?? 0;

/**
 * Takes a file back to where its run is continued: up to the first row of history that `isKept` refuses, to its end of the run,
 * or to what a kill has cut off. Null where there is no file that can be continued. Throws a RunError.
 */
export function continueLog(path: string, isKept: (row: Row) => boolean): WandbLog | null {
  let fd: number | null = null;
  try {
    const bytes = readFileSync(path);
    let [position, rows, records, hasRun] = [0, 0, 0, false];
    for (const { payload, end } of recordsOf(bytes)) {
      const [kind, row] = [kindOf(payload), historyIn(payload)];
      if (kind === EXIT || (row && !isKept(row))) break;
      if (kind === RUN) hasRun = true;
      if (row) rows++;
      records++;
      position = end;
    }
    if (!hasRun) return null;
    fd = openSync(path, "r+");
    ftruncateSync(fd, position);
    return new WandbLog(position, rows, records);
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return null;
    throw writeError(path, error);
  } finally {
    if (fd !== null) closeSync(fd);
  }
}
