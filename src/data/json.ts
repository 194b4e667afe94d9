// JSON with Python's meaning: whole numbers keep all their digits, 1.0 stays a float, and keys keep the order of the file.
//
// What JavaScript's own values can say is left to them: strings, booleans, null, arrays, plain objects, whole numbers up to
// 2^53 and fractions are what JSON.parse makes of them. Only what it would change has another form: a longer whole number is
// a bigint, a float with a whole value is a `Float`, and an object whose keys look like whole numbers bears their order under
// a symbol, which `{ ...rest }` and JSON.stringify pass over in peace. A text that has none of that is JSON.parse's alone.

/** A float whose value is whole: 1.0, -0.0, 1e20. Fractions are plain numbers. */
export class Float {
  constructor(readonly value: number) {}
  /** For callers that use JSON.stringify in spite of all. */
  toJSON(): number {
    return this.value;
  }
}

/** A double as a value: whole ones bear a mark, for a plain whole number is an int. */
export const floatOf = (value: number): number | Float => (Number.isInteger(value) ? new Float(value) : value);

const ORDER = Symbol("order of keys");
type Ordered = { [ORDER]?: readonly string[] };

/** Keys in the order of the file; what was added later follows, what was taken away is gone. */
export function keysOf(object: object): readonly string[] {
  const order = (object as Ordered)[ORDER];
  const keys = Object.keys(object);
  if (!order) return keys;
  const known = new Set(order);
  return [...order.filter((key) => Object.hasOwn(object, key)), ...keys.filter((key) => !known.has(key))];
}

/** An object with these entries, which keeps their order. */
export function objectOf(entries: readonly (readonly [string, unknown])[]): Readonly<Record<string, unknown>> {
  const object = Object.fromEntries(entries);
  if (entries.some(([key]) => /^\d+$/.test(key))) (object as Ordered)[ORDER] = [...new Set(entries.map(([key]) => key))];
  return object;
}

