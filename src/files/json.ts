// JSON files, read with errors that name the file.

import * as v from "valibot";
import { RequestError } from "../base/errors.ts";
import { jsonProblem, parseJsonFile } from "../base/json-file.ts";
import { parsePython } from "../base/python-json.ts";

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
    value = parseJsonFile(path, mostBytes);
  } catch (error) {
    const { what, hint } = jsonProblem(error);
    throw new RequestError(code, `${path}: ${what}`, hint, { cause: error });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new RequestError(code, `${path}: expected a JSON object, found ${Array.isArray(value) ? "a list" : `${value}`}`);
  return value as JsonObject;
}

type Spelling = { readonly rawJSON: string };
const { rawJSON } = JSON as unknown as { readonly rawJSON: (text: string) => Spelling };

/**
 * The JSON text of `value`, whose numbers are spelled as in the text `like` where that has them: Python tells 30.0 from 30, and
 * transformers refuses a config with the other.
 */
export function jsonLike(value: unknown, like: string): string {
  const spelled = (_key: string, found: unknown, { source }: { source?: string } = {}) =>
    typeof found === "number" && source !== undefined ? rawJSON(source) : found;
  return `${JSON.stringify(spelledAs(value, parsePython(like, spelled)), null, 2)}\n`;
}

function spelledAs(value: unknown, like: unknown): unknown {
  if (typeof like !== "object" || like === null) return value;
  if (typeof value === "number") return Number((like as Partial<Spelling>).rawJSON) === value ? like : value;
  if (Array.isArray(value)) return value.map((item, i) => spelledAs(item, (like as readonly unknown[])[i]));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, own]) => [key, spelledAs(own, (like as JsonObject)[key])]));
}
