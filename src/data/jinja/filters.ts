// Jinja's filters, with transformers' own tojson.

import { floatOf } from "../json.ts";
import { asInt, asText, bindArgs } from "./args.ts";
import { capitalize } from "./case.ts";
import { formatPercent } from "./format.ts";
import { indent } from "./indent.ts";
import { TemplateError } from "./lexer.ts";
import { charge, fits, sized } from "./limits.ts";
import { joinTexts, replace, strip } from "./methods.ts";
import { rounded, toFloat, toInt } from "./numbers.ts";
import { attributeOf, calculate, itemOf } from "./operators.ts";
import { runTest } from "./tests.ts";
import {
  bigOf,
  charsOf,
  compare,
  DictMap,
  dictEntries,
  doubleOf,
  equal,
  Group,
  intOf,
  isDict,
  isFloat,
  isNumber,
  isTrue,
  iterate,
  jsonOf,
  lengthOf,
  type Named,
  Safe,
  Stream,
  Tuple,
  textOf,
  typeFault,
  Undefined,
} from "./values.ts";

type Filter = readonly [params: readonly string[], call: (...args: unknown[]) => unknown];

/** Filters that take a text marked as safe; of others it is not followed what they would escape. */
const TAKE_SAFE = ["safe", "escape", "e", "forceescape", "default", "d", "tojson"];

export const hasFilter = (name: string): boolean => Object.hasOwn(FILTERS, name) || name in BY_NAME;

export function runFilter(name: string, value: unknown, args: readonly unknown[], named: Named): unknown {
  charge(1);
  if (value instanceof Safe && !TAKE_SAFE.includes(name)) throw typeFault(`the filter '${name}' is not supported for`, value);
  const special = BY_NAME[name];
  if (special) return special(value, args, named);
  if (!Object.hasOwn(FILTERS, name)) throw new TemplateError(`unknown filter '${name}'`);
  const [params, call] = FILTERS[name]!;
  return call(...bindArgs(`the filter '${name}'`, params, [value, ...args], named));
}

/** Reads an attribute by a path such as "function.name" or 0. */
function getter(attribute: unknown, otherwise?: unknown): (item: unknown) => unknown {
  if (attribute === undefined || attribute === null) return (item) => item;
  const parts =
    typeof attribute === "string"
      ? attribute.split(".").map((part) => (/^\d+$/.test(part) ? Number(part) : part))
      : [attribute];
  return (item) =>
    parts.reduce((value: unknown, part) => {
      const found = itemOf(value, part, null);
      return found instanceof Undefined && otherwise !== undefined && otherwise !== null ? otherwise : found;
    }, item);
}

const folded = (value: unknown, caseSensitive: unknown): unknown =>
  typeof value === "string" && !isTrue(caseSensitive ?? false) ? value.toLowerCase() : value;

/** Stable, also when reversed, as Python's sorted. */
function sorted(items: readonly unknown[], key: (item: unknown) => unknown, reverse: unknown): unknown[] {
  const keyed = items.map((item) => ({ item, key: key(item) }));
  const sign = isTrue(reverse ?? false) ? -1 : 1;
  return keyed.sort((a, b) => sign * compare(a.key, b.key) || 0).map(({ item }) => item);
}

function best(value: unknown, caseSensitive: unknown, attribute: unknown, sign: number): unknown {
  const items = iterate(value);
  if (items.length === 0) return new Undefined("No aggregated item, sequence was empty.");
  const get = getter(attribute);
  const key = (item: unknown) => folded(get(item), caseSensitive);
  return items.reduce((kept, item) => (sign * compare(key(item), key(kept)) < 0 ? item : kept));
}

function tojson(value: unknown, ascii: unknown, indented: unknown, separators: unknown, sort: unknown): string {
  const [item, key] =
    separators === undefined || separators === null ? [] : iterate(separators).map((one) => asText("separators", one));
  const by =
    indented === undefined || indented === null
      ? null
      : typeof indented === "string"
        ? indented
        : " ".repeat(Math.max(0, asInt("indent", indented)));
  return jsonOf(value, {
    ascii: isTrue(ascii ?? false),
    indent: by,
    sort: isTrue(sort ?? false),
    ...(item !== undefined && key !== undefined && { item, key }),
  });
}

