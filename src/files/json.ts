// JSON files, read with errors that name the file.

import { readFileSync, statSync } from "node:fs";
import * as v from "valibot";
import { RequestError, textOf } from "../base/errors.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

/** A number that was measured, and may have been none: JSON has null for that. */
export const measured = v.pipe(
  v.nullable(v.number()),
  v.transform((found) => found ?? Number.NaN),
);

/** The object that a JSON file holds. A RequestError with `code` where it is missing, too large, or no JSON object. */
export function readJsonObject(path: string, code: string, mostBytes = 256 << 20): JsonObject {
  let value: unknown;
  try {
    const { size } = statSync(path);
    if (size > mostBytes) throw new Error(`it has ${size} bytes, at most ${mostBytes} are read`);
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path)));
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    throw new RequestError(
      code,
      missing ? `${path}: no such file` : `${path}: cannot be read as JSON: ${textOf(error)}`,
      undefined,
      {
        cause: error,
      },
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new RequestError(code, `${path}: expected a JSON object, found ${Array.isArray(value) ? "a list" : `${value}`}`);
  return value as JsonObject;
}
