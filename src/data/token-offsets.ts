// Where tokens lie in the text that they were made from. @huggingface/tokenizers gives no offsets, but a token's own spelling
// says which bytes it stands for, so a walk along the text finds each token's place and proves it.

/** How a tokenizer spells text in its tokens. */
export type Spelling = {
  /** Each character of a token is a byte (GPT-2); else "▁" is a space and "<0x0A>" a byte (SentencePiece). */
  readonly byteLevel: boolean;
  /** Tokens that are their own text. */
  readonly added: ReadonlySet<string>;
};

/** What a text's characters from `from` to before `to` became. */
export type TokenRun = {
  readonly from: number;
  readonly to: number;
  /** Words, and added tokens as they are written, in order; and what became of each. */
  readonly words: readonly string[];
  readonly merged: readonly Merged[];
  /** It is one added token, with the white space that it takes along. */
  readonly isAdded: boolean;
};

/** Tokens of a word as bpe.ts has them; an added token has no length, and is not spelt by bytes. */
type Merged = { readonly tokens: readonly string[]; readonly length: number; readonly isSpelt: boolean };

/** The first and the last piece that a token holds a byte of. */
export type Place = { readonly first: number; readonly last: number };

const encoder = new TextEncoder();

/**
 * The pieces of a text in which each token of the whole text lies, or null where the tokens do not spell the text: the
 * tokenizer changed it by more than composing characters (NFC).
 */
export function placeTokens(runs: readonly TokenRun[], pieces: readonly string[], spelling: Spelling): Place[] | null {
  const places: Place[] = [];
  let piece = 0; // the one that holds the character at `start`
  let start = 0;
  for (const run of runs) {
    while (start + pieces[piece]!.length <= run.from) start += pieces[piece++]!.length;
    const parts: string[] = [];
    for (let i = piece, at = start; at < run.to; at += pieces[i++]!.length)
      parts.push(pieces[i]!.slice(Math.max(0, run.from - at), run.to - at));
    const found = run.isAdded ? [{ first: 0, last: parts.length - 1 }] : placeRun(run, parts, spelling);
    if (!found) return null;
    for (const place of found) places.push(piece === 0 ? place : { first: place.first + piece, last: place.last + piece });
  }
  return places;
}

function placeRun({ words, merged }: TokenRun, parts: readonly string[], spelling: Spelling): Place[] | null {
  const text = parts.join("");
  if (spelling.byteLevel && merged.every(({ isSpelt }) => isSpelt) && words.join("") === text) {
    const found = placeWords(words, merged, parts, spelling);
    if (found) return found;
  }
  const tokens = merged.flatMap(({ tokens }) => tokens);
  const length = spelling.byteLevel ? Buffer.byteLength(text) : text.length;
  const prefixed = merged.reduce((all, { length }) => all + length, 0) === length + 1;
  const found = walk(tokens, prefixed, parts, spelling);
  if (found) return found;
  const composed = parts.map((part) => part.normalize("NFC"));
  return composed.every((part, i) => part === parts[i]) ? null : walk(tokens, prefixed, composed, spelling);
}

/** For words that are the text, cut up, and that their tokens spell: only a word in several pieces has to be walked along. */
function placeWords(
  words: readonly string[],
  merged: readonly Merged[],
  pieces: readonly string[],
  spelling: Spelling,
): Place[] | null {
  const places: Place[] = [];
  let [piece, from, at] = [0, 0, 0]; // the piece that holds the character at `at` begins at `from`
  let alone: Place = { first: 0, last: 0 };
  for (const [i, word] of words.entries()) {
    const { tokens } = merged[i]!;
    while (from + pieces[piece]!.length <= at) {
      from += pieces[piece++]!.length;
      alone = { first: piece, last: piece };
    }
    const end = at + word.length;
    if (end <= from + pieces[piece]!.length) for (let token = 0; token < tokens.length; token++) places.push(alone);
    else {
      const parts: string[] = [];
      for (let next = piece, begin = from; begin < end; begin += pieces[next++]!.length)
        parts.push(pieces[next]!.slice(Math.max(0, at - begin), end - begin));
      const found = walk(tokens, false, parts, spelling);
      if (!found) return null;
      for (const { first, last } of found) places.push({ first: first + piece, last: last + piece });
    }
    at = end;
  }
  return places;
}

