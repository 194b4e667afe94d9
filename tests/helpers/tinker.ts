// What speaks Tinker's protocol to a server request by request, in any order and any number of times.

import { Message } from "../../src/base/protobuf.ts";
import type { Asking, KEYS } from "./server.ts";
import { eventually, jsonOf } from "./server.ts";

export type Values = {
  readonly dtype: "float32" | "int64";
  readonly values: readonly number[];
  readonly shape?: readonly number[];
};
export type Data = readonly { readonly tokens: readonly number[]; readonly inputs: Readonly<Record<string, Values>> }[];

export const ints = (values: readonly number[]): Values => ({ dtype: "int64", values });
export const floats = (values: readonly number[]): Values => ({ dtype: "float32", values });

function tensor({ dtype, values, shape = [values.length] }: Values): Message {
  const bytes = dtype === "float32" ? Float32Array.from(values) : BigInt64Array.from(values, BigInt);
  return new Message()
    .bytes(1, new Uint8Array(bytes.buffer))
    .int(3, dtype === "float32" ? 1 : 2)
    .ints(4, shape);
}

/** A ForwardBackwardRequest as the client writes it. */
export function forwardBackwardBytes(
  model: string,
  number: number,
  data: Data,
  loss = "cross_entropy",
  config: Readonly<Record<string, number>> = {},
  isForwardOnly = false,
): Uint8Array<ArrayBuffer> {
  const message = new Message().text(1, model).int(2, number);
  for (const { tokens, inputs } of data) {
    const chunk = new Message().message(1, new Message().bytes(1, new Uint8Array(Int32Array.from(tokens).buffer)));
    const datum = new Message().message(1, chunk);
    for (const [name, of] of Object.entries(inputs)) datum.message(2, new Message().text(1, name).message(2, tensor(of)));
    message.message(3, datum);
  }
  message.text(4, loss).int(6, Number(isForwardOnly));
  for (const [key, value] of Object.entries(config))
    message.message(7, new Message().text(1, key).message(2, new Message().double(1, value)));
  return Uint8Array.from(message.done());
}

/** A row of tokens as a datum of cross-entropy. */
export const weightedDatum = (ids: readonly number[], weights: readonly number[]): Data[number] => ({
  tokens: ids.slice(0, -1),
  inputs: { target_tokens: ints(ids.slice(1)), weights: floats(weights) },
});

type Key = keyof typeof KEYS;

export class TinkerCaller {
  /** `ask` may change: a server that was started again has another address. */
  constructor(
    public ask: Asking,
    private readonly key: Key = "one",
    /** How long a request is repeated, in ms. */
    private readonly patience = 60_000,
  ) {}

  /** A request, repeated until a server answers, as clients do. */
  async post(path: string, json: unknown): Promise<Response> {
    return this.send(path, { method: "POST", body: JSON.stringify(json) });
  }

  async send(path: string, init: RequestInit): Promise<Response> {
    let response: Response | null = null;
    await eventually(async () => {
      response = await this.ask(`/api/v1/${path}`, { key: this.key, ...init }).catch(() => null);
      return response !== null && response.status < 500;
    }, this.patience);
    return response!;
  }

  async session(): Promise<string> {
    return (await jsonOf(this.post("create_session", { tags: [], user_metadata: {}, sdk_version: "0" }))).session_id;
  }

  /** A model; resolves when it is there. */
  async model(session: string, seed: number, number = 0, { base = "local/tiny", rank = 4 } = {}): Promise<string> {
    const body = { session_id: session, model_seq_id: number, base_model: base, lora_config: { rank, seed } };
    const made = await jsonOf(this.post("create_model", body));
    return (await jsonOf(this.result(made.request_id))).model_id;
  }

  async forwardBackward(...of: Parameters<typeof forwardBackwardBytes>): Promise<string> {
    return (await jsonOf(this.sendBytes(forwardBackwardBytes(...of)))).request_id;
  }

  sendBytes(body: Uint8Array<ArrayBuffer>): Promise<Response> {
    return this.send("forward_backward", { method: "POST", body, headers: { "content-type": "application/x-protobuf" } });
  }

  async step(model: string, number: number, learningRate: number): Promise<string> {
    const adam_params = { learning_rate: learningRate };
    return (await jsonOf(this.post("optim_step", { model_id: model, seq_id: number, adam_params }))).request_id;
  }

  /** The answer of a future, polled until it is there. */
  async result(id: string): Promise<Response> {
    let response: Response | null = null;
    await eventually(async () => {
      response = await this.post("retrieve_future", { request_id: id, allow_metadata_only: false });
      return response.status !== 408;
    }, this.patience);
    return response!;
  }

  /** The bytes of a future's answer. */
  async bytes(id: string): Promise<string> {
    const response = await this.result(id);
    return `${response.headers.get("content-type")} ${Buffer.from(await response.arrayBuffer()).toString("base64")}`;
  }
}
