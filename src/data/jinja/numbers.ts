// The filters round, int and float.

import { floatOf } from "../json.ts";
import { asInt } from "./args.ts";
import { fixedText } from "./format.ts";
import { TemplateError } from "./lexer.ts";
import { strip } from "./methods.ts";
import { bigOf, doubleOf, intOf, isInt, isNumber, present, typeFault } from "./values.ts";

export function rounded(value: unknown, precision: unknown, method: unknown): unknown {
  if (!isNumber(value)) throw typeFault("round is not possible for", value);
  const places = asInt("round", precision);
  if (method === "common") {
    if (!isInt(value)) return floatOf(places > 330 ? doubleOf(value) : Number(fixedText(doubleOf(value), places)));
    if (places >= 0) return intOf(bigOf(value));
    const unit = 10n ** BigInt(-places);
    const [half, whole] = [bigOf(value) * 2n, bigOf(value)];
    let low = whole / unit;
    if (whole < 0n && whole % unit !== 0n) low -= 1n;
    const over = half - low * unit * 2n;
    return intOf((over > unit || (over === unit && low % 2n !== 0n) ? low + 1n : low) * unit);
  }
  if (method !== "ceil" && method !== "floor") throw new TemplateError("method must be common, ceil or floor");
  return floatOf(Math[method](doubleOf(value) * 10 ** places) / 10 ** places);
}

const FLOAT_TEXT = /^[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[+-]?\d+)?$/i;

export function toFloat(value: unknown): number | null {
  present(value);
  if (isNumber(value)) return doubleOf(value);
  if (typeof value !== "string") return null;
  const text = strip(value, null, true, true);
  if (FLOAT_TEXT.test(text)) return Number(text.replaceAll("_", ""));
  const special = /^([+-]?)(inf(inity)?|nan)$/i.exec(text);
  if (!special) return null;
  return special[2]!.toLowerCase() === "nan"
    ? Number.NaN
    : special[1] === "-"
      ? Number.NEGATIVE_INFINITY
      : Number.POSITIVE_INFINITY;
}

export function toInt(value: unknown, otherwise: unknown, base: number): unknown {
  if (isInt(value)) return intOf(bigOf(value));
  if (typeof value === "string") {
    const text = strip(value, null, true, true)
      .toLowerCase()
      .replace(/(\d)_(?=\d)/g, "$1");
    const [, sign = "", digits = ""] = /^([+-]?)(.*)$/s.exec(text)!;
    const prefix = { 16: "0x", 8: "0o", 2: "0b" }[base];
    if (base === 10 && /^\d+$/.test(digits)) return intOf(BigInt(digits) * (sign === "-" ? -1n : 1n));
    const pattern = { 16: /^(0x)?[\da-f]+$/, 8: /^(0o)?[0-7]+$/, 2: /^(0b)?[01]+$/ }[base];
    if (pattern?.test(digits))
      return intOf(BigInt(digits.startsWith(prefix!) ? digits : `${prefix}${digits}`) * (sign === "-" ? -1n : 1n));
  }
  const number = toFloat(value);
  return number === null || !Number.isFinite(number) ? otherwise : intOf(BigInt(Math.trunc(number)));
}
