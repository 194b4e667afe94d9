// Python's arithmetic, and what stands after a dot or between brackets.

import { Float, floatOf } from "../json.ts";
import { formatPercent } from "./format.ts";
import { TemplateError } from "./lexer.ts";
import { fits, grown } from "./limits.ts";
import { methodOf } from "./methods.ts";
import {
  Attributed,
  bigOf,
  charsOf,
  compare,
  contains,
  type Dict,
  dictGet,
  doubleOf,
  equal,
  Group,
  hasPairs,
  intOf,
  isDict,
  isFloat,
  isInt,
  isNumber,
  Namespace,
  present,
  Range,
  Safe,
  Tuple,
  typeFault,
  typeName,
  Undefined,
} from "./values.ts";

const isWhole = (value: unknown): value is number => typeof value === "number" && Number.isInteger(value);

export function calculate(operator: string, a: unknown, b: unknown): unknown {
  if (operator === "+") {
    if (typeof a === "string" && typeof b === "string") return grown(a + b);
    if (isWhole(a) && isWhole(b) && Number.isSafeInteger(a + b)) return a + b;
    if (Array.isArray(a) && Array.isArray(b)) return joined(a, b);
    if (a instanceof Tuple && b instanceof Tuple) return new Tuple(joined(a.items, b.items));
  }
  if (operator === "%" && typeof a === "string") return formatPercent(a, b);
  if (operator === "*") {
    if (isInt(b) && repeats(a)) return repeat(a, Number(b));
    if (isInt(a) && repeats(b)) return repeat(b, Number(a));
  }
  if (!isNumber(a) || !isNumber(b)) throw typeFault(`'${operator}' is not possible between`, a, b);
  if (isFloat(a) || isFloat(b) || operator === "/") return floatResult(operator, doubleOf(a), doubleOf(b));
  return intResult(operator, bigOf(a), bigOf(b));
}

function joined(a: readonly unknown[], b: readonly unknown[]): unknown[] {
  fits((a.length + b.length) * 64);
  return [...a, ...b];
}

const repeats = (value: unknown): value is string | unknown[] | Tuple =>
  typeof value === "string" || Array.isArray(value) || value instanceof Tuple;

function repeat(value: string | unknown[] | Tuple, times: number): unknown {
  const count = Math.max(0, times);
  if (typeof value === "string") {
    fits(value.length * count);
    return value.repeat(count);
  }
  const items = Array.isArray(value) ? value : value.items;
  fits(items.length * count * 64);
  const all = Array.from({ length: count }, () => items).flat(1);
  return Array.isArray(value) ? all : new Tuple(all);
}

const divisor = <T extends number | bigint>(value: T): T => {
  if (Number(value) === 0) throw new TemplateError("division by zero");
  return value;
};

function floatResult(operator: string, a: number, b: number): unknown {
  const mod = () => {
    const rest = a % divisor(b);
    return rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest === 0 ? (b < 0 ? -0 : 0) : rest;
  };
  switch (operator) {
    case "+":
      return floatOf(a + b);
    case "-":
      return floatOf(a - b);
    case "*":
      return floatOf(a * b);
    case "/":
      return floatOf(a / divisor(b));
    case "//": {
      const whole = (a - mod()) / b;
      const floor = Math.floor(whole);
      return floatOf(whole - floor > 0.5 ? floor + 1 : floor);
    }
    case "%":
      return floatOf(mod());
    default:
      if (a === 0 && b < 0) throw new TemplateError("0.0 cannot be raised to a negative power");
      return floatOf(a ** b);
  }
}

/** Digits of a power are work: this is more than any template needs. */
const MOST_BITS = 100_000;

function intResult(operator: string, a: bigint, b: bigint): unknown {
  switch (operator) {
    case "+":
      return intOf(a + b);
    case "-":
      return intOf(a - b);
    case "*":
      bounded((a.toString(16).length + b.toString(16).length) * 4);
      return intOf(a * b);
    case "//": {
      const quotient = a / divisor(b);
      return intOf(a % b !== 0n && a < 0n !== b < 0n ? quotient - 1n : quotient);
    }
    case "%": {
      const rest = a % divisor(b);
      return intOf(rest !== 0n && rest < 0n !== b < 0n ? rest + b : rest);
    }
    default:
      if (b < 0n) return floatResult("**", Number(a), Number(b));
      if (a > 1n || a < -1n) bounded(a.toString(16).length * 4 * Number(b));
      return intOf(a ** b);
  }
}

function bounded(bits: number): void {
  if (bits > MOST_BITS) throw new TemplateError(`makes a number of more than ${MOST_BITS} bits`);
}

export function negate(value: unknown): unknown {
  if (!isNumber(value)) throw typeFault("'-' is not possible for", value);
  return isFloat(value) ? floatOf(-doubleOf(value)) : intOf(-bigOf(value));
}

export function positive(value: unknown): unknown {
  if (!isNumber(value)) throw typeFault("'+' is not possible for", value);
  return typeof value === "boolean" ? Number(value) : value;
}

