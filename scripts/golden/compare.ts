// Whether a golden file that was made again is the one that is kept.

import { readFileSync } from "node:fs";
import { openSafetensors } from "../../src/files/safetensors.ts";

/** Keys that are not compared: versions, and what float32 loses, which is noise. */
const IGNORED = ["made_with", "bitsandbytes", "transformers_version", "spread"];

export type Comparison =
  | {
      readonly same: true;
      /** The largest relative distance; 0 for the same numbers. */
      readonly distance: number;
      /** Keys that the maker has come to write since. */
      readonly added: readonly string[];
    }
  | { readonly same: false; readonly why: string };

/** Compares by bytes, and where those differ and `tolerance` allows it, by numbers. */
export function compareFiles(kept: string, made: string, tolerance: number | null): Comparison {
  const [a, b] = [readFileSync(kept), readFileSync(made)];
  if (a.equals(b)) return { same: true, distance: 0, added: [] };
  try {
    if (kept.endsWith(".safetensors")) return tensors(kept, made, tolerance);
    if (kept.endsWith(".json")) return values(JSON.parse(a.toString()), JSON.parse(b.toString()), tolerance);
  } catch (error) {
    return { same: false, why: String(error) };
  }
  return { same: false, why: `expected the bytes kept, found ${b.length} others` };
}

class Different extends Error {}

const different = (at: string, expected: unknown, found: unknown): never => {
  throw new Different(`${at || "the file"}: expected ${brief(expected)}, found ${brief(found)}`);
};

const brief = (value: unknown): string => {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};

function values(kept: unknown, made: unknown, tolerance: number | null): Comparison {
  let largest = 0;
  const added = new Set<string>();
  const walk = (a: unknown, b: unknown, at: string, scale: number): void => {
    if (typeof a === "number" && typeof b === "number") {
      if (a === b) return;
      const distance = Math.abs(a - b) / (scale || 1);
      if (tolerance === null || !(distance <= tolerance)) different(at, a, b);
      largest = Math.max(largest, distance);
    } else if (Array.isArray(a) && Array.isArray(b)) {
      if (a.length !== b.length) different(`${at}.length`, a.length, b.length);
      const numbers = a.filter((item): item is number => typeof item === "number");
      const most = numbers.length > 1 ? Math.max(...numbers.map(Math.abs)) : 0;
      for (const [i, item] of a.entries()) walk(item, b[i], `${at}[${i}]`, most || Math.abs(item));
    } else if (isObject(a) && isObject(b)) {
      for (const key of Object.keys(b)) if (!(key in a) && b[key] !== null) added.add(key);
      for (const key of Object.keys(a).filter((name) => !IGNORED.includes(name)))
        walk(a[key], b[key], at ? `${at}.${key}` : key, Math.abs(Number(a[key])));
    } else if ((a ?? null) !== (b ?? null)) different(at, a, b);
  };
  try {
    walk(kept, made, "", 1);
  } catch (error) {
    if (error instanceof Different) return { same: false, why: error.message };
    throw error;
  }
  return { same: true, distance: largest, added: [...added] };
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function tensors(kept: string, made: string, tolerance: number | null): Comparison {
  using a = openSafetensors(kept);
  using b = openSafetensors(made);
  const found = { same: true as const, distance: 0, added: [] };
  const shapes = (file: typeof a) =>
    Object.fromEntries(
      [...file.tensors].sort(([x], [y]) => (x < y ? -1 : 1)).map(([name, { dtype, shape }]) => [name, [dtype, shape]]),
    );
  const headers = values(shapes(a), shapes(b), null);
  if (!headers.same) return headers;
  if (headers.added.length > 0)
    return { same: false, why: `expected the tensors kept, found also ${headers.added.join(", ")}` };
  for (const [name, entry] of a.tensors) {
    const read = (file: typeof a) => {
      const bytes = new Uint8Array(entry.bytes);
      file.readInto(name, bytes);
      return bytes;
    };
    const [x, y] = [read(a), read(b)];
    if (Buffer.compare(x, y) === 0) continue;
    if (tolerance === null || entry.dtype !== "f32")
      return { same: false, why: `${name}: expected the bytes kept, found others` };
    const [p, q] = [new Float32Array(x.buffer), new Float32Array(y.buffer)];
    const scale = p.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const distance = p.reduce((most, value, i) => Math.max(most, Math.abs(value - q[i]!) / scale), 0);
    if (!(distance <= tolerance))
      return { same: false, why: `${name}: expected at most ${tolerance} apart, found ${distance.toExponential(1)}` };
    found.distance = Math.max(found.distance, distance);
  }
  return found;
}
