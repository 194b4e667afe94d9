// Bodies of requests: bounded in bytes and in time, whoever sends them.

import * as v from "valibot";
import { show } from "../base/check.ts";
import { now } from "../base/clock.ts";
import { formatBytes } from "../base/units.ts";
import { exactJson } from "../session/generation/text-model.ts";
import { ApiError, badRequest } from "./errors.ts";

/** How long what is too large is read on, and how long a client may be silent meanwhile, in ms. */
const [LINGER_MS, SILENCE_MS] = [15_000, 1000];

export type BodyLimits = { readonly bytes: number; readonly seconds: number };

const tooLarge = (bytes: number): ApiError =>
  new ApiError(413, `The body of the request is larger than ${formatBytes(bytes)}.`, {
    code: "request_too_large",
    headers: { connection: "close" },
  });

const tooSlow = (seconds: number): ApiError =>
  new ApiError(408, `The body of the request took longer than ${seconds} s.`, { headers: { connection: "close" } });

/** The pieces of a body as they come. Throws ApiErrors: 413 for one that is too large, 408 for one that is too slow. */
export async function* piecesOf(request: Request, { bytes, seconds }: BodyLimits): AsyncGenerator<Uint8Array> {
  const encoding = request.headers.get("content-encoding") ?? "identity";
  if (encoding !== "identity")
    throw new ApiError(415, `The content encoding '${encoding}' is not taken: send the body as it is.`);
  if (Number(request.headers.get("content-length") ?? 0) > bytes) throw tooLarge(bytes);
  const reader = request.body?.getReader();
  if (!reader) return;
  let [taken, isOver, isLate] = [0, false, false];
  // No race of promises: what a race has seen stays as long as its slowest promise, and here that would be the whole body.
  const timer = setTimeout(() => {
    isLate = true;
    void cancel(reader); // the read under way ends
  }, 1000 * seconds);
  try {
    for (;;) {
      const { value, done } = await reader.read();
      isOver = done || isLate;
      if (isLate) throw tooSlow(seconds);
      if (done) return;
      taken += value.length;
      if (taken > bytes) throw tooLarge(bytes);
      yield value;
    }
  } finally {
    clearTimeout(timer);
    if (!isOver) await linger(reader); // a fault was found before its end
  }
}

type Reader = { readonly read: () => Promise<{ readonly done: boolean }>; readonly cancel: () => Promise<void> };

const cancel = (reader: Reader): Promise<void> => reader.cancel().catch(() => undefined);

/** Reads the body of a request that is answered without it. */
export async function passOver({ body, bodyUsed }: Request): Promise<void> {
  if (body && !bodyUsed && !body.locked) await linger(body.getReader());
}

/**
 * Reads what a client still sends, for a while: clients that send all before they read the answer would see a broken
 * connection, and not what is wrong.
 */
async function linger(reader: Reader): Promise<void> {
  const end = now() + LINGER_MS;
  let heard = now();
  const timer = setInterval(() => {
    if (now() > end || now() - heard > SILENCE_MS) void cancel(reader);
  }, SILENCE_MS / 4);
  try {
    while (!(await reader.read()).done) heard = now();
  } catch {
    // the connection is gone
  } finally {
    clearInterval(timer);
  }
}

/** A whole body. Throws ApiErrors. */
export async function bytesOf(request: Request, limits: BodyLimits): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for await (const piece of piecesOf(request, limits)) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** The JSON object in a body, as the schema has it; keys that it does not name are left out. Throws ApiErrors. */
export async function jsonOf<S extends v.GenericSchema>(
  request: Request,
  schema: S,
  limits: BodyLimits,
): Promise<v.InferOutput<S>> {
  return checked(schema, jsonIn(await bytesOf(request, limits)));
}

/** The same, and all of it with the numbers and the order of keys that Python reads: what goes into a template. */
export async function exactOf<S extends v.GenericSchema>(request: Request, schema: S, limits: BodyLimits): Promise<Exact<S>> {
  const bytes = await bytesOf(request, limits);
  const body = checked(schema, jsonIn(bytes));
  return { body, exact: read(bytes, exactJson) as Exact<S>["exact"] };
}
export type Exact<S extends v.GenericSchema> = {
  readonly body: v.InferOutput<S>;
  readonly exact: Readonly<Record<string, unknown>>;
};

/** Throws an ApiError. */
export const jsonIn = (bytes: Uint8Array): unknown => read(bytes, JSON.parse);

function read(bytes: Uint8Array, parse: (text: string) => unknown): unknown {
  try {
    return parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw badRequest("We could not parse the JSON body of your request: expected a JSON object in UTF-8.");
  }
}

/** In OpenAI's words and codes where a key is missing, unknown or of another type; else in those of the schema. */
function faultOf(issue: v.BaseIssue<unknown>): ApiError {
  const param = v.getDotPath(issue) ?? null;
  if (param === null) return badRequest(issue.message);
  const isOfKey = issue.path?.at(-1)?.origin === "key";
  if (isOfKey && issue.input === undefined)
    return badRequest(`Missing required parameter: '${param}'.`, param, "missing_required_parameter");
  if (isOfKey && issue.expected === "never") return badRequest(`Unknown parameter: '${param}'.`, param, "unknown_parameter");
  if (issue.kind !== "schema" || !issue.message.startsWith("Invalid type"))
    return badRequest(`'${param}' ${issue.message}.`, param);
  const expected = issue.expected?.replace(/\b(Array|Object)\b/g, (type) => type.toLowerCase());
  const what = `expected ${expected}, but got ${show(issue.input)} instead`;
  return badRequest(`Invalid type for '${param}': ${what}.`, param, "invalid_type");
}

/** Throws an ApiError that names the first key that is wrong. */
export function checked<S extends v.GenericSchema>(schema: S, value: unknown): v.InferOutput<S> {
  const parsed = v.safeParse(schema, value, { abortEarly: true });
  if (parsed.success) return parsed.output;
  throw faultOf(parsed.issues[0]);
}
