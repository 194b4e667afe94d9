// The recipe's schema for programs: editors that complete and check TOML read JSON schema. All of it follows from schema.ts.

import { toJsonSchema } from "@valibot/to-json-schema";
import { RecipeTable } from "./schema.ts";

/** A JSON schema, draft-07, as far as it is looked into here. */
export type JsonSchema = {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly JsonSchema[];
  readonly items?: JsonSchema | readonly JsonSchema[];
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly required?: readonly string[];
  readonly [key: string]: unknown;
};

/** Rules between keys (agree.ts), and patterns that match nothing, are checked by the program alone. */
export function recipeSchema(): JsonSchema {
  const schema = toJsonSchema(RecipeTable, { errorMode: "ignore", typeMode: "input" }) as unknown as JsonSchema;
  return { ...schema, title: "A recipe of mlora" };
}

/** The same with all forms that a recipe may have: a text in place of the table `model`. */
export function editorSchema(): JsonSchema {
  const schema = recipeSchema();
  const text = { type: "string", description: 'a name on the hub, as "org/name", or a path' };
  return { ...schema, properties: { ...schema.properties, model: { anyOf: [text, schema.properties!["model"]!] } } };
}

export const code = (value: unknown): string => `\`${JSON.stringify(value)}\``;

/** What a value may be, in a few words, as Markdown. */
export function valuesOf({ type, const: only, enum: names, anyOf, items, properties, ...of }: JsonSchema): string {
  if (only !== undefined) return code(only);
  if (names) return names.map(code).join(", ");
  if (of["oneOf"]) return "{ name, ... }";
  if (anyOf) return [...new Set(anyOf.map(valuesOf))].join(" or ");
  if (type === "array") return Array.isArray(items) ? "a list of two numbers" : `a list of ${pluralOf(items as JsonSchema)}`;
  if (type === "object") return properties ? `{ ${Object.keys(properties).join(", ")} }` : "a table";
  if (type === "boolean") return "true, false";
  if (type === "string") return of["pattern"] ? `a string as ${code(of["pattern"]).replaceAll('"', "")}` : "a string";
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum } = of as Readonly<Record<string, number>>;
  const isOpen = maximum === undefined || maximum >= 1e9;
  const from = minimum !== undefined ? (isOpen ? `${minimum} or more` : `from ${minimum}`) : `above ${exclusiveMinimum}`;
  const most = exclusiveMaximum !== undefined ? `to below ${exclusiveMaximum}` : isOpen ? "" : `to ${maximum}`;
  return [type === "integer" ? "a whole number" : "a number", exclusiveMaximum !== undefined ? `from ${minimum}` : from, most]
    .filter((word) => word !== "")
    .join(" ");
}

const PLURALS: Readonly<Record<string, string>> = { integer: "whole numbers", number: "numbers", string: "strings" };

const pluralOf = ({ type, enum: names }: JsonSchema): string =>
  names ? `some of ${names.map(code).join(", ")}` : (PLURALS[`${type}`] ?? "values");
