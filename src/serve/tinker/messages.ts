// Tinker's messages in protocol buffers (package tinker_public): requests for gradients, and the results of these and of
// samples.

import {
  bytesIn,
  bytesOf,
  doubleIn,
  type Field,
  fieldsOf,
  float32s,
  int32s,
  int64s,
  intIn,
  intsIn,
  Message,
  textIn,
  WireFault,
} from "../../base/protobuf.ts";

export const PROTOBUF = "application/x-protobuf";

/** Values in the order of the rows; of a sparse tensor those of its cells. */
export type Tensor = {
  readonly dtype: "float32" | "int64";
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
  readonly sparse: { readonly rows: readonly number[]; readonly columns: readonly number[] } | null;
};
export type Datum = { readonly tokens: Int32Array; readonly inputs: ReadonlyMap<string, Tensor> };
export type ForwardBackward = {
  readonly data: readonly Datum[];
  readonly loss: string;
  readonly config: ReadonlyMap<string, number | string>;
  readonly isForwardOnly: boolean;
};
/** The request that a message is: the n-th of a model. */
export type Address = { readonly model: string; readonly number: number };

/** Throws WireFaults. */
export function addressOf(message: Uint8Array): Address {
  let [model, number] = ["", 0];
  for (const field of fieldsOf(message))
    if (field.number === 1) model = textIn(field);
    else if (field.number === 2) number = intIn(field);
  return { model, number };
}

/** Throws WireFaults that say which part is broken. */
export function readForwardBackward(message: Uint8Array): ForwardBackward {
  const data: Datum[] = [];
  const [old, config] = [new Map<string, number | string>(), new Map<string, number | string>()];
  let [loss, isForwardOnly] = ["", false];
  for (const field of fieldsOf(message)) {
    if (field.number === 3) data.push(within(`datum ${data.length}`, () => readDatum(bytesIn(field))));
    else if (field.number === 4) loss = textIn(field);
    else if (field.number === 5) putEntry(old, field, doubleIn);
    else if (field.number === 6) isForwardOnly = intIn(field) !== 0;
    else if (field.number === 7) putEntry(config, field, readSetting);
  }
  return { data, loss, config: config.size > 0 ? config : old, isForwardOnly };
}

function within<T>(what: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof WireFault ? new WireFault(`${what} ${error.message}`) : error;
  }
}

/** An entry of a map. */
function putEntry<T>(map: Map<string, T>, entry: Field, read: (value: Field) => T): void {
  let key = "";
  let value: T | undefined;
  for (const field of fieldsOf(bytesIn(entry)))
    if (field.number === 1) key = textIn(field);
    else if (field.number === 2) value = read(field);
  if (value === undefined) throw new WireFault(`has an entry "${key}" without a value`);
  map.set(key, value);
}

function readSetting(value: Field): number | string {
  let found: number | string | undefined;
  for (const field of fieldsOf(bytesIn(value)))
    if (field.number === 1) found = doubleIn(field);
    else if (field.number === 2) found = textIn(field);
  if (found === undefined) throw new WireFault("has a setting that is neither a number nor a text");
  return found;
}

function readDatum(message: Uint8Array): Datum {
  const chunks: Int32Array[] = [];
  const inputs = new Map<string, Tensor>();
  for (const field of fieldsOf(message))
    if (field.number === 1) chunks.push(readChunk(bytesIn(field)));
    else if (field.number === 2) putEntry(inputs, field, readTensor);
  const tokens = new Int32Array(chunks.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const chunk of chunks) {
    tokens.set(chunk, at);
    at += chunk.length;
  }
  return { tokens, inputs };
}

function readChunk(message: Uint8Array): Int32Array {
  let tokens = new Int32Array();
  for (const field of fieldsOf(message)) {
    if (field.number === 2 || field.number === 3)
      throw new WireFault(`has ${field.number === 2 ? "an image" : "sound"}; only texts are served`);
    if (field.number !== 1) continue;
    for (const part of fieldsOf(bytesIn(field))) if (part.number === 1) tokens = new Int32Array(int32s(bytesIn(part)));
  }
  return tokens;
}

const DTYPES = new Map([
  [1, "float32"],
  [2, "int64"],
] as const);