/** Signs that JSON.parse may change something: a number of 16 digits, with an exponent or a whole fraction; a key of digits. */
const RISKY = /(?:^|[:,[])\s*-?(?:[\d.]{16}|\d+\.0+(?!\d)|\d+(?:\.\d+)?[eE])|"(?:\d|\\u003\d)+"\s*:/;

/**
 * The value of a JSON text. Of equal keys the last one counts, in the place of the first, as in Python. Throws a SyntaxError
 * for what is no JSON, for NaN and Infinity, and for a number beyond a double's range.
 */
export function parseJson(text: string): unknown {
  if (!RISKY.test(text)) return JSON.parse(text);
  JSON.parse(text); // its words for what is no JSON; from here on the text is known to be right
  return new Reader(text).value();
}

/** The value of a text that `stringifyJson` made: it knows NaN and Infinity, too. */
export const parseOwnJson = (text: string): unknown =>
  RISKY.test(text) || /NaN|Infinity/.test(text) ? new Reader(text).value() : JSON.parse(text);

/** The end of a key, or of a text before an escaped quote and a colon within another text. */
const KEY_END = /(?<!\\)"[ \t\n\r]*:/g;

/**
 * A key that an object in a JSON text has twice, of which `value`, the text's value, has the last alone; null for none. Most
 * texts are known not to have one by the number of their keys.
 */
export function keyTwice(text: string, value: unknown): string | null {
  const isCounted = !text.includes('\\\\"');
  if (isCounted && (text.match(KEY_END)?.length ?? 0) === keysIn(value)) return null;
  return new Reader(text).firstTwice();
}

function keysIn(value: unknown): number {
  if (typeof value !== "object" || value === null || value instanceof Float) return 0;
  if (Array.isArray(value)) return value.reduce((all: number, of) => all + keysIn(of), 0);
  let count = 0;
  for (const key of Object.keys(value)) count += 1 + keysIn((value as Record<string, unknown>)[key]);
  return count;
}

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?\d+(\.\d+)?([eE][+-]?\d+)?/y;

const SPECIAL = [
  ["NaN", Number.NaN],
  ["Infinity", Number.POSITIVE_INFINITY],
  ["-Infinity", Number.NEGATIVE_INFINITY],
] as const;

/** Reads a text that JSON.parse accepts, but for numbers that are not finite. Recursion goes as deep as JSON.parse's own. */
class Reader {
  #at = 0;
  #twice: string | null = null;
  constructor(readonly text: string) {}

  /** The first key that an object has a second time; null for none. */
  firstTwice(): string | null {
    this.value();
    return this.#twice;
  }

  value(): unknown {
    this.#space();
    switch (this.text[this.#at]) {
      case "{":
        return this.#object();
      case "[":
        return this.#array();
      case '"':
        return JSON.parse(this.#quoted());
      case "t":
        this.#at += 4;
        return true;
      case "f":
        this.#at += 5;
        return false;
      case "n":
        this.#at += 4;
        return null;
      default: {
        const special = SPECIAL.find(([name]) => this.text.startsWith(name, this.#at));
        if (!special) return numberOf(this.#take(NUMBER));
        this.#at += special[0].length;
        return special[1];
      }
    }
  }

  #object(): unknown {
    const entries: [string, unknown][] = [];
    const known = new Set<string>();
    let digits = false;
    this.#items("}", () => {
      const key: string = JSON.parse(this.#quoted());
      digits ||= /^\d+$/.test(key);
      if (known.has(key)) this.#twice ??= key;
      known.add(key);
      this.#space();
      this.#at++; // the colon
      entries.push([key, this.value()]);
    });
    return digits ? objectOf(entries) : Object.fromEntries(entries);
  }

  #array(): unknown[] {
    const items: unknown[] = [];
    this.#items("]", () => items.push(this.value()));
    return items;
  }

  #items(end: string, item: () => void): void {
    this.#at++;
    this.#space();
    while (this.text[this.#at] !== end) {
      item();
      this.#space();
      if (this.text[this.#at] === ",") this.#at++;
      this.#space();
    }
    this.#at++;
  }

  /** A string with its quotes: by hand, as a pattern fails at megabytes. */
  #quoted(): string {
    const from = this.#at++;
    const { length } = this.text;
    for (; this.#at < length && this.text[this.#at] !== '"'; this.#at++) if (this.text[this.#at] === "\\") this.#at++;
    return this.text.slice(from, ++this.#at);
  }

  #space(): void {
    this.#take(SPACE);
  }

  #take(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    const [found] = pattern.exec(this.text)!;
    this.#at += found.length;
    return found;
  }
}

function numberOf(text: string): unknown {
  if (/^-?\d+$/.test(text)) {
    const value = Number(text);
    return Number.isSafeInteger(value) ? value : BigInt(text);
  }
  const value = Number(text);
  if (!Number.isFinite(value)) throw new SyntaxError(`the number ${text.slice(0, 40)} is beyond the range of a float`);
  return floatOf(value);
}

export type JsonStyle = {
  readonly indent?: string | null;
  readonly item?: string;
  readonly key?: string;
  readonly ascii?: boolean;
  readonly sort?: boolean;
};

/**
 * A value that parseJson made as JSON again: the same digits, order and kinds; without spaces, as JSON.stringify. `sort`: keys
 * in the order of their characters, so that what says the same is the same text.
 */
export const stringifyJson = (value: unknown, sort = false): string | undefined =>
  value === undefined ? undefined : writeJson(value, { item: ",", key: ":", sort }, keysAndValues);

const keysAndValues = (value: object): readonly (readonly [string, unknown])[] | null =>
  Array.isArray(value) ? null : keysOf(value).map((key) => [key, (value as Record<string, unknown>)[key]] as const);

/** Of an object its keys, as texts, with their values; null for a list, and a text for what is one. */
export type EntriesOf = (value: object) => readonly (readonly [string, unknown])[] | string | null;

/** Writes as Python's json.dumps. */
export function writeJson(value: unknown, style: JsonStyle, entriesOf: EntriesOf): string {
  const { indent = null } = style;
  const [item, colon] = [style.item ?? (indent === null ? ", " : ","), style.key ?? ": "];
  const write = (part: unknown, margin: string): string => {
    if (typeof part === "string") return textJson(part, style.ascii ?? false);
    if (part === null || part === undefined) return "null";
    if (typeof part === "boolean") return String(part);
    if (typeof part === "number" || typeof part === "bigint" || part instanceof Float) return numberText(part, true);
    const entries = entriesOf(part as object);
    if (typeof entries === "string") return textJson(entries, style.ascii ?? false);
    const inner = indent === null ? "" : `${margin}${indent}`;
    const wrap = (open: string, parts: readonly string[], close: string): string => {
      if (parts.length === 0) return open + close;
      if (indent === null) return open + parts.join(item) + close;
      return `${open}\n${inner}${parts.join(`${item}\n${inner}`)}\n${margin}${close}`;
    };
    if (!entries)
      return wrap(
        "[",
        [...(part as Iterable<unknown>)].map((one) => write(one, inner)),
        "]",
      );
    const sorted = style.sort ? [...entries].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)) : entries;
    return wrap(
      "{",
      sorted.map(([key, one]) => `${textJson(key, style.ascii ?? false)}${colon}${write(one, inner)}`),
      "}",
    );
  };
  return write(value, "");
}

/** A text in quotes; half characters stay as they are, as Python has it. */
function textJson(text: string, ascii: boolean): string {
  const quoted = text.isWellFormed() ? JSON.stringify(text) : quote(text);
  return ascii ? quoted.replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`) : quoted;
}

const CONTROLS = "\\0-\\x1f";
const ESCAPED = new RegExp(`[${CONTROLS}"\\\\]`, "g");
const quote = (text: string): string => `"${text.replace(ESCAPED, (unit) => JSON.stringify(unit).slice(1, -1))}"`;

/** A number as Python prints it: 1, 1.0, 1e-07, 1e+16; in JSON the infinite ones have other names. */
export function numberText(value: number | bigint | Float, json = false): string {
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number" && Number.isInteger(value))
    return Number.isSafeInteger(value) ? String(value) : String(BigInt(value));
  const number = value instanceof Float ? value.value : value;
  if (Number.isNaN(number)) return json ? "NaN" : "nan";
  if (!Number.isFinite(number)) return `${number < 0 ? "-" : ""}${json ? "Infinity" : "inf"}`;
  const sign = number < 0 || Object.is(number, -0) ? "-" : "";
  const [digits, exponent] = Math.abs(number).toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < -4 || power >= 16) return `${sign}${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  const plain = String(Math.abs(number));
  const fixed = plain.includes("e") ? Math.abs(number).toFixed(digits.replace(".", "").length - 1 - power) : plain;
  return `${sign}${fixed.includes(".") ? fixed : `${fixed}.0`}`;
}
