// Methods of Python's texts, lists, tuples and dicts. What would change a list or a dict is refused, as in Jinja's sandbox.

import { asInt, asText, bindArgs } from "./args.ts";
import { capitalize, casefold, DIGITS, isTitle, NUMERIC, swapcase, title } from "./case.ts";
import { formatBraces } from "./format.ts";
import { SPACES, TemplateError } from "./lexer.ts";
import { charge, fits, sized } from "./limits.ts";
import {
  charsOf,
  type Dict,
  dictEntries,
  dictGet,
  dictKeys,
  doubleOf,
  equal,
  Func,
  hasPairs,
  isDict,
  isFloat,
  isInt,
  isNumber,
  iterate,
  lengthOf,
  type Named,
  Range,
  Tuple,
  View,
} from "./values.ts";

/** The parameters by name, and what the method gives. */
type Method<T> = readonly [params: readonly string[], call: (self: T, ...args: unknown[]) => unknown];

const SPACE = new RegExp(`[${SPACES}]`);
const WORDS = new RegExp(`[^${SPACES}]+`, "g");
const CONTROL_ENDS = "\\n\\r\\v\\f\\x1c\\x1d\\x1e\\x85\\u2028\\u2029";
const LINE_END = new RegExp(`\\r\\n|[${CONTROL_ENDS}]`, "g");

/** Takes characters off a text's ends: white space, or those of `chars`. */
export function strip(text: string, chars: unknown, left: boolean, right: boolean): string {
  charge(text.length >> 6);
  if (typeof chars === "string" && (hasPairs(chars) || hasPairs(text))) {
    const [own, taken] = [charsOf(text), new Set(charsOf(chars))];
    let [from, to] = [0, own.length];
    while (left && from < to && taken.has(own[from]!)) from++;
    while (right && to > from && taken.has(own[to - 1]!)) to--;
    return own.slice(from, to).join("");
  }
  const taken = chars === undefined || chars === null ? null : asText("strip", chars);
  const goes = (unit: string) => (taken === null ? SPACE.test(unit) : taken.includes(unit));
  let [from, to] = [0, text.length];
  while (left && from < to && goes(text[from]!)) from++;
  while (right && to > from && goes(text[to - 1]!)) to--;
  return text.slice(from, to);
}

export function splitLines(text: string, keepEnds = false): string[] {
  const lines: string[] = [];
  let from = 0;
  for (const { index, 0: end } of text.matchAll(LINE_END)) {
    lines.push(text.slice(from, keepEnds ? index + end.length : index));
    from = index + end.length;
  }
  if (from < text.length) lines.push(text.slice(from));
  charge(lines.length + (text.length >> 6));
  return lines;
}

function split(text: string, separator: unknown, most: unknown, fromRight: boolean): string[] {
  const limit = most === undefined || Number(most) < 0 ? Number.POSITIVE_INFINITY : asInt("split", most);
  if (separator === undefined || separator === null) {
    const words = [...text.matchAll(WORDS)];
    charge(words.length + (text.length >> 6));
    if (words.length <= limit) return words.map(([word]) => word);
    if (fromRight) {
      const kept = limit === 0 ? [] : words.slice(-limit);
      const last = words[words.length - limit - 1]!;
      return [text.slice(0, last.index + last[0].length), ...kept.map(([word]) => word)];
    }
    return [...words.slice(0, limit).map(([word]) => word), text.slice(words[limit]!.index)];
  }
  const by = asText("split", separator);
  if (by === "") throw new TemplateError("split: the separator is empty");
  const parts = text.split(by);
  charge(parts.length + (text.length >> 6));
  if (parts.length - 1 <= limit) return parts;
  return fromRight
    ? [parts.slice(0, parts.length - limit).join(by), ...parts.slice(parts.length - limit)]
    : [...parts.slice(0, limit), parts.slice(limit).join(by)];
}

