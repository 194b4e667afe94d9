// A request and its answer as they travel: numbered, and with errors that arrive as what they were, of the same class, with
// code and hint, and with the name of the stage that had them.

import * as v from "valibot";
import { MloraError, RequestError, RunError } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import { decode, encode } from "./codec.ts";
import { issuesOf } from "./packets.ts";

const ask = v.strictObject({ id: count, request: v.looseObject({ type: v.string() }) });
const failure = v.strictObject({
  class: v.picklist(["request", "run", "bug"]),
  code: v.string(),
  message: v.string(),
  hint: v.optional(v.string()),
});
const answer = v.union([v.strictObject({ id: count, value: v.unknown() }), v.strictObject({ id: count, failure })]);

export type Ask = v.InferOutput<typeof ask>;
export type Answer = v.InferOutput<typeof answer>;
type Failure = v.InferOutput<typeof failure>;

export const writeAsk = (id: number, request: unknown): Uint8Array => encode({ id, request });
export const writeAnswer = (id: number, value: unknown): Uint8Array => encode({ id, value });
export const writeFailure = (id: number, error: unknown): Uint8Array => encode({ id, failure: failureOf(error) });

/** Throws an Error that says what is wrong with the message. */
export const readAsk = (message: Uint8Array): Ask => parse(ask, message);
export const readAnswer = (message: Uint8Array): Answer => parse(answer, message);

function parse<T>(schema: v.GenericSchema<unknown, T>, message: Uint8Array): T {
  const result = v.safeParse(schema, decode(message));
  if (!result.success) throw new Error(issuesOf(result.issues));
  return result.output;
}

function failureOf(error: unknown): Failure {
  if (error instanceof MloraError) {
    const { code, message, hint } = error;
    return { class: error instanceof RequestError ? "request" : "run", code, message, ...(hint === undefined ? {} : { hint }) };
  }
  return { class: "bug", code: "bug", message: error instanceof Error ? (error.stack ?? error.message) : String(error) };
}

/** The error that another process had; `who` is "stage 2 (host, process 71)", or null. A bug there is a bug here, too. */
export function errorFrom({ class: kind, code, message, hint }: Failure, who: string | null): Error {
  const text = who === null ? message : `${who}: ${message}`;
  if (kind === "bug") return new Error(text);
  return kind === "request" ? new RequestError(code, text, hint) : new RunError(code, text, hint);
}
