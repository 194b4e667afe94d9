// Results that clients wait for: each stands with its request, so that a poll that was lost can be made again.

import { badRequest, failureText, unavailable } from "../errors.ts";
import { PROTOBUF } from "./messages.ts";
import type { RequestRow, TinkerStore } from "./store.ts";

/** How long a poll is held, in ms: clients give up after 45 s. */
const HOLD_MS = 25_000;

export type Result = { readonly type: string; readonly bytes: Uint8Array };
export const JSON_TYPE = "application/json";

export const jsonResult = (value: object): Result => {
  return { type: JSON_TYPE, bytes: new TextEncoder().encode(JSON.stringify(value)) };
};
export const protobufResult = (bytes: Uint8Array): Result => ({ type: PROTOBUF, bytes });
/** `category`: whose mistake it is. */
export const failed = (error: string, category: "user" | "server"): Result => jsonResult({ error, category });

export class Futures {
  readonly #waiting = new Map<string, Set<() => void>>();
  #isClosing = false;

  constructor(private readonly store: TinkerStore) {}

  /** Puts down a request's result, and tells those that wait; `more` is written together with it. */
  finish(row: RequestRow, { type, bytes }: Result, keepsBody: boolean, more: () => void = () => undefined): void {
    this.store.db.together(() => {
      more();
      this.store.finish(row.id, type, bytes, keepsBody);
    });
    this.#tell(row.id);
  }

  #tell(id: string): void {
    for (const wake of this.#waiting.get(id) ?? []) wake();
    this.#waiting.delete(id);
  }

  /** The result of a request, waited for a while; 408 where it is not there yet. Throws ApiErrors. */
  async retrieve(tenant: string, id: string, signal: AbortSignal): Promise<Response> {
    let row = this.store.requestOf(tenant, id);
    if (row.done_at === null && !this.#isClosing) {
      await this.#wait(id, signal);
      row = this.store.requestOf(tenant, id);
    }
    if (row.done_at === null) {
      if (this.#isClosing) throw unavailable("The server is stopping.");
      return Response.json({ type: "try_again", request_id: id, queue_state: "active" }, { status: 408 });
    }
    if (row.result === null) throw badRequest(`The result of '${id}' is no longer kept.`, "request_id");
    return new Response(row.result.slice(), { headers: { "content-type": row.type! } });
  }

  #wait(id: string, signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const waiting = this.#waiting.get(id) ?? new Set();
    this.#waiting.set(id, waiting);
    const timer = setTimeout(resolve, HOLD_MS);
    waiting.add(resolve);
    signal.addEventListener("abort", () => resolve(), { once: true });
    return promise.finally(() => {
      clearTimeout(timer);
      waiting.delete(resolve);
      if (waiting.size === 0 && this.#waiting.get(id) === waiting) this.#waiting.delete(id);
    });
  }

  /** Polls end now. */
  close(): void {
    this.#isClosing = true;
    for (const id of [...this.#waiting.keys()]) this.#tell(id);
  }
}

/** What a client reads of a fault that is its own, without names of the engine. */
export const textFor = (error: unknown): string =>
  failureText(error).replaceAll(/adapter '(?:train|model|scores)-[a-z0-9]+'/g, "the model");
