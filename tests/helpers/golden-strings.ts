// What transformers makes of seeded strings (tests/golden/tokenizers/strings.json), a byte for each string.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Tokenizer } from "../../src/data/tokenizer.ts";

export type GoldenStrings = {
  /** The class that AutoTokenizer took, and the strings that it reads otherwise than tokenizer.json alone says. */
  readonly class: string;
  readonly otherwise: number;
  readonly seed: number;
  /** In hexadecimal. */
  readonly ids: string;
};

export const STRINGS = 5000;
export const goldenStrings: Readonly<Record<string, GoldenStrings>> = JSON.parse(
  readFileSync(join(import.meta.dir, "../golden/tokenizers/strings.json"), "utf8"),
);

export const seedOf = (name: string): number => Number(Bun.hash.crc32(name));

/** FNV-1a over the ids, folded to a byte. */
function digest(ids: readonly number[]): number {
  let value = 0x811c9dc5;
  for (const id of ids) value = Math.imul(value ^ id, 0x01000193) >>> 0;
  return (value ^ (value >>> 8) ^ (value >>> 16) ^ (value >>> 24)) & 0xff;
}

/** The strings of which a tokenizer makes other ids. */
export function compareStrings(
  strings: readonly string[],
  golden: GoldenStrings,
  tokenizer: Pick<Tokenizer, "encode">,
): string[] {
  const bytes = Buffer.from(golden.ids, "hex");
  if (bytes.length !== strings.length) throw new Error(`strings.json has ${bytes.length} strings, expected ${strings.length}`);
  return strings.filter((text, i) => digest(tokenizer.encode(text)) !== bytes[i]);
}
