// How alike two texts are, from 0 to 1, by the names that OpenAI's graders have for it. fuzzy_match is rapidfuzz's `ratio`
// (divided by 100); rouge_1 to rouge_5 and rouge_l are the F measures of Google's rouge-score without stemming (Lin 2004).

import { range, sum } from "../base/shape.ts";

const fuzzy = (a: string, b: string): number => {
  const [one, other] = [[...a], [...b]];
  const all = one.length + other.length;
  return all === 0 ? 1 : (2 * commonLength(one, other)) / all;
};

export const SIMILARITIES = {
  fuzzy_match: fuzzy,
  rouge_1: (a: string, b: string) => rouge(1, a, b),
  rouge_2: (a: string, b: string) => rouge(2, a, b),
  rouge_3: (a: string, b: string) => rouge(3, a, b),
  rouge_4: (a: string, b: string) => rouge(4, a, b),
  rouge_5: (a: string, b: string) => rouge(5, a, b),
  rouge_l: (a: string, b: string) => {
    const [one, other] = [wordsOf(a), wordsOf(b)];
    return fMeasure(commonLength(one, other), one.length, other.length);
  },
};
export type Similarity = keyof typeof SIMILARITIES;

/** Pairs of places that are compared, at most: a few milliseconds. */
const MOST_PAIRS = 2 ** 28;

/** Texts that are too long to be compared. */
export class TooLong extends Error {}

/** Length of the longest common subsequence, 32 places of the shorter at a time (Hyyrö 2004). Throws TooLong. */
function commonLength<T>(a: readonly T[], b: readonly T[]): number {
  const [short, long] = a.length < b.length ? [a, b] : [b, a];
  if (short.length * long.length > MOST_PAIRS) throw new TooLong(`texts of ${short.length} and ${long.length} parts`);
  const words = Math.ceil(short.length / 32);
  const places = new Map<T, Uint32Array>();
  for (const [i, of] of short.entries()) {
    const bits = places.get(of) ?? new Uint32Array(words);
    places.set(of, bits);
    bits[i >> 5] = bits[i >> 5]! | (1 << (i & 31));
  }
  const left = new Uint32Array(words).fill(0xffff_ffff); // a place is 0 once the common subsequence has grown there
  for (const of of long) {
    const bits = places.get(of);
    if (!bits) continue;
    let carry = 0;
    for (let word = 0; word < words; word++) {
      const before = left[word]!;
      const sum = before + ((before & bits[word]!) >>> 0) + carry;
      carry = sum > 0xffff_ffff ? 1 : 0;
      left[word] = sum | (before & ~bits[word]!);
    }
  }
  return short.filter((_, i) => ((left[i >> 5]! >>> (i & 31)) & 1) === 0).length;
}

/** Letters and digits of ASCII alone, as rouge-score's tokenizer has it. */
const wordsOf = (text: string): string[] =>
  text
    .toLowerCase()
    .split(/[^a-z0-9]+/)
    .filter(Boolean);

function rouge(n: number, a: string, b: string): number {
  const [one, other] = [a, b].map((text) => {
    const words = wordsOf(text);
    const grams = range(Math.max(0, words.length - n + 1)).map((i) => words.slice(i, i + n).join(" "));
    return Map.groupBy(grams, (gram) => gram);
  }) as [Map<string, string[]>, Map<string, string[]>];
  const count = (of: Map<string, string[]>) => sum([...of.values()].map(({ length }) => length));
  const shared = sum([...one].map(([gram, all]) => Math.min(all.length, other.get(gram)?.length ?? 0)));
  return fMeasure(shared, count(one), count(other));
}

const fMeasure = (shared: number, one: number, other: number): number => (shared === 0 ? 0 : (2 * shared) / (one + other));