export function replace(text: string, old: string, by: string, count: number): string {
  charge(text.length >> 6);
  if (count === 0) return text;
  const parts = old === "" ? ["", ...charsOf(text), ""] : text.split(old);
  const times = count < 0 ? parts.length - 1 : Math.min(count, parts.length - 1);
  fits(text.length + times * by.length);
  charge(parts.length);
  if (times === parts.length - 1) return parts.join(by);
  return [...parts.slice(0, times), parts.slice(times).join(old)].join(by);
}

/** Where a part of a text lies, in code points; -1 where it does not. */
function find(text: string, part: unknown, start: unknown, end: unknown, last: boolean): number {
  const [from, to] = bounds(text, start, end);
  const within = text.slice(from, to);
  if (from > text.length) return -1;
  const at = last ? within.lastIndexOf(asText("find", part)) : within.indexOf(asText("find", part));
  return at < 0 ? -1 : hasPairs(text) ? charsOf(text.slice(0, from + at)).length : from + at;
}

/** Code points as units. */
function bounds(text: string, start: unknown, end: unknown): readonly [number, number] {
  const length = lengthOf(text);
  const clamp = (bound: unknown, otherwise: number) => {
    if (bound === undefined || bound === null) return otherwise;
    const at = asInt("a text's method", bound);
    return at < 0 ? Math.max(0, at + length) : Math.min(at, length + 1);
  };
  const units = (at: number) => (hasPairs(text) ? charsOf(text).slice(0, at).join("").length : at);
  return [units(clamp(start, 0)), units(clamp(end, length))];
}

function hasEnd(text: string, ends: unknown, start: unknown, end: unknown, test: "startsWith" | "endsWith"): boolean {
  const all = ends instanceof Tuple ? ends.items : [ends];
  const [from, to] = bounds(text, start, end);
  return from <= text.length && all.some((one) => text.slice(from, to)[test](asText(test.toLowerCase(), one)));
}

function pad(text: string, width: unknown, fill: unknown, where: "left" | "right" | "both"): string {
  const missing = asInt("the width", width) - lengthOf(text);
  const by = fill === undefined ? " " : asText("the fill", fill);
  if (lengthOf(by) !== 1) throw new TemplateError("the fill character must be one character");
  if (missing <= 0) return text;
  fits(missing);
  const half = (missing >> 1) + (missing & asInt("", width) & 1);
  const before = where === "left" ? 0 : where === "right" ? missing : half;
  return by.repeat(before) + text + by.repeat(missing - before);
}

const part = (text: string, separator: unknown, last: boolean): Tuple => {
  const by = asText("partition", separator);
  if (by === "") throw new TemplateError("partition: the separator is empty");
  const at = last ? text.lastIndexOf(by) : text.indexOf(by);
  if (at < 0) return new Tuple(last ? ["", "", text] : [text, "", ""]);
  return new Tuple([text.slice(0, at), by, text.slice(at + by.length)]);
};

const found = (at: number): number => {
  if (at < 0) throw new TemplateError("substring not found");
  return at;
};

const all = (text: string, pattern: RegExp): boolean => text !== "" && pattern.test(text);
export const isLower = (text: string): boolean => /\p{Lowercase}/u.test(text) && !/[\p{Uppercase}\p{Lt}]/u.test(text);
export const isUpper = (text: string): boolean => /\p{Uppercase}/u.test(text) && !/[\p{Lowercase}\p{Lt}]/u.test(text);

