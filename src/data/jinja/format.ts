// Numbers as texts: "%d of %s" % values, "{:>8}".format(value), and rounding to decimal places, all as in Python.

import { type Float, numberText } from "../json.ts";
import { TemplateError } from "./lexer.ts";
import { charge, fits } from "./limits.ts";
import { attributeOf, itemOf } from "./operators.ts";
import {
  bigOf,
  charsOf,
  dictGet,
  doubleOf,
  isDict,
  isFloat,
  isInt,
  isNumber,
  lengthOf,
  type Named,
  Range,
  reprOf,
  Tuple,
  textOf,
  typeFault,
  Undefined,
} from "./values.ts";

/** A double with a number of decimal places, exactly: halves go to the even digit. */
export function fixedText(value: number, places: number): string {
  if (!Number.isFinite(value)) return numberText(value);
  if (places > 400) throw new TemplateError("more than 400 decimal places");
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, Math.abs(value));
  const bits = view.getBigUint64(0);
  const exponent = Number(bits >> 52n);
  const mantissa = (bits & 0xfffffffffffffn) | (exponent === 0 ? 0n : 1n << 52n);
  const shift = Math.max(exponent, 1) - 1075;
  const scaled = mantissa * 10n ** BigInt(Math.max(places, 0));
  const unit = (10n ** BigInt(Math.max(-places, 0))) << BigInt(Math.max(-shift, 0));
  const dividend = shift > 0 ? scaled << BigInt(shift) : scaled;
  let whole = dividend / unit;
  const twice = (dividend % unit) * 2n;
  if (twice > unit || (twice === unit && whole % 2n === 1n)) whole += 1n;
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  if (places <= 0) return `${sign}${whole * 10n ** BigInt(-places)}`;
  const digits = String(whole).padStart(places + 1, "0");
  return `${sign}${digits.slice(0, -places)}.${digits.slice(-places)}`;
}

type Spec = {
  readonly flags: string;
  readonly width: number;
  readonly precision: number | null;
  readonly type: string;
};

const exponential = (value: number, places: number): string =>
  value.toExponential(Math.min(places, 100)).replace(/e([+-])(\d)$/, "e$10$2");

function general(value: number, precision: number, alternate: boolean): string {
  const digits = precision === 0 ? 1 : precision;
  const exponent = value === 0 ? 0 : Number(value.toExponential(Math.min(digits - 1, 100)).split("e")[1]);
  const text = exponent < -4 || exponent >= digits ? exponential(value, digits - 1) : fixedText(value, digits - 1 - exponent);
  return alternate || !text.includes(".") ? text : text.replace(/\.?0+(?=e|$)/, "");
}

/** A number by its conversion, without sign and padding. */
function magnitude(value: number | bigint | boolean | Float, { type, precision, flags }: Spec): string {
  const kind = type.toLowerCase();
  let text: string;
  if ("dixo".includes(kind) || kind === "b") {
    const whole = isInt(value) ? bigOf(value) : BigInt(Math.trunc(doubleOf(value)));
    const base = { x: 16, o: 8, b: 2 }[kind] ?? 10;
    const digits = (whole < 0n ? -whole : whole).toString(base).padStart(precision ?? 0, "0");
    text = flags.includes("#") && base !== 10 ? `0${kind}${digits}` : digits;
  } else {
    const number = Math.abs(doubleOf(value));
    if (!Number.isFinite(number)) text = numberText(number);
    else if (kind === "f") text = fixedText(number, precision ?? 6);
    else if (kind === "e") text = exponential(number, precision ?? 6);
    else if (kind === "%") text = `${fixedText(number * 100, precision ?? 6)}%`;
    else text = general(number, precision ?? 6, flags.includes("#"));
  }
  return /[XEFG]/.test(type) ? text.toUpperCase() : text;
}

const isNegative = (value: unknown): boolean => isNumber(value) && (doubleOf(value) < 0 || Object.is(doubleOf(value), -0));

const PERCENT = /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?[hlL]?([\s\S]|$)/g;

/** text % values. */
export function formatPercent(text: string, values: unknown): string {
  const items = values instanceof Tuple ? values.items : [values];
  let next = 0;
  let byName = false;
  const take = (): unknown => {
    if (next >= items.length) throw new TemplateError("not enough arguments for format string");
    return items[next++];
  };
  charge(text.length >> 6);
  const result = text.replace(PERCENT, (whole, key: string | undefined, flags: string, w, p, type: string) => {
    if (type === "%") return "%";
    if (key !== undefined && !isDict(values)) throw new TemplateError("format requires a mapping");
    byName ||= key !== undefined;
    const width = w === "*" ? Number(take()) : Number(w ?? 0);
    const precision = p === undefined ? null : p === "*" ? Number(take()) : Number(p);
    const value = key === undefined ? take() : dictGet(values as Record<string, unknown>, key);
    if (value === undefined) throw new TemplateError(`the format has no value for '${key}'`);
    fits(width);
    const spec = { flags, width, precision, type };
    let [sign, body] = ["", ""];
    if (type === "s" || type === "r" || type === "a") {
      const chars = charsOf(type === "s" ? textOf(value) : reprOf(value));
      body = chars.slice(0, precision ?? chars.length).join("");
    } else if (type === "c") body = typeof value === "string" ? value : String.fromCodePoint(Number(value));
    else if (type !== "" && "diuxXoeEfFgG".includes(type)) {
      if (!isNumber(value) || ("xXo".includes(type) && isFloat(value))) throw typeFault(`%${type} takes a number, not`, value);
      sign =
        isNegative(value) && (!isInt(value) || bigOf(value) !== 0n)
          ? "-"
          : flags.includes("+")
            ? "+"
            : flags.includes(" ")
              ? " "
              : "";
      body = magnitude(value, { ...spec, type: type === "u" ? "d" : type });
    } else throw new TemplateError(`unsupported format ${JSON.stringify(whole)}`);
    const missing = Math.max(0, width - lengthOf(sign + body));
    if (flags.includes("-")) return sign + body + " ".repeat(missing);
    return flags.includes("0") && !"sracr".includes(type)
      ? sign + "0".repeat(missing) + body
      : " ".repeat(missing) + sign + body;
  });
  if (
    next < items.length &&
    !byName &&
    !(isDict(values) || Array.isArray(values) || values instanceof Undefined || values instanceof Range)
  )
    throw new TemplateError("not all arguments converted during string formatting");
  return result;
}

