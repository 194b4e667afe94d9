// Randomness that cannot be foreseen: tokens, names of runs and of temporary things. The only door to it; what is trained takes
// its randomness from seeds (rng.ts).

/** Lower-case letters and digits that look like nothing else: fit for subjects, file names, and to be read aloud. */
const ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789";

/** `length` characters of five random bits each. */
export function randomText(length: number): string {
  const bytes = crypto.getRandomValues(new Uint8Array(length));
  return Array.from(bytes, (byte) => ALPHABET[byte % ALPHABET.length]!).join("");
}

/** 160 bits: what a secret must have. */
export const randomToken = (): string => randomText(32);

/** A UUID. */
export const randomId = (): string => crypto.randomUUID();

/** 128 bits that no other has. */
export const randomNonce = (): Uint8Array => crypto.getRandomValues(new Uint8Array(16));

/** A seed where none is given: a whole number below 2^31. */
export const randomSeed = (): number => crypto.getRandomValues(new Uint32Array(1))[0]! >>> 1;
