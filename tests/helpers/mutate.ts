// Damage, seeded: to bytes, and to values of which the parts are known.

import type { Rng } from "../../src/base/rng.ts";

/** Bytes that mean something to JSON, TOML, msgpack or UTF-8. */
const TELLING = Buffer.from("\"'\\{}[]:,=#\n\r\t \0u0dDeE+-._1\u00c0\u00c1\u00ff\u00df\u00c7\u00dc\ufeff\ud83d\ude00");
const WORDS = [
  "null",
  "true",
  "[]",
  "{}",
  '""',
  "1e999",
  "-1e308",
  "9007199254740993",
  "nan",
  "inf",
  "-0",
  "1979-05-27T07:32:00Z",
  "\n\n",
  "\u2028",
  "[[",
  "'''",
  '"""',
].map((word) => Buffer.from(word));

/** Some bytes changed, left out, put in, doubled, taken from `other`, or all after a place cut off. */
export function mutateBytes(bytes: Uint8Array, rng: Rng, other: Uint8Array = bytes): Buffer {
  let out = Buffer.from(bytes);
  for (let n = 1 + rng.below(3); n > 0; n--) {
    const at = rng.below(out.length + 1);
    const to = Math.min(out.length, at + rng.below(12));
    const far = rng.below(other.length + 1);
    const between = [
      TELLING.subarray(rng.below(TELLING.length)).subarray(0, 1),
      Buffer.of(rng.below(256)),
      Buffer.alloc(0),
      WORDS[rng.below(WORDS.length)]!,
      Buffer.concat([out.subarray(at, to), out.subarray(at, to)]),
      Buffer.from(other.subarray(far, far + rng.below(60))),
      Buffer.alloc(rng.below(300), TELLING[rng.below(TELLING.length)]),
    ];
    out =
      rng.below(8) === 0
        ? out.subarray(0, at)
        : Buffer.concat([out.subarray(0, at), between[rng.below(between.length)]!, out.subarray(to)]);
  }
  return out;
}

const nested = (depth: number): unknown => Array.from({ length: depth }).reduce<unknown>((inner) => [inner], 0);

/** Values of every kind, the odd ones of each. */
const odd = (rng: Rng): unknown =>
  [
    null,
    true,
    -1,
    0.5,
    2 ** 53,
    -(2 ** 31),
    1e308,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    "",
    "../../etc/passwd",
    "x".repeat(5000),
    "\u0000",
    "__proto__",
    [],
    {},
    [[]],
    { length: 3 },
    nested(40),
    new Uint8Array(3),
    new Int32Array(2),
    new Float32Array([Number.NaN]),
  ][rng.below(22)];

/** A copy of a value with one of its parts, at any depth, replaced, removed, renamed or doubled. */
export function mutateValue(value: unknown, rng: Rng): unknown {
  const isTable = typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
  if (rng.below(6) === 0 || (!Array.isArray(value) && !isTable)) return odd(rng);
  if (Array.isArray(value)) {
    if (value.length === 0) return [odd(rng)];
    const at = rng.below(value.length);
    const how = rng.below(4);
    if (how === 0) return value.toSpliced(at, 1);
    if (how === 1) return value.toSpliced(at, 0, value[at]);
    return value.with(at, mutateValue(value[at], rng));
  }
  const entries = Object.entries(value as object);
  if (entries.length === 0) return { odd: odd(rng) };
  const [key, of] = entries[rng.below(entries.length)]!;
  const rest = entries.filter(([other]) => other !== key);
  const how = rng.below(5);
  if (how === 0) return Object.fromEntries(rest);
  if (how === 1) return Object.fromEntries([...rest, [`${key}s`, of]]);
  if (how === 2) return Object.fromEntries([...entries, ["more", odd(rng)]]);
  return Object.fromEntries(entries.map(([name, old]) => [name, name === key ? mutateValue(old, rng) : old]));
}

/** How much of a processor's time a reader may take with a few kilobytes of anything; other programs do not count. */
const LONGEST_MS = 2_000;

/** Runs `read`; what it throws must be of one of these classes. Null where it throws nothing. */
export function thrown(
  what: () => string,
  classes: readonly (new (...of: never[]) => Error)[],
  read: () => void,
): Error | null {
  const started = process.cpuUsage();
  const error = caught(read);
  const { user, system } = process.cpuUsage(started);
  const took = (user + system) / 1000;
  if (took > LONGEST_MS) throw new Error(`${what()}: took ${took.toFixed(0)} ms`);
  if (error === null) return null;
  if (classes.some((Kind) => error instanceof Kind) && error.message.length > 0) return error;
  throw new Error(`${what()}: ${error.stack}`, { cause: error });
}

function caught(read: () => void): Error | null {
  try {
    read();
    return null;
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}