export function compares(operator: string, a: unknown, b: unknown): boolean {
  switch (operator) {
    case "==":
      return equal(a, b);
    case "!=":
      return !equal(a, b);
    case "in":
      return contains(b, a);
    case "not in":
      return !contains(b, a);
  }
  const order = compare(a, b, operator);
  return operator === "<" ? order < 0 : operator === ">" ? order > 0 : operator === "<=" ? order <= 0 : order >= 0;
}

const missing = (object: unknown, name: unknown, path: string | null): Undefined =>
  new Undefined(`'${typeName(object)} object' has no attribute '${String(name)}'`, path);

/** `object.name`: a method goes before a key of the same name, as in Jinja. */
export function attributeOf(object: unknown, name: string, path: string | null): unknown {
  present(object);
  const own = ownAttribute(object, name);
  if (own !== undefined) return own;
  if (isDict(object)) return dictGet(object, name) ?? (hasNull(object, name) ? null : missing(object, name, path));
  return missing(object, name, path);
}

const hasNull = (dict: Dict, key: unknown): boolean => dictGet(dict, key) === null;

/** What Python's values have and these do not: better refused than taken for missing. */
const PYTHONS: Readonly<Record<string, readonly string[]>> = {
  str: ["encode", "isprintable", "maketrans", "translate"],
  int: ["as_integer_ratio", "bit_count", "conjugate", "denominator", "from_bytes", "imag", "numerator", "real", "to_bytes"],
  bool: ["as_integer_ratio", "bit_count", "conjugate", "denominator", "from_bytes", "imag", "numerator", "real", "to_bytes"],
  float: ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "real"],
  dict: ["fromkeys"],
  range: ["start", "stop", "step"],
  function: ["name", "arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller"],
  dict_keys: ["isdisjoint", "mapping"],
  dict_values: ["mapping"],
  dict_items: ["isdisjoint", "mapping"],
};

function ownAttribute(object: unknown, name: string): unknown {
  if (object instanceof Namespace) return object.fields.get(name);
  if (object instanceof Attributed) return object.attribute(name);
  if (object instanceof Group && (name === "grouper" || name === "list")) return object.items[name === "list" ? 1 : 0];
  const own = methodOf(object, name);
  if (own === undefined && (PYTHONS[typeName(object)] ?? []).includes(name))
    throw new TemplateError(`'${name}' of a ${typeName(object)} is not supported`);
  return own;
}

/** `object[index]`: a key goes before a method. */
export function itemOf(object: unknown, index: unknown, path: string | null): unknown {
  present(object);
  if (isDict(object)) {
    const found = typeof index === "object" && index !== null && !(index instanceof Float) ? undefined : dictGet(object, index);
    if (found !== undefined) return found;
  } else if (isInt(index)) {
    const found = elementOf(object, Number(index));
    if (found !== undefined) return found;
  }
  if (typeof index === "string") return ownAttribute(object, index) ?? missing(object, index, path);
  return missing(object, index instanceof Undefined ? "" : index, path);
}

function elementOf(object: unknown, index: number): unknown {
  const at = (length: number) => (index < 0 ? index + length : index);
  if (typeof object === "string") {
    if (!hasPairs(object)) return object[at(object.length)];
    const chars = charsOf(object);
    return chars[at(chars.length)];
  }
  if (object instanceof Safe) {
    const char = elementOf(object.text, index);
    return char === undefined ? undefined : new Safe(char as string);
  }
  const items = listOf(object);
  return items?.[at(items.length)];
}

const listOf = (object: unknown): readonly unknown[] | null =>
  Array.isArray(object) ? object : object instanceof Tuple || object instanceof Range ? object.items : null;

/** `object[start:stop:step]`. */
export function sliceOf(object: unknown, bounds: readonly unknown[]): unknown {
  present(object);
  const items = typeof object === "string" ? charsOf(object) : listOf(object);
  if (!items) throw typeFault("there is no slice of", object);
  const [start, stop, by] = bounds.map((bound) => {
    if (bound === null) return null;
    if (!isInt(bound)) throw typeFault("a slice takes whole numbers, not", bound);
    return Number(bound);
  }) as [number | null, number | null, number | null];
  const step = by ?? 1;
  if (step === 0) throw new TemplateError("a slice's step cannot be zero");
  const [low, high] = step > 0 ? [0, items.length] : [-1, items.length - 1];
  const clamp = (bound: number | null, otherwise: number) =>
    bound === null ? otherwise : Math.min(high, Math.max(low, bound < 0 ? bound + items.length : bound));
  const [from, to] = [clamp(start, step > 0 ? low : high), clamp(stop, step > 0 ? high : low)];
  if (object instanceof Range) {
    const at = (i: number) => object.start + i * object.step;
    return new Range(at(from), at(to), object.step * step);
  }
  fits(items.length);
  const picked: unknown[] = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) picked.push(items[i]);
  if (typeof object === "string") return picked.join("");
  return object instanceof Tuple ? new Tuple(picked) : picked;
}
