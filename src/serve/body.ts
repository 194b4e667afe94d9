// Bodies of requests: bounded in bytes and in time, whoever sends them.

import * as v from "valibot";
import { sleep } from "../base/clock.ts";
import { formatBytes } from "../base/units.ts";
import { ApiError, badRequest } from "./errors.ts";

export type BodyLimits = { readonly bytes: number; readonly seconds: number };

const tooLarge = (bytes: number): ApiError =>
  new ApiError(413, `The body of the request is larger than ${formatBytes(bytes)}.`, {
    code: "request_too_large",
    headers: { connection: "close" },
  });

/** The pieces of a body as they come. Throws ApiErrors: 413 for one that is too large, 408 for one that is too slow. */
export async function* piecesOf(request: Request, { bytes, seconds }: BodyLimits): AsyncGenerator<Uint8Array> {
  const encoding = request.headers.get("content-encoding") ?? "identity";
  if (encoding !== "identity")
    throw new ApiError(415, `The content encoding '${encoding}' is not taken: send the body as it is.`);
  if (Number(request.headers.get("content-length") ?? 0) > bytes) throw tooLarge(bytes);
  const reader = request.body?.getReader();
  if (!reader) return;
  const end = Promise.withResolvers<never>();
  end.promise.catch(() => undefined);
  const timer = setTimeout(
    () =>
      end.reject(
        new ApiError(408, `The body of the request took longer than ${seconds} s.`, { headers: { connection: "close" } }),
      ),
    1000 * seconds,
  );
  let taken = 0;
  try {
    for (;;) {
      const { value, done } = await Promise.race([reader.read(), end.promise]);
      if (done) return;
      taken += value.length;
      if (taken > bytes) throw tooLarge(bytes);
      yield value;
    }
  } finally {
    clearTimeout(timer);
    await Promise.race([reader.cancel().catch(() => undefined), sleep(100)]);
  }
}

/** The JSON object in a body, as the schema has it; keys that it does not name are left out. Throws ApiErrors. */
export async function jsonOf<S extends v.GenericSchema>(
  request: Request,
  schema: S,
  limits: BodyLimits,
): Promise<v.InferOutput<S>> {
  const pieces: Uint8Array[] = [];
  for await (const piece of piecesOf(request, limits)) pieces.push(piece);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(pieces)));
  } catch {
    throw badRequest("We could not parse the JSON body of your request: expected a JSON object in UTF-8.");
  }
  return checked(schema, value);
}

/** Throws an ApiError that names the first key that is wrong. */
export function checked<S extends v.GenericSchema>(schema: S, value: unknown): v.InferOutput<S> {
  const parsed = v.safeParse(schema, value, { abortEarly: true });
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  const param = v.getDotPath(issue) ?? null;
  throw badRequest(param === null ? issue.message : `'${param}' ${issue.message}.`, param);
}
