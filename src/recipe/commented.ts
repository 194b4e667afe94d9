// A recipe for people to begin with: keys with their values, and next to each what the schema says that it means.

import { recipeSchema } from "./json-schema.ts";
import type { AdapterKey, RecipeTable } from "./schema.ts";

type Keys<T> = Readonly<Partial<Record<keyof T, unknown>>>;

export type FirstTables = {
  readonly model: Keys<RecipeTable["model"]>;
  readonly run: Keys<RecipeTable["run"]>;
  readonly adapter: Readonly<Partial<Record<AdapterKey | "name", unknown>>>;
  /** Keys that are left out of the adapter, as comments, with a value that each might have. */
  readonly further: Readonly<Partial<Record<AdapterKey, unknown>>>;
  /** What is known of the rows, a line each. */
  readonly notes: readonly string[];
};

const COLUMN = 36;
const WIDTH = 128;

/** A value as TOML, in one line. */
export function toml(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value).replaceAll("\x7f", "\\u007f");
  if (Array.isArray(value)) return `[${value.map(toml).join(", ")}]`;
  if (typeof value !== "object" || value === null) return `${value}`;
  const entries = Object.entries(value).map(([key, of]) => `${/^[\w-]+$/.test(key) ? key : toml(key)} = ${toml(of)}`);
  return `{ ${entries.join(", ")} }`;
}

/** A key with its meaning: next to it where there is room, else above it. */
const lines = (key: string, value: unknown, meaning: string, mark = ""): string[] => {
  const written = `${mark}${key} = ${toml(value)}`;
  const beside = `${written.padEnd(COLUMN)} # ${meaning}`;
  return beside.length <= WIDTH ? [beside] : [`# ${meaning}`, written];
};

/** The file. */
export function commentedRecipe({ model, run, adapter, further, notes }: FirstTables): string {
  const tables = recipeSchema().properties!;
  const meanings = (table: "model" | "run" | "adapter") => {
    const of = tables[table]!;
    return ((table === "adapter" ? of.items : of) as typeof of).properties!;
  };
  const linesOf = (table: "model" | "run" | "adapter", keys: object, mark = "") =>
    Object.entries(keys).flatMap(([key, value]) => lines(key, value, meanings(table)[key]!.description!, mark));
  return `${[
    "#:schema ./recipe.schema.json",
    "# Written by mlora init. `mlora plan` says what a run would do, `mlora data` shows the rows as they are trained, `mlora run`",
    "# trains. Paths are relative to this file; `mlora man recipe` lists all keys.",
    "",
    "[model]",
    ...linesOf("model", model),
    "",
    "[run]",
    ...linesOf("run", run),
    "",
    ...notes.map((note) => `# ${note}`),
    "[[adapter]]",
    ...linesOf("adapter", adapter),
    ...linesOf("adapter", further, "# "),
  ].join("\n")}\n`;
}
