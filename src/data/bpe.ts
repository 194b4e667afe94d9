// Byte-pair encoding: a word's characters are merged, two neighbours at a time, in the order of the tokenizer's merges. Tokens
// are numbers of the vocabulary's words throughout, and words that come again are not merged again.

/** The model of a tokenizer.json, resolved and checked (tokenizer-json.ts). */
export type BpeModel = {
  readonly vocab: Readonly<Record<string, number>>;
  readonly merges: readonly (string | readonly string[])[];
  readonly unk_token?: string | null;
  readonly byte_fallback?: boolean;
  readonly fuse_unk?: boolean;
  readonly ignore_merges?: boolean;
};

/** What a word becomes. */
export type MergedWord = {
  readonly ids: readonly number[];
  /** The vocabulary's words that the ids stand for. */
  readonly tokens: readonly string[];
  /** UTF-16 units of the word that was merged. */
  readonly length: number;
  /** The tokens put together are the word. */
  readonly isSpelt: boolean;
};

/** The merges by their two tokens: hashed, with open addressing; half of the slots at least are free. */
class Merges {
  readonly #mask: number;
  readonly #pairs: Int32Array;
  readonly #ranks: Int32Array;

  constructor(count: number) {
    const slots = 2 ** Math.ceil(Math.log2(2 * count + 2));
    this.#mask = slots - 1;
    this.#pairs = new Int32Array(2 * slots);
    this.#ranks = new Int32Array(slots).fill(-1);
  }

  set(left: number, right: number, rank: number): void {
    const slot = this.#slotOf(left, right);
    this.#pairs[2 * slot] = left;
    this.#pairs[2 * slot + 1] = right;
    this.#ranks[slot] = rank;
  }

  /** -1 where there is no such merge. */
  rankOf(left: number, right: number): number {
    return this.#ranks[this.#slotOf(left, right)]!;
  }

  #slotOf(left: number, right: number): number {
    const hash = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca77);
    let slot = (hash ^ (hash >>> 15)) & this.#mask;
    while (this.#ranks[slot]! >= 0 && (this.#pairs[2 * slot] !== left || this.#pairs[2 * slot + 1] !== right))
      slot = (slot + 1) & this.#mask;
    return slot;
  }
}

/** Candidates of a word, the first on top: a merge's rank, then the place of its left token. A heap that grows. */
class Candidates {
  #all = new Float64Array(64);
  length = 0;

  push(rank: number, place: number): void {
    if (this.length === this.#all.length) {
      const larger = new Float64Array(2 * this.length);
      larger.set(this.#all);
      this.#all = larger;
    }
    const all = this.#all;
    const value = rank * PLACES + place;
    let at = this.length++;
    for (let above = (at - 1) >> 1; at > 0 && all[above]! > value; above = (at - 1) >> 1) {
      all[at] = all[above]!;
      at = above;
    }
    all[at] = value;
  }

  pop(): number {
    const all = this.#all;
    const top = all[0]!;
    const last = all[--this.length]!;
    let at = 0;
    for (let below = 1; below < this.length; below = 2 * at + 1) {
      if (below + 1 < this.length && all[below + 1]! < all[below]!) below++;
      if (all[below]! >= last) break;
      all[at] = all[below]!;
      at = below;
    }
    all[at] = last;
    return top;
  }
}

/** More than a word has characters; a rank times it is far below 2^53. */
const PLACES = 2 ** 28;
/** Words whose tokens are kept at hand, and their length at most; when it is full, all are forgotten. */
const [KEPT_WORDS, KEPT_LENGTH] = [1 << 16, 256];

export class Bpe {
  /** The vocabulary: words and ids by their numbers here, and numbers by words. */
  readonly #words: readonly string[];
  readonly #ids: readonly number[];
  readonly #numbers: ReadonlyMap<string, number>;
  readonly #merges: Merges;
  /** By the rank of a merge, the token that it makes. */
  readonly #made: Int32Array;
  readonly #unknown: number | null;
  readonly #kept = new Map<string, MergedWord>();
  readonly #candidates = new Candidates();

