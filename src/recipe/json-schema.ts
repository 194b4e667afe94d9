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
