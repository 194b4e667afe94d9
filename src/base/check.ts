// Valibot schemas of what people write, each with a message that says what is expected and what was found.

import * as v from "valibot";

export const show = (value: unknown): string => {
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null && !(value instanceof Date)) return "a table";
  const text = typeof value === "string" ? `"${value}"` : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};
export const wants = (what: string) => (issue: { readonly input: unknown }) => `wants ${what}, found ${show(issue.input)}`;

export const text = v.pipe(v.string(wants("a text")), v.nonEmpty("wants a text, found an empty one"));
export const finite = (what: string) => v.pipe(v.number(wants(what)), v.finite(wants(what)));
export const whole = (from: number, to: number, what = `a whole number from ${from} to ${to}`) =>
  v.pipe(v.number(wants(what)), v.integer(wants(what)), v.minValue(from, wants(what)), v.maxValue(to, wants(what)));
export const positive = (what = "a number above 0") => v.pipe(finite(what), v.gtValue(0, wants(what)));
export const notNegative = v.pipe(finite("a number, 0 or more"), v.minValue(0, wants("a number, 0 or more")));
export const between = (from: number, below: number, what = `a number from ${from} to below ${below}`) =>
  v.pipe(finite(what), v.minValue(from, wants(what)), v.ltValue(below, wants(what)));
export const share = (what = "a number from 0 to below 0.5") => between(0, 0.5, what);
export const oneOf = <const T extends readonly string[]>(...names: T) =>
  v.picklist(names, wants(names.map((name) => `"${name}"`).join(" or ")));
export const truth = v.boolean(wants("true or false"));

type Described<S extends v.GenericSchema> = v.SchemaWithPipe<readonly [S, v.DescriptionAction<v.InferOutput<S>, string>]>;

/** A key's schema with its meaning and its default, where it has one: for editors and docs/keys.md. */
export function about<const S extends v.GenericSchema>(schema: S, meaning: string): Described<S>;
export function about<const S extends v.GenericSchema, const D extends v.InferInput<S>>(
  schema: S,
  meaning: string,
  fallback: D,
): v.OptionalSchema<Described<S>, D>;
export function about(schema: v.GenericSchema, meaning: string, fallback?: unknown): unknown {
  const described = v.pipe(schema, v.description(meaning));
  return fallback === undefined ? described : v.optional(described, fallback);
}
