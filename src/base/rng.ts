// Seeded, counter-based randomness: the same numbers on every device, in any order of evaluation.
//
// `mix` is the 32-bit finaliser "lowbias32" (C. Wellons, hash prospector). Dropout hashes a 64-bit key for each row, so that
// a mask depends on (adapter seed, step, module, own row number, column) and never on a place in the batch. The kernels in
// ffi/native and kernels/triton compute the same function.

export function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A 32-bit hash of a list of 32-bit words. */
export const hash = (...words: readonly number[]): number =>
  words.reduce((h, word) => mix(h ^ mix((word + 0x9e3779b9) | 0)), 0);

/** 32 bits from a string (FNV-1a, then mixed): an adapter's name in its seed. */
export function hashText(text: string): number {
  let h = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) h = Math.imul(h ^ byte, 0x01000193);
  return mix(h);
}

/** The key of a row's dropout mask. */
export function dropoutRowKey(seed: number, step: number, module: number, row: number): readonly [number, number] {
  const k0 = mix(mix(mix(mix(seed) ^ step) ^ module) ^ row);
  return [k0, mix(k0 ^ 0x9e3779b9)];
}

/** 32 random bits of a column under a row's key; the element is kept when they are at least p * 2^32. */
export function dropoutBits([k0, k1]: readonly [number, number], column: number): number {
  let x = (column + k0) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d) ^ k1;
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A stream of numbers for initialisation and shuffles. */
export class Rng {
  #counter = 0;
  readonly #key: number;
  constructor(...words: readonly number[]) {
    this.#key = hash(...words);
  }
  /** 32 bits. */
  bits(): number {
    const counter = this.#counter++;
    return mix(mix(counter ^ this.#key) + this.#key + (counter >>> 16));
  }
  /** In [0, 1). */
  uniform(): number {
    return (this.bits() >>> 8) / 0x1000000;
  }
  /** In 0 .. n - 1. */
  below(n: number): number {
    return Math.floor(this.uniform() * n);
  }
  /** Standard normal (Box and Muller). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
  /** Fisher and Yates, in place. */
  shuffle<L extends { readonly length: number; [index: number]: unknown }>(items: L): L {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const item = items[i];
      items[i] = items[j];
      items[j] = item;
    }
    return items;
  }
}