const escapeHtml = (value: unknown): string =>
  sized(
    textOf(value).replace(
      /[&<>'"]/g,
      (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;" })[char]!,
    ),
  );

const title = (text: string): string =>
  text
    .split(/([-\s({[<]+)/)
    .map((part) => {
      const first = charsOf(part)[0] ?? "";
      return first.toUpperCase() + part.slice(first.length).toLowerCase();
    })
    .join("");

const FILTERS: Readonly<Record<string, Filter>> = {
  abs: [
    ["x"],
    (value) => {
      if (!isNumber(value)) throw typeFault("abs is not possible for", value);
      return isFloat(value) ? floatOf(Math.abs(doubleOf(value))) : intOf(bigOf(value) < 0n ? -bigOf(value) : bigOf(value));
    },
  ],
  attr: [
    ["obj", "name"],
    (value, name) =>
      isDict(value) && typeof name === "string" ? methodOnly(value, name) : attributeOf(value, asText("attr", name), null),
  ],
  batch: [
    ["value", "linecount", "fill_with?"],
    (value, count, fill) => {
      const [items, size] = [iterate(value), asInt("batch", count)];
      const rows: unknown[][] = [];
      for (const item of items) {
        if (rows.length === 0 || rows.at(-1)!.length === size) rows.push([]);
        rows.at(-1)!.push(item);
      }
      const last = rows.at(-1);
      fits(size);
      while (last && fill !== undefined && fill !== null && last.length < size) last.push(fill);
      return new Stream(rows);
    },
  ],
  capitalize: [["s"], (value) => capitalize(textOf(value))],
  center: [
    ["value", "width?"],
    (value, width = 80) => {
      const missing = Math.max(0, asInt("center", width) - lengthOf(textOf(value)));
      fits(missing);
      const before = (missing >> 1) + (missing & Number(width) & 1);
      return " ".repeat(before) + textOf(value) + " ".repeat(missing - before);
    },
  ],
  default: [
    ["value", "default_value?", "boolean?"],
    (value, otherwise = "", boolean = false) =>
      value instanceof Undefined || (isTrue(boolean) && !isTrue(value)) ? otherwise : value,
  ],
  dictsort: [
    ["value", "case_sensitive?", "by?", "reverse?"],
    (value, cased, by = "key", reverse) => {
      if (!isDict(value)) throw typeFault("dictsort is not possible for", value);
      if (by !== "key" && by !== "value") throw new TemplateError('You can only sort by either "key" or "value"');
      const at = by === "key" ? 0 : 1;
      return sorted(
        dictEntries(value).map((entry) => new Tuple(entry)),
        (entry) => folded((entry as Tuple).items[at], cased),
        reverse,
      );
    },
  ],
  escape: [["s"], (value) => (value instanceof Safe ? value : new Safe(escapeHtml(value)))],
  forceescape: [["s"], (value) => new Safe(escapeHtml(value))],
  first: [
    ["seq"],
    (value) => {
      if (value instanceof Stream)
        return value.rest.length > 0 ? value.rest.shift() : new Undefined("No first item, sequence was empty.");
      const items = iterate(value);
      return items.length > 0 ? items[0] : new Undefined("No first item, sequence was empty.");
    },
  ],
  float: [
    ["value", "default?"],
    (value, otherwise = floatOf(0)) => {
      const number = toFloat(value);
      return number === null ? otherwise : floatOf(number);
    },
  ],
  groupby: [
    ["value", "attribute", "default?", "case_sensitive?"],
    (value, attribute, otherwise, cased) => {
      const get = getter(attribute, otherwise);
      const key = (item: unknown) => folded(get(item), cased);
      const groups: { key: unknown; items: unknown[] }[] = [];
      for (const item of sorted(iterate(value), key, false)) {
        const [last, own] = [groups.at(-1), key(item)];
        if (last && equal(last.key, own)) last.items.push(item);
        else groups.push({ key: own, items: [item] });
      }
      return groups.map(({ items }) => new Group([get(items[0]), items]));
    },
  ],
  indent: [
    ["s", "width?", "first?", "blank?"],
    (value, width = 4, first = false, blank = false) => indent(value, width, first, blank),
  ],
  int: [["value", "default?", "base?"], (value, otherwise = 0, base = 10) => toInt(value, otherwise, asInt("int", base))],
  items: [
    ["value"],
    (value) => {
      if (value instanceof Undefined) return new Stream([]);
      if (!isDict(value)) throw new TemplateError("Can only get item pairs from a mapping.");
      return new Stream(dictEntries(value).map((entry) => new Tuple(entry)));
    },
  ],
  join: [
    ["value", "d?", "attribute?"],
    (value, by = "", attribute) => {
      const get = getter(attribute);
      return joinTexts(
        textOf(by),
        iterate(value).map((item) => textOf(get(item))),
      );
    },
  ],
  last: [
    ["seq"],
    (value) => {
      if (value instanceof Stream) throw typeFault("last is not possible for", value);
      const items = iterate(value);
      return items.length > 0 ? items.at(-1) : new Undefined("No last item, sequence was empty.");
    },
  ],
  length: [["obj"], lengthOf],
  list: [["value"], (value) => [...iterate(value)]],
  lower: [["s"], (value) => sized(textOf(value).toLowerCase())],
  max: [["value", "case_sensitive?", "attribute?"], (value, cased, attribute) => best(value, cased, attribute, -1)],
  min: [["value", "case_sensitive?", "attribute?"], (value, cased, attribute) => best(value, cased, attribute, 1)],
  replace: [
    ["s", "old", "new", "count?"],
    (value, old, by, count = null) =>
      replace(textOf(value), textOf(old), textOf(by), count === null ? -1 : asInt("replace", count)),
  ],
  reverse: [
    ["value"],
    (value) => {
      if (typeof value === "string") return charsOf(value).toReversed().join("");
      return new Stream([...iterate(value)].reverse());
    },
  ],
  round: [["value", "precision?", "method?"], (value, precision = 0, method = "common") => rounded(value, precision, method)],
  safe: [["value"], (value) => new Safe(textOf(value))],
  slice: [
    ["value", "slices", "fill_with?"],
    (value, slices, fill) => {
      const [items, count] = [iterate(value), asInt("slice", slices)];
      const [size, extra] = [Math.floor(items.length / count), items.length % count];
      if (count === 0) throw new TemplateError("division by zero");
      fits(count);
      let at = 0;
      return new Stream(
        Array.from({ length: Math.max(0, count) }, (_, i) => {
          const part = items.slice(at, at + size + (i < extra ? 1 : 0));
          at += part.length;
          return fill !== undefined && fill !== null && i >= extra ? [...part, fill] : part;
        }),
      );
    },
  ],
  sort: [
    ["value", "reverse?", "case_sensitive?", "attribute?"],
    (value, reverse, cased, attribute) => {
      const gets = (typeof attribute === "string" ? attribute.split(",") : [attribute]).map((one) => getter(one));
      return sorted(iterate(value), (item) => new Tuple(gets.map((get) => folded(get(item), cased))), reverse);
    },
  ],
  string: [["object"], (value) => textOf(value)],
  sum: [
    ["iterable", "attribute?", "start?"],
    (value, attribute, start = 0) => {
      const get = getter(attribute);
      return iterate(value).reduce((total, item) => calculate("+", total, get(item)), start);
    },
  ],
  title: [["s"], (value) => title(sized(textOf(value)))],
  tojson: [["x", "ensure_ascii?", "indent?", "separators?", "sort_keys?"], tojson],
  trim: [["value", "chars?"], (value, chars = null) => strip(textOf(value), chars, true, true)],
  truncate: [
    ["s", "length?", "killwords?", "end?", "leeway?"],
    (value, length = 255, kill = false, end = "...", leeway = 5) => {
      const [tail, most] = [asText("truncate", end), asInt("truncate", length)];
      if (most < lengthOf(tail)) throw new TemplateError(`expected length >= ${lengthOf(tail)}, got ${most}`);
      if (lengthOf(value) <= most + (leeway === null ? 5 : asInt("truncate", leeway))) return value;
      const head = charsOf(asText("truncate", value))
        .slice(0, most - lengthOf(tail))
        .join("");
      return `${isTrue(kill) || !head.includes(" ") ? head : head.slice(0, head.lastIndexOf(" "))}${tail}`;
    },
  ],
  unique: [
    ["value", "case_sensitive?", "attribute?"],
    (value, cased, attribute) => {
      const [get, seen] = [getter(attribute), new DictMap()];
      return new Stream(
        iterate(value).filter((item) => {
          const key = folded(get(item), cased);
          if (seen.has(key)) return false;
          seen.set(key, true);
          return true;
        }),
      );
    },
  ],
  upper: [["s"], (value) => sized(textOf(value).toUpperCase())],
  urlencode: [
    ["value"],
    (value) => {
      const quote = (one: unknown, inQuery: boolean) => {
        const text = encodeURIComponent(textOf(one)).replace(
          /[!'()*]/g,
          (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
        );
        return inQuery ? text.replaceAll("%20", "+") : text.replaceAll("%2F", "/");
      };
      if (typeof value === "string" || isNumber(value) || value === null) return quote(value, false);
      const pairs = isDict(value) ? dictEntries(value) : iterate(value).map(pairOf);
      return pairs.map(([key, item]) => `${quote(key, true)}=${quote(item, true)}`).join("&");
    },
  ],
  wordcount: [["s"], (value) => sized(textOf(value)).match(/[\p{L}\p{N}\p{Mn}_]+/gu)?.length ?? 0],
};
const pairOf = (value: unknown): readonly unknown[] => {
  const pair = iterate(value);
  if (pair.length !== 2) throw new TemplateError(`expected 2 values to unpack, found ${pair.length}`);
  return pair;
};
const ALIASES: Readonly<Record<string, string>> = { d: "default", e: "escape", count: "length" };

const methodOnly = (dict: object, name: string): unknown =>
  ["get", "keys", "values", "items", "copy"].includes(name)
    ? attributeOf(dict, name, null)
    : new Undefined(`'dict object' has no attribute '${name}'`);

/** Filters that take other filters or tests by name, with their arguments. */
const BY_NAME: Readonly<Record<string, (value: unknown, args: readonly unknown[], named: Named) => unknown>> = {
  ...Object.fromEntries(
    Object.entries(ALIASES).map(([alias, name]) => [
      alias,
      (value: unknown, args: readonly unknown[], named: Named) => runFilter(name, value, args, named),
    ]),
  ),
  format: (value, args, named) => {
    if (args.length > 0 && named.size > 0)
      throw new TemplateError("can't handle positional and keyword arguments at the same time");
    return sized(formatPercent(textOf(value), named.size > 0 ? Object.fromEntries(named) : new Tuple(args)));
  },
  map: (value, args, named) => {
    if (!isTrue(value)) return new Stream([]);
    if (args.length === 0 && named.has("attribute")) {
      const other = [...named.keys()].find((name) => name !== "attribute" && name !== "default");
      if (other !== undefined) throw new TemplateError(`Unexpected keyword argument '${other}'`);
      return new Stream(iterate(value).map(getter(named.get("attribute"), named.get("default"))));
    }
    if (args.length === 0) throw new TemplateError("map requires a filter argument");
    const [name, ...rest] = args;
    return new Stream(iterate(value).map((item) => runFilter(asText("map", name), item, rest, named)));
  },
  select: (value, args, named) => picked(value, null, args, named, true),
  reject: (value, args, named) => picked(value, null, args, named, false),
  selectattr: (value, args, named) => picked(value, args, args.slice(1), named, true),
  rejectattr: (value, args, named) => picked(value, args, args.slice(1), named, false),
};

function picked(
  value: unknown,
  attribute: readonly unknown[] | null,
  args: readonly unknown[],
  named: Named,
  wanted: boolean,
): Stream {
  if (!isTrue(value)) return new Stream([]);
  if (attribute?.length === 0) throw new TemplateError("Missing parameter for attribute name");
  const get = getter(attribute?.[0]);
  const [name, ...rest] = args;
  const test = name === undefined ? isTrue : (item: unknown) => runTest(asText("select", name), item, rest, named);
  return new Stream(iterate(value).filter((item) => test(get(item)) === wanted));
}