const SPEC = /^(?:([\s\S])?([<>=^]))?([-+ ]?)(#?)(0?)(\d*)([,_]?)(?:\.(\d+))?([a-zA-Z%]?)$/u;

/** format(value, spec). */
function formatSpec(value: unknown, spec: string): string {
  if (spec === "") return textOf(value);
  const found = SPEC.exec(spec);
  if (!found || value instanceof Undefined) throw new TemplateError(`invalid format ${JSON.stringify(spec)}`);
  const [, fill, align, plus, alternate, zero, w, group, p, type] = found as unknown as string[];
  const width = Number(w || 0);
  fits(width);
  const precision = p === undefined ? null : Number(p);
  let [sign, body] = ["", ""];
  const numeric = isNumber(value) && typeof value !== "boolean";
  if (numeric || (typeof value === "boolean" && type !== "")) {
    sign = isNegative(value) ? "-" : plus === "+" || plus === " " ? plus : "";
    const float = isFloat(value);
    if (type === "" && !float) body = magnitude(value, { flags: "", width, precision: null, type: "d" });
    else if (type === "" && precision === null) body = numberText(value as number).replace("-", "");
    else if (type === "" || !"bdoxXeEfFgGn%".includes(type!))
      throw new TemplateError(`the format ${JSON.stringify(spec)} is not supported`);
    else if (float && "bdoxX".includes(type!)) throw new TemplateError(`the format code '${type}' takes a whole number`);
    else body = magnitude(value, { flags: alternate!, width, precision, type: type === "n" ? (float ? "g" : "d") : type! });
    if (group) body = body.replace(/^\d+/, (digits) => digits.replace(/\B(?=(\d{3})+$)/g, group));
  } else {
    if (typeof value !== "string" && typeof value !== "boolean")
      throw typeFault(`the format ${JSON.stringify(spec)} is not possible for`, value);
    if ((type !== "" && type !== "s") || plus || group || align === "=")
      throw new TemplateError(`the format ${JSON.stringify(spec)} takes a number`);
    body = charsOf(textOf(value))
      .slice(0, precision ?? undefined)
      .join("");
  }
  const missing = Math.max(0, width - lengthOf(sign + body));
  const by = fill ?? (zero ? "0" : " ");
  const where = align ?? (zero && numeric ? "=" : numeric ? ">" : "<");
  if (where === "=") return sign + by.repeat(missing) + body;
  const before = where === "<" ? 0 : where === ">" ? missing : missing >> 1;
  return by.repeat(before) + sign + body + by.repeat(missing - before);
}

/** text.format(...). */
export function formatBraces(
  text: string,
  args: readonly unknown[],
  named: Named,
  counter = { next: 0, byNumber: false },
): string {
  return text.replace(/\{\{|\}\}|\{((?:[^{}]|\{[^{}]*\})*)\}|[{}]/g, (whole, field: string | undefined) => {
    if (whole === "{{" || whole === "}}") return whole[0]!;
    if (field === undefined) throw new TemplateError("a single brace in a format");
    const [, path = "", conversion, spec = ""] = /^([^!:]*)(?:!([rsa]))?(?::([\s\S]*))?$/.exec(field) ?? [];
    const [, first = "", rest = ""] = /^([^.[]*)(.*)$/s.exec(path)!;
    if (/^\d+$/.test(first)) counter.byNumber = true;
    if (counter.byNumber && (counter.next > 0 || first === ""))
      throw new TemplateError("a format cannot number some fields and not others");
    let value = first === "" ? args[counter.next++] : /^\d+$/.test(first) ? args[Number(first)] : named.get(first);
    if (value === undefined) throw new TemplateError(`the format has no value for '{${path}}'`);
    for (const [step, attribute, index] of rest.matchAll(/\.([^.[]+)|\[([^\]]+)\]/g)) {
      if (attribute?.startsWith("_")) throw new TemplateError(`access to '${step}' is refused`);
      value =
        attribute === undefined
          ? itemOf(value, /^\d+$/.test(index!) ? Number(index) : index, null)
          : attributeOf(value, attribute, null);
    }
    const shown = conversion === undefined ? value : conversion === "s" ? textOf(value) : reprOf(value);
    return formatSpec(shown, spec.includes("{") ? formatBraces(spec, args, named, counter) : spec);
  });
}