function readTensor(entry: Field): Tensor {
  const shape: number[] = [];
  let [dtype, dense, sparse]: [number, Uint8Array | null, Uint8Array | null] = [0, null, null];
  for (const field of fieldsOf(bytesIn(entry)))
    if (field.number === 1) dense = bytesIn(field);
    else if (field.number === 2) sparse = bytesIn(field);
    else if (field.number === 3) dtype = intIn(field);
    else if (field.number === 4) shape.push(...intsIn(field));
  const type = DTYPES.get(dtype as 1 | 2);
  if (type === undefined) throw new WireFault(`has a tensor of the type ${dtype}, expected 1 (float32) or 2 (int64)`);
  const numbers = type === "float32" ? float32s : int64s;
  if (!sparse) {
    const values = numbers(dense ?? new Uint8Array());
    return { dtype: type, shape: shape.length > 0 ? shape : [values.length], values, sparse: null };
  }
  const parts = new Map<number, Uint8Array>();
  for (const field of fieldsOf(sparse)) parts.set(field.number, bytesIn(field));
  const part = (number: number) => parts.get(number) ?? new Uint8Array();
  return { dtype: type, shape, values: numbers(part(1)), sparse: { rows: int64s(part(2)), columns: int64s(part(3)) } };
}

/** Log-probabilities of a datum's targets, f32[N * K]; `width` is null of targets of one dimension. */
export type DatumLogProbs = { readonly logProbs: Float32Array; readonly width: number | null };

/** Names of metrics have one colon, and after it how clients combine those of parts of a request. */
export function forwardBackwardResult(data: readonly DatumLogProbs[], metrics: Readonly<Record<string, number>>): Uint8Array {
  const result = new Message().text(1, "ArrayRecord");
  for (let from = 0; from < data.length; ) {
    let to = from + 1;
    while (to < data.length && data[to]!.width === data[from]!.width) to++;
    result.message(2, arrayRecord(data.slice(from, to)));
    from = to;
  }
  for (const [name, value] of Object.entries(metrics)) result.message(3, new Message().text(1, name).double(2, value));
  return result.done();
}

/** Datums whose targets are of one width. */
function arrayRecord(data: readonly DatumLogProbs[]): Message {
  const offsets = new BigInt64Array(data.length + 1);
  for (const [i, { logProbs }] of data.entries()) offsets[i + 1] = offsets[i]! + BigInt(4 * logProbs.length);
  const values = Buffer.concat(data.map(({ logProbs }) => bytesOf(logProbs)));
  const tensor = new Message().bytes(1, values).bytes(2, bytesOf(offsets)).int(3, 1);
  const { width } = data[0]!;
  if (width !== null) tensor.ints(4, [width]);
  return new Message()
    .text(1, "ArrayRecord")
    .message(2, new Message().text(1, "logprobs").message(2, tensor))
    .int(3, data.length);
}

/** Rows of `width` tokens, of each position; a row of less is filled with token 0 at -99999. */
export type TopTokens = {
  readonly width: number;
  readonly rows: readonly (readonly (readonly [token: number, logProb: number])[])[];
};
export type SampleResult = {
  readonly sequences: readonly {
    readonly tokens: readonly number[];
    readonly logProbs: readonly number[];
    readonly end: "stop" | "length";
    readonly top: TopTokens | null;
  }[];
  /** f32 of each token of the prompt, NaN at the first. */
  readonly prompt: Float32Array | null;
  readonly promptTop: TopTokens | null;
  readonly targets: Tensor | null;
};

const NOTHING = -99_999;

function topMessage({ width, rows }: TopTokens): Message {
  const [ids, logProbs] = [new Int32Array(rows.length * width), new Float32Array(rows.length * width).fill(NOTHING)];
  for (const [i, row] of rows.entries())
    for (const [j, [id, value]] of row.entries()) {
      ids[i * width + j] = id;
      logProbs[i * width + j] = value;
    }
  return new Message().bytes(1, bytesOf(ids)).bytes(2, bytesOf(logProbs)).int(3, width).int(4, rows.length);
}

const int64Bytes = (values: readonly number[]): Uint8Array => bytesOf(BigInt64Array.from(values, BigInt));

function tensorMessage({ shape, values, sparse }: Tensor): Message {
  const floats = bytesOf(Float32Array.from(values));
  const message = new Message();
  if (sparse) {
    const { rows, columns } = sparse;
    message.message(2, new Message().bytes(1, floats).bytes(2, int64Bytes(rows)).bytes(3, int64Bytes(columns)));
  } else message.bytes(1, floats);
  return message.int(3, 1).ints(4, shape);
}

export function sampleResult({ sequences, prompt, promptTop, targets }: SampleResult): Uint8Array {
  const result = new Message();
  for (const { tokens, logProbs, end, top } of sequences) {
    const sequence = new Message().int(1, end === "stop" ? 0 : 1);
    sequence.bytes(2, bytesOf(Int32Array.from(tokens))).bytes(3, bytesOf(Float32Array.from(logProbs)));
    result.message(1, top ? sequence.message(4, topMessage(top)) : sequence);
  }
  if (prompt) result.bytes(2, bytesOf(prompt));
  if (promptTop) result.message(3, topMessage(promptTop));
  if (targets) result.message(5, tensorMessage(targets));
  return result.done();
}
