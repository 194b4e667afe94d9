// Values as Python has them: what is equal, what is true, what comes first, and how each is written.
//
// Texts, booleans, null (None), arrays (lists) and numbers are JavaScript's own; ints beyond 2^53 are bigints, floats with a
// whole value are json.ts's Float. A dict is a Map or a row's plain object. All else is a `Native`.

import { type EntriesOf, Float, type JsonStyle, keysOf, numberText, writeJson } from "../json.ts";
import { TemplateError } from "./lexer.ts";
import { charge, sized } from "./limits.ts";

/** A value of a kind that JSON does not have. */
export abstract class Native {}

/** What is not there. `what` says so, `path` is how the template wrote it; only printing it and asking for it are allowed. */
export class Undefined extends Native {
  constructor(
    readonly what: string,
    readonly path: string | null = null,
  ) {
    super();
  }
}

export class Tuple extends Native {
  constructor(readonly items: readonly unknown[]) {
    super();
  }
  [Symbol.iterator](): Iterator<unknown> {
    return this.items[Symbol.iterator]();
  }
}

/** A group of the filter groupby. */
export class Group extends Tuple {}

export class Range extends Native {
  readonly items: readonly number[];
  constructor(
    readonly start: number,
    readonly stop: number,
    readonly step: number,
  ) {
    super();
    const count = Math.max(0, Math.ceil((stop - start) / step));
    // Jinja's own bound in its sandbox, which is where transformers runs templates.
    if (count > 100_000) throw new TemplateError(`a range of ${count} numbers is too long: 100000 at most`);
    charge(count);
    this.items = Array.from({ length: count }, (_, i) => start + i * step);
  }
}

/** dict.keys(), .values() and .items(). */
export class View extends Native {
  constructor(
    readonly kind: string,
    readonly items: readonly unknown[],
  ) {
    super();
  }
}

/** What map, select and their like give: it can be gone through once. */
export class Stream extends Native {
  constructor(readonly rest: unknown[]) {
    super();
  }
}

/**
 * A text marked as safe by `safe` or `escape`. Python escapes what is joined to one with "+" and the like; here it may be
 * printed, joined with "~", tested and compared, and all else is an error.
 */
export class Safe extends Native {
  constructor(readonly text: string) {
    super();
  }
}

export class Namespace extends Native {
  readonly fields = new Map<string, unknown>();
}

export type Named = ReadonlyMap<string, unknown>;
/** What can be called: a macro, a method or a function. */
export class Func extends Native {
  constructor(
    readonly name: string,
    readonly call: (args: readonly unknown[], named: Named) => unknown,
  ) {
    super();
  }
}

/** A value with attributes of its own: `loop`. */
export abstract class Attributed extends Native {
  abstract attribute(name: string): unknown;
}

export type Dict = Map<unknown, unknown> | Readonly<Record<string, unknown>>;
export const isDict = (value: unknown): value is Dict =>
  typeof value === "object" &&
  value !== null &&
  !Array.isArray(value) &&
  !(value instanceof Native) &&
  !(value instanceof Float);

const keyOf = (key: unknown): unknown => {
  if (key instanceof Float) return key.value;
  if (typeof key === "boolean") return key ? 1 : 0;
  if (typeof key === "object" && key !== null && !(key instanceof Func))
    throw new TemplateError(`unhashable type: '${typeName(key)}'`);
  return key;
};

/** A dict of a template's own. Keys that are equal in Python (1, 1.0, true) are one; the first form is kept. */
export class DictMap extends Map<unknown, unknown> {
  readonly forms = new Map<unknown, unknown>();
  override has(key: unknown): boolean {
    return super.has(keyOf(key));
  }
  override get(key: unknown): unknown {
    return super.get(keyOf(key));
  }
  override set(key: unknown, value: unknown): this {
    const known = keyOf(key);
    if (!this.has(known)) this.forms?.set(known, key);
    return super.set(known, value);
  }
}

export function dictGet(dict: Dict, key: unknown): unknown {
  if (dict instanceof Map) return dict.get(keyOf(key));
  keyOf(key); // an unhashable key is an error
  return typeof key === "string" && Object.hasOwn(dict, key) ? dict[key] : undefined;
}

export function dictKeys(dict: Dict): readonly unknown[] {
  if (!(dict instanceof Map)) return keysOf(dict);
  return dict instanceof DictMap ? [...dict.keys()].map((key) => dict.forms.get(key) ?? key) : [...dict.keys()];
}

export const dictEntries = (dict: Dict): [unknown, unknown][] => dictKeys(dict).map((key) => [key, dictGet(dict, key) ?? null]);

