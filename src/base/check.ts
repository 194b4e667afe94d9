// Valibot schemas of what people write, each with a message that says what is expected and what was found.

import * as v from "valibot";
import { compilePattern, PatternError } from "./pattern.ts";
import { hasScheme, isHome, isHub, isRemote } from "./source-name.ts";

export const show = (value: unknown): string => {
  if (Array.isArray(value)) return "a list";
  if (value instanceof Date) return value.toISOString(); // a date of TOML prints as it is written
  if (typeof value === "object" && value !== null) return "a table";
  const text = typeof value === "string" ? escaped(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};
/** In quotes, on one line: signs that a terminal would act on are escaped. */
const escaped = (value: string): string => `"${value.replace(/[^ -\uffff]/g, (sign) => JSON.stringify(sign).slice(1, -1))}"`;
/** "a, b or c" */
export const listed = (names: readonly string[], word: "or" | "and"): string =>
  [names.slice(0, -1).join(", "), ...names.slice(-1)].filter((part) => part !== "").join(` ${word} `);
/** What follows a key in a message. */
export const expected =
  (what: string) =>
  ({ input }: { readonly input: unknown }) =>
    `is ${input === undefined ? "missing" : show(input)}, expected ${what}`;

/** Paths, names and arguments of programs: none of them may hold a NUL. */
export const text = v.pipe(
  v.string(expected("a string")),
  v.nonEmpty("is empty, expected a string"),
  v.excludes("\0", expected("a string without NUL characters")),
);

/** A path, or an address for which `isRead` holds. */
const placeOr = (isRead: (address: string) => boolean, what: string) =>
  v.pipe(
    text,
    v.check((path) => !isHome(path), "begins with '~', which a shell replaces and a file does not: write the whole path"),
    v.check((path) => !hasScheme(path) || isRead(path), expected(what)),
  );
/** A path of this machine. */
export const place = placeOr(() => false, "a path of this machine, not an address");
/** A path, an address or a hub's name of files of rows. */
export const rowsPlace = placeOr(isRemote, "a path, or an address with https:// or hf://");
/** A path, or a model's name on the hub with hf://. */
export const modelPlace = placeOr(isHub, 'a path; a model of the Hugging Face hub is named by name = "org/name"');

/** Numbers of f32, in which adapters are computed: a larger one becomes infinity there, and a smaller one 0. */
const [SMALLEST, LARGEST] = [2 ** -126, (2 - 2 ** -23) * 2 ** 127];
const isSingle = (value: number): boolean =>
  value === 0 || !Number.isFinite(value) || (Math.abs(value) >= SMALLEST && Math.abs(value) <= LARGEST);

export const finite = (what: string) =>
  v.pipe(
    v.number(expected(what)),
    v.finite(expected(what)),
    v.check(isSingle, expected(`${what}, as f32 holds it (1.2e-38 to 3.4e38)`)),
  );
export const whole = (from: number, to: number, what = `a whole number from ${from} to ${to}`) =>
  v.pipe(v.number(expected(what)), v.integer(expected(what)), v.minValue(from, expected(what)), v.maxValue(to, expected(what)));
export const positive = (what = "a number above 0") => v.pipe(finite(what), v.gtValue(0, expected(what)));
export const notNegative = v.pipe(finite("a number, 0 or more"), v.minValue(0, expected("a number, 0 or more")));
export const between = (from: number, below: number, what = `a number from ${from} to below ${below}`) =>
  v.pipe(finite(what), v.minValue(from, expected(what)), v.ltValue(below, expected(what)));
export const share = (what = "a number from 0 to below 0.5") => between(0, 0.5, what);

type Objects = v.GenericSchema & { readonly message: unknown };

/** Valibot takes every object for a table: a list, whose keys are 0, 1, ..., and a date of TOML, which has none. */
const tablesAlone = <S extends Objects>(schema: S): S => ({
  ...schema,
  "~run"(dataset: v.UnknownDataset, config: v.Config<v.BaseIssue<unknown>>) {
    const { value } = dataset;
    if (!Array.isArray(value) && !(value instanceof Date)) return schema["~run"](dataset, config);
    v._addIssue(this as never, "type", dataset as never, config);
    return dataset as never; // an issue makes it one that failed
  },
});
/** A table of these keys alone. */
export const table = <const E extends v.ObjectEntries>(entries: E, what = "a table") =>
  tablesAlone(v.strictObject(entries, expected(what)));
/** A table of any keys. */
export const tableOf = <const K extends v.GenericSchema<string>, const V extends v.GenericSchema>(
  key: K,
  value: V,
  what = "a table",
) => tablesAlone(v.record(key, value, expected(what)));
export const oneOf = <const T extends readonly string[]>(...names: T) =>
  v.picklist(names, expected(names.map((name) => `"${name}"`).join(" or ")));
/** At least one. */
export const listOf = <T extends v.GenericSchema>(item: T, most: number) =>
  v.pipe(
    v.array(item),
    v.minLength(1, "is empty, expected at least one value"),
    v.maxLength(most, `is a list of more than ${most} values`),
  );
export const truth = v.boolean(expected("true or false"));
/** A program and its arguments. */
export const command = v.pipe(v.array(text), v.minLength(1, "is empty, expected a program"));
/** An address that what is sent to it reaches unread: by TLS, or within this machine. */
export const webAddress = v.pipe(
  text,
  v.regex(/^(https:\/\/|http:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?([/?#]|$))/, expected("an https URL")),
  v.check((address) => URL.canParse(address), expected("an https URL")),
);
/** Of a generator of random numbers. */
export const seed = whole(0, 2 ** 32 - 1);

/** A regular expression that Python and JavaScript read alike. */
export const pattern = (match: "whole" | "end") =>
  v.pipe(
    text,
    v.rawCheck(({ dataset, addIssue }) => {
      if (!dataset.typed) return;
      try {
        compilePattern(dataset.value, match);
      } catch (error) {
        if (!(error instanceof PatternError)) throw error;
        addIssue({ message: `"${dataset.value}": ${error.message}` });
      }
    }),
  );
/** Values by regular expressions of the ends of module paths. */
export const patternTable = <T extends v.GenericSchema<number>>(value: T) =>
  v.pipe(
    tableOf(pattern("end"), value, "a table of regular expressions and numbers"),
    v.check((table) => Object.keys(table).length > 0, "is empty, expected at least one pattern"),
  );

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