const TEXT: Readonly<Record<string, Method<string>>> = {
  strip: [["chars?"], (text, chars) => strip(text, chars, true, true)],
  lstrip: [["chars?"], (text, chars) => strip(text, chars, true, false)],
  rstrip: [["chars?"], (text, chars) => strip(text, chars, false, true)],
  split: [["sep?", "maxsplit?"], (text, by, most) => split(text, by, most, false)],
  rsplit: [["sep?", "maxsplit?"], (text, by, most) => split(text, by, most, true)],
  splitlines: [["keepends?"], (text, keep) => splitLines(text, keep === true || Number(keep ?? 0) !== 0)],
  replace: [
    ["old", "new", "count?"],
    (text, old, by, count = -1) => replace(text, asText("replace", old), asText("replace", by), asInt("replace", count)),
  ],
  upper: [[], (text) => sized(text.toUpperCase())],
  lower: [[], (text) => sized(text.toLowerCase())],
  casefold: [[], (text) => sized(casefold(text))],
  capitalize: [[], (text) => capitalize(text)],
  title: [[], (text) => title(sized(text))],
  swapcase: [[], (text) => sized(swapcase(text))],
  startswith: [["prefix", "start?", "end?"], (text, ends, start, end) => hasEnd(text, ends, start, end, "startsWith")],
  endswith: [["suffix", "start?", "end?"], (text, ends, start, end) => hasEnd(text, ends, start, end, "endsWith")],
  removeprefix: [
    ["prefix"],
    (text, prefix) => (text.startsWith(asText("removeprefix", prefix)) ? text.slice((prefix as string).length) : text),
  ],
  removesuffix: [
    ["suffix"],
    (text, suffix) =>
      suffix !== "" && text.endsWith(asText("removesuffix", suffix)) ? text.slice(0, -(suffix as string).length) : text,
  ],
  find: [["sub", "start?", "end?"], (text, sub, start, end) => find(text, sub, start, end, false)],
  rfind: [["sub", "start?", "end?"], (text, sub, start, end) => find(text, sub, start, end, true)],
  index: [["sub", "start?", "end?"], (text, sub, start, end) => found(find(text, sub, start, end, false))],
  rindex: [["sub", "start?", "end?"], (text, sub, start, end) => found(find(text, sub, start, end, true))],
  count: [
    ["sub", "start?", "end?"],
    (text, sub, start, end) => {
      const within = text.slice(...bounds(text, start, end));
      return asText("count", sub) === "" ? lengthOf(within) + 1 : within.split(sub as string).length - 1;
    },
  ],
  join: [
    ["iterable"],
    (text, items) =>
      joinTexts(
        text,
        iterate(items).map((item) => asText("join", item)),
      ),
  ],
  partition: [["sep"], (text, by) => part(text, by, false)],
  rpartition: [["sep"], (text, by) => part(text, by, true)],
  center: [["width", "fill?"], (text, width, fill) => pad(text, width, fill, "both")],
  ljust: [["width", "fill?"], (text, width, fill) => pad(text, width, fill, "left")],
  rjust: [["width", "fill?"], (text, width, fill) => pad(text, width, fill, "right")],
  zfill: [
    ["width"],
    (text, width) => {
      const sign = /^[+-]/.exec(text)?.[0] ?? "";
      return sign + pad(text.slice(sign.length), asInt("zfill", width) - sign.length, "0", "right");
    },
  ],
  expandtabs: [
    ["tabsize?"],
    (text, size = 8) => {
      let column = 0;
      return charsOf(text)
        .map((char) => {
          const width = asInt("expandtabs", size);
          const out = char === "\t" ? " ".repeat(width > 0 ? width - (column % width) : 0) : char;
          column = char === "\n" || char === "\r" ? 0 : column + out.length;
          return out;
        })
        .join("");
    },
  ],
  isalnum: [[], (text) => all(text, /^[\p{L}\p{Nd}\p{No}\p{Nl}]+$/u)],
  isalpha: [[], (text) => all(text, /^\p{L}+$/u)],
  isdigit: [[], (text) => all(text, DIGITS)],
  isdecimal: [[], (text) => all(text, /^\p{Nd}+$/u)],
  isnumeric: [[], (text) => all(text, NUMERIC)],
  isspace: [[], (text) => text !== "" && strip(text, null, true, false) === ""],
  islower: [[], isLower],
  isupper: [[], isUpper],
  istitle: [[], isTitle],
  isascii: [[], (text) => /^[\0-\x7f]*$/.test(text)],
  isidentifier: [[], (text) => all(text, /^[\p{XID_Start}_][\p{XID_Continue}]*$/u)],
};