export const isInt = (value: unknown): value is number | bigint | boolean =>
  typeof value === "boolean" || typeof value === "bigint" || (typeof value === "number" && Number.isInteger(value));
export const isFloat = (value: unknown): value is number | Float =>
  value instanceof Float || (typeof value === "number" && !Number.isInteger(value));
export const isNumber = (value: unknown): value is number | bigint | boolean | Float =>
  typeof value === "number" || typeof value === "bigint" || typeof value === "boolean" || value instanceof Float;
export const doubleOf = (value: number | bigint | boolean | Float): number =>
  value instanceof Float ? value.value : Number(value);
export const bigOf = (value: number | bigint | boolean): bigint => BigInt(value);
/** An int in its one form. */
export const intOf = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

export function typeName(value: unknown): string {
  if (value === null) return "NoneType";
  if (typeof value === "string") return "str";
  if (typeof value === "boolean") return "bool";
  if (isFloat(value)) return "float";
  if (isInt(value)) return "int";
  if (Array.isArray(value)) return "list";
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Tuple) return "tuple";
  if (value instanceof View) return value.kind;
  if (value instanceof Stream) return "generator";
  if (value instanceof Range) return "range";
  if (value instanceof Func) return "function";
  if (value instanceof Safe) return "Markup";
  if (isDict(value)) return "dict";
  return value instanceof Namespace ? "Namespace" : "LoopContext";
}

/** An Undefined that is used says what is missing. */
export function present(value: unknown): unknown {
  if (value instanceof Undefined) throw new TemplateError(value.what);
  return value;
}

export const typeFault = (what: string, ...values: readonly unknown[]): TemplateError => {
  for (const value of values) present(value);
  return new TemplateError(`${what} ${values.map((value) => `'${typeName(value)}'`).join(" and ")}`);
};

export const hasPairs = (text: string): boolean => /[\ud800-\udfff]/.test(text);
/** Python's characters are code points. */
export const charsOf = (text: string): readonly string[] => {
  charge(text.length);
  return hasPairs(text) ? Array.from(text) : text.split("");
};

/** The items of a list or the like; null for what has none. */
function itemsOf(value: unknown): readonly unknown[] | null {
  if (Array.isArray(value)) return value;
  if (value instanceof Tuple || value instanceof Range || value instanceof View) return value.items;
  if (isDict(value)) return dictKeys(value);
  if (value instanceof Undefined) return [];
  if (typeof value === "string") return charsOf(value);
  return null;
}

/** What a loop over a value goes through. */
export function iterate(value: unknown): readonly unknown[] {
  const items = value instanceof Stream ? value.rest.splice(0) : itemsOf(value);
  if (!items) throw typeFault("cannot iterate over", value);
  charge(items.length);
  return items;
}

export function lengthOf(value: unknown): number {
  if (typeof value === "string" && !hasPairs(value)) {
    charge(value.length >> 6);
    return value.length;
  }
  const items = itemsOf(value);
  if (!items) throw typeFault("there is no length of", value);
  return items.length;
}

export function isTrue(value: unknown): boolean {
  if (typeof value === "boolean") return value;
  if (value === null || value instanceof Undefined) return false;
  if (typeof value === "string") return value !== "";
  if (isNumber(value)) return doubleOf(value) !== 0;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Tuple || value instanceof Range || value instanceof View) return value.items.length > 0;
  if (value instanceof Safe) return value.text !== "";
  if (isDict(value)) return value instanceof Map ? value.size > 0 : Object.keys(value).length > 0;
  return true;
}

export function equal(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  charge(1);
  if (isNumber(a) && isNumber(b)) {
    if (isInt(a) && isInt(b)) return bigOf(a) === bigOf(b);
    return doubleOf(a) === doubleOf(b);
  }
  if (a instanceof Safe || b instanceof Safe) return equal(a instanceof Safe ? a.text : a, b instanceof Safe ? b.text : b);
  if (a instanceof Undefined) return b instanceof Undefined;
  const sameItems = (x: readonly unknown[], y: readonly unknown[]) =>
    x.length === y.length && x.every((item, i) => equal(item, y[i]));
  if (Array.isArray(a)) return Array.isArray(b) && sameItems(a, b);
  if (a instanceof Tuple) return b instanceof Tuple && sameItems(a.items, b.items);
  if (a instanceof Range) return b instanceof Range && sameItems(a.items, b.items);
  if (isDict(a) && isDict(b)) {
    const entries = dictEntries(a);
    if (entries.length !== dictKeys(b).length) return false;
    return entries.every(([key, value]) => {
      const other = dictGet(b, key);
      return other !== undefined && equal(value, other);
    });
  }
  return false;
}