  /** `spell` makes of a word what is merged: characters for bytes. */
  constructor(
    private readonly model: BpeModel,
    private readonly spell: (word: string) => string,
  ) {
    const entries = Object.entries(model.vocab);
    this.#words = entries.map(([word]) => word);
    this.#ids = entries.map(([, id]) => id);
    this.#numbers = new Map(this.#words.map((word, number) => [word, number]));
    this.#unknown = model.unk_token == null ? null : this.#numbers.get(model.unk_token)!;
    this.#merges = new Merges(model.merges.length);
    this.#made = new Int32Array(model.merges.length);
    for (const [rank, merge] of model.merges.entries()) {
      const [left, right] = typeof merge === "string" ? merge.split(" ", 2) : merge;
      this.#merges.set(this.#numbers.get(left!)!, this.#numbers.get(right!)!, rank);
      this.#made[rank] = this.#numbers.get(left! + right!)!;
    }
  }

  /** The tokens of a word. */
  merged(word: string): MergedWord {
    const kept = this.#kept.get(word);
    if (kept) return kept;
    const made = this.#make(this.spell(word));
    if (word.length <= KEPT_LENGTH) {
      if (this.#kept.size === KEPT_WORDS) this.#kept.clear();
      this.#kept.set(copyOf(word), made);
    }
    return made;
  }

  #make(word: string): MergedWord {
    const numbers = this.#tokensOf(word);
    const tokens = numbers.map((number) => this.#words[number]!);
    const ids = numbers.map((number) => this.#ids[number]!);
    return { ids, tokens, length: word.length, isSpelt: tokens.join("") === word };
  }

  #tokensOf(word: string): number[] {
    if (this.model.ignore_merges) {
      const whole = this.#numbers.get(word);
      if (whole !== undefined) return [whole];
    }
    return this.#mergeAll(Int32Array.from(this.#symbolsOf(word)));
  }

  /**
   * What is merged: a word's characters, and of those that the vocabulary lacks the bytes where it has them all, else the
   * unknown token. Where there is none they are left out, so that what stood next to them is merged.
   */
  #symbolsOf(word: string): number[] {
    const { byte_fallback, fuse_unk } = this.model;
    const symbols: number[] = [];
    let isUnknown = false; // an unknown token has yet to come
    const pushUnknown = (): void => {
      if (isUnknown && this.#unknown !== null) symbols.push(this.#unknown);
      isUnknown = false;
    };
    for (const char of word) {
      const known = this.#numbers.get(char);
      const found = known === undefined && byte_fallback ? this.#bytesOf(char) : null;
      if (found)
        symbols.push(...found); // before an unknown token that has yet to come, as in the original
      else if (known !== undefined) {
        pushUnknown();
        symbols.push(known);
      } else {
        if (!fuse_unk) pushUnknown();
        isUnknown = true;
      }
    }
    pushUnknown();
    return symbols;
  }

  /** The tokens that are left when all is merged. */
  #mergeAll(numbers: Int32Array): number[] {
    const { length } = numbers;
    const [next, before] = [new Int32Array(length), new Int32Array(length)];
    for (let i = 0; i < length; i++) [next[i], before[i]] = [i + 1, i - 1];
    const candidates = this.#candidates;
    const rankAt = (place: number): number => {
      const right = next[place]!;
      return right >= length ? -1 : this.#merges.rankOf(numbers[place]!, numbers[right]!);
    };
    const consider = (place: number): void => {
      const rank = rankAt(place);
      if (rank >= 0) candidates.push(rank, place);
    };
    for (let i = 0; i + 1 < length; i++) consider(i);
    while (candidates.length > 0) {
      const top = candidates.pop();
      const rank = Math.floor(top / PLACES);
      const place = top - rank * PLACES;
      if (next[place] === GONE || rankAt(place) !== rank) continue; // one of its two has been merged since
      const right = next[place]!;
      numbers[place] = this.#made[rank]!;
      next[place] = next[right]!;
      next[right] = GONE;
      if (next[place]! < length) before[next[place]!] = place;
      if (before[place]! >= 0) consider(before[place]!);
      consider(place);
    }
    const left: number[] = [];
    for (let at = 0; at < length; at = next[at]!) left.push(numbers[at]!);
    return left;
  }

  /** Null where the vocabulary lacks one of a character's bytes. */
  #bytesOf(char: string): number[] | null {
    const names = [...Buffer.from(char)].map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    const bytes = names.map((name) => this.#numbers.get(name));
    return bytes.every((number) => number !== undefined) ? bytes : null;
  }
}

/** Of a token that has become part of the one before it. */
const GONE = -1;

/** A copy of a word: a piece cut out of a string keeps the whole string in memory. */
const copyOf = (word: string): string => Buffer.from(word, "utf16le").toString("utf16le");