export function joinTexts(by: string, texts: readonly string[]): string {
  fits(texts.reduce((sum, text) => sum + text.length + by.length, 0));
  return texts.join(by);
}

const LIST: Readonly<Record<string, Method<readonly unknown[]>>> = {
  count: [["value"], (items, value) => items.filter((item) => equal(item, value)).length],
  index: [
    ["value", "start?", "stop?"],
    (items, value, start = 0, stop = items.length) => {
      const at = (bound: unknown) => (Number(bound) < 0 ? Math.max(0, Number(bound) + items.length) : Number(bound));
      const found = items.findIndex((item, i) => i >= at(start) && i < at(stop) && equal(item, value));
      if (found < 0) throw new TemplateError("the value is not in the list");
      return found;
    },
  ],
};

const DICT: Readonly<Record<string, Method<Dict>>> = {
  get: [
    ["key", "default?"],
    (dict, key, otherwise = null) => dictGet(dict, key) ?? (dictGet(dict, key) === null ? null : otherwise),
  ],
  keys: [[], (dict) => new View("dict_keys", dictKeys(dict))],
  values: [
    [],
    (dict) =>
      new View(
        "dict_values",
        dictEntries(dict).map(([, value]) => value),
      ),
  ],
  items: [
    [],
    (dict) =>
      new View(
        "dict_items",
        dictEntries(dict).map((entry) => new Tuple(entry)),
      ),
  ],
  copy: [[], (dict) => dict],
};

const FLOAT: Readonly<Record<string, Method<unknown>>> = {
  is_integer: [[], (value) => isInt(value) || (isNumber(value) && Number.isInteger(doubleOf(value)))],
};
const INT: Readonly<Record<string, Method<unknown>>> = {
  ...FLOAT,
  bit_length: [
    [],
    (value) =>
      value
        ? BigInt(value as number)
            .toString(2)
            .replace("-", "").length
        : 0,
  ],
};

const CHANGES_LIST = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const CHANGES_DICT = ["clear", "pop", "popitem", "setdefault", "update"];

/** A value's method by its name; undefined where it has none. */
export function methodOf(self: unknown, name: string): unknown {
  if (typeof self === "string") {
    if (name === "format" || name === "format_map")
      return new Func(name, (args, named) => {
        const byName: Named = name === "format" ? named : new Map(dictEntries(args[0] as Dict) as [string, unknown][]);
        return sized(formatBraces(self, name === "format" ? args : [], byName));
      });
    return bound(TEXT, self, name);
  }
  if (Array.isArray(self)) {
    if (name === "copy") return new Func(name, () => [...self]);
    return CHANGES_LIST.includes(name) ? refused("list", name) : bound(LIST, self, name);
  }
  if (self instanceof Tuple || self instanceof Range) return bound(LIST, self.items, name);
  if (isDict(self)) return CHANGES_DICT.includes(name) ? refused("dict", name) : bound(DICT, self, name);
  if (isFloat(self)) return bound(FLOAT, self, name);
  if (isInt(self)) return bound(INT, self, name);
  return undefined;
}

function bound<T>(methods: Readonly<Record<string, Method<T>>>, self: T, name: string): Func | undefined {
  if (!Object.hasOwn(methods, name)) return undefined;
  const [params, call] = methods[name]!;
  return new Func(name, (args, named) => call(self, ...bindArgs(name, params, args, named)));
}

const refused = (kind: string, name: string): Func =>
  new Func(name, () => {
    throw new TemplateError(`${kind}.${name}() is refused: templates must not change what they are given (as in transformers)`);
  });