/** Below 0 where a comes before b. */
export function compare(a: unknown, b: unknown, operator = "<"): number {
  charge(1);
  if (isNumber(a) && isNumber(b)) {
    const [x, y] =
      isInt(a) && isInt(b) && (typeof a === "bigint" || typeof b === "bigint")
        ? [bigOf(a), bigOf(b)]
        : [doubleOf(a), doubleOf(b)];
    return x < y ? -1 : x > y ? 1 : x === y ? 0 : Number.NaN;
  }
  if (typeof a === "string" && typeof b === "string") {
    if (a === b) return 0;
    if (!hasPairs(a) && !hasPairs(b)) return a < b ? -1 : 1;
    const [x, y] = [charsOf(a), charsOf(b)];
    const at = x.findIndex((char, i) => char !== y[i]);
    if (at < 0) return -1;
    return at >= y.length ? 1 : x[at]!.codePointAt(0)! - y[at]!.codePointAt(0)!;
  }
  const [x, y] = [a, b].map((one) => (Array.isArray(one) ? one : one instanceof Tuple ? one.items : null));
  if (x && y && Array.isArray(a) === Array.isArray(b)) {
    const at = x.findIndex((item, i) => i >= y.length || !equal(item, y[i]));
    if (at < 0) return x.length - y.length;
    return at >= y.length ? 1 : compare(x[at], y[at], operator);
  }
  throw typeFault(`'${operator}' is not possible between`, a, b);
}

export function contains(container: unknown, item: unknown): boolean {
  if (typeof container === "string") {
    if (typeof item !== "string") throw typeFault("'in <text>' takes a text, not", item);
    charge(container.length >> 6);
    return container.includes(item);
  }
  if (isDict(container)) return dictGet(container, item) !== undefined;
  return iterate(container).some((one) => equal(one, item));
}

/** str(): what printing a value gives. */
export function textOf(value: unknown): string {
  if (typeof value === "string") return value;
  if (value instanceof Undefined) return "";
  if (value instanceof Safe) return value.text;
  return reprOf(value);
}

/** repr(): as Python writes a value inside of another. */
export function reprOf(value: unknown, depth = 0): string {
  charge(1);
  if (typeof value === "string") return quoted(value);
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number" || typeof value === "bigint" || value instanceof Float) return numberText(value);
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Safe) return `Markup(${quoted(value.text)})`;
  const all = (items: readonly unknown[]) => items.map((item) => reprOf(item, depth + 1)).join(", ");
  if (Array.isArray(value)) return sized(`[${all(value)}]`);
  if (value instanceof Tuple) return sized(`(${all(value.items)}${value.items.length === 1 ? "," : ""})`);
  if (value instanceof Range) return `range(${value.start}, ${value.stop}${value.step === 1 ? "" : `, ${value.step}`})`;
  if (value instanceof View) return sized(`${value.kind}([${all(value.items)}])`);
  if (isDict(value))
    return sized(
      `{${dictEntries(value)
        .map(([key, item]) => `${reprOf(key)}: ${reprOf(item, depth + 1)}`)
        .join(", ")}}`,
    );
  throw new TemplateError(`a ${typeName(value)} cannot be printed: Python writes an address of its memory`);
}

const UNPRINTABLE = /[\\\n\r\t]|(?! )[\p{C}\p{Z}]/gu;
function quoted(text: string): string {
  charge(text.length >> 6);
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const body = text.replace(UNPRINTABLE, (char) => {
    const short = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" }[char];
    if (short !== undefined) return short;
    const code = char.codePointAt(0)!;
    const hex = (width: number) => code.toString(16).padStart(width, "0");
    return code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
  });
  return `${quote}${quote === "'" ? body.replaceAll("'", "\\'") : body}${quote}`;
}

/** json.dumps(). */
export function jsonOf(value: unknown, style: JsonStyle): string {
  const entries: EntriesOf = (object) => {
    charge(1);
    if (Array.isArray(object)) return null;
    if (object instanceof Tuple) return null;
    if (object instanceof Safe) return object.text;
    if (!isDict(object)) throw typeFault("JSON has no form for", object);
    return dictEntries(object).map(([key, item]) => {
      if (typeof key === "string") return [key, item];
      if (key === null || typeof key === "boolean") return [String(key), item];
      if (isNumber(key)) return [numberText(key as number, true), item];
      throw typeFault("JSON has no key of", key);
    });
  };
  return sized(writeJson(value, style, entries));
}