/** `prefixed`: the first token begins with a space that the tokenizer put there. */
function walk(tokens: readonly string[], prefixed: boolean, pieces: readonly string[], spelling: Spelling): Place[] | null {
  const spelt = pieces.map((piece) => encoder.encode(spelling.byteLevel ? piece : toSpaces(piece)));
  const bytes = Buffer.concat(spelt);
  let pieceEnd = spelt[0]?.length ?? 0;
  let piece = 0;
  let at = 0;
  /** The piece that holds the byte before `position`. */
  const pieceBefore = (position: number): number => {
    while (pieceEnd < position) pieceEnd += spelt[++piece]!.length;
    return piece;
  };
  const places: Place[] = [];
  for (const [i, token] of tokens.entries()) {
    const end = endOf(token, bytes, at, spelling, prefixed && i === 0);
    if (end === null) return null;
    const first = pieceBefore(Math.min(at + 1, end));
    places.push({ first, last: pieceBefore(end) });
    at = end;
  }
  return isBlank(bytes.subarray(at)) ? places : null;
}

/** Where a token that begins at `at` ends; null where the text continues otherwise. */
function endOf(token: string, bytes: Uint8Array, at: number, spelling: Spelling, prefixed: boolean): number | null {
  const whole = bytesOf(token, spelling);
  const spelled = prefixed && whole[0] === SPACE ? whole.subarray(1) : whole;
  if (matches(bytes, at, spelled)) return at + spelled.length;
  if (spelling.added.has(token)) {
    // "lstrip" and "rstrip" tokens swallow the white space next to them
    let next = at;
    while (next < bytes.length && isBlank(bytes.subarray(next, next + 1))) next++;
    return matches(bytes, next, spelled) ? next + spelled.length : null;
  }
  // A space that is put before a word has no place in the text.
  const added = !spelling.byteLevel && spelled[0] === SPACE && matches(bytes, at, spelled.subarray(1));
  return added ? at + spelled.length - 1 : null;
}

/** A "▁" of the text itself becomes the same tokens as a space. */
const toSpaces = (text: string): string => text.replaceAll("▁", " ");

const SPACE = 0x20;
const isBlank = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === SPACE || (byte >= 0x09 && byte <= 0x0d));

function matches(bytes: Uint8Array, at: number, part: Uint8Array): boolean {
  if (at + part.length > bytes.length) return false;
  for (let i = 0; i < part.length; i++) if (bytes[at + i] !== part[i]) return false;
  return true;
}

function bytesOf(token: string, { byteLevel, added }: Spelling): Uint8Array {
  if (added.has(token)) return encoder.encode(token);
  if (byteLevel) return Uint8Array.from(token, (char) => BYTE_OF_CHAR.get(char) ?? 0);
  const byte = /^<0x([0-9A-F]{2})>$/.exec(token)?.[1];
  return byte === undefined ? encoder.encode(toSpaces(token)) : Uint8Array.of(Number.parseInt(byte, 16));
}

/**
 * GPT-2's alphabet: visible Latin-1 characters stand for themselves, all other bytes for characters from U+0100 on, in order.
 */
const BYTE_OF_CHAR: ReadonlyMap<string, number> = (() => {
  const visible = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  const bytes = Array.from({ length: 256 }, (_, byte) => byte);
  const hidden = bytes.filter((byte) => !visible(byte));
  return new Map([
    ...bytes.filter(visible).map((byte) => [String.fromCharCode(byte), byte] as const),
    ...hidden.map((byte, i) => [String.fromCharCode(0x100 + i), byte] as const),
  ]);
})();
