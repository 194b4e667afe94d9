// Added tokens: those that a text is cut at before anything else looks at it, such as "<|im_end|>". The package knows neither
// "single_word" nor the order of the two passes (tokens as they are written first, then those that the normaliser changes too).

import type { Normaliser } from "./pre-tokenise.ts";

export type AddedToken = {
  readonly id: number;
  readonly content: string;
  /** Only where no letter or digit touches it. */
  readonly single_word?: boolean;
  /** Takes the white space before it, or after it, along. */
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  /** Looked for in the normalised text. */
  readonly normalized?: boolean;
  readonly special?: boolean;
};

/** A token, or a piece of text between tokens. */
export type Section = { readonly token: AddedToken } | { readonly text: string };

/** What becomes of the text's characters from `from` to before `to`, in order. */
export type Run = { readonly from: number; readonly to: number; readonly sections: readonly Section[] };

type Found = Section & { readonly from: number; readonly to: number };
type Finder = (text: string) => Found[];

/**
 * Cuts a text at its added tokens and normalises what lies between. A run is a single section unless the normaliser changed its
 * text. Throws an Error for tokens that cannot be told apart.
 */
export function sectioner(tokens: readonly AddedToken[], normalise: Normaliser): (text: string) => Run[] {
  const isNormalised = ({ normalized, special }: AddedToken) => normalized ?? !special;
  const raw = finder(tokens.filter((token) => !isNormalised(token)).map((token) => [token.content, token]));
  const second = finder(tokens.filter(isNormalised).map((token) => [normalise(token.content), token]));
  return (text) =>
    raw(text).flatMap((found): Run[] => {
      if ("token" in found) return [{ from: found.from, to: found.to, sections: [found] }];
      const changed = normalise(found.text);
      const sections = second(changed);
      if (changed !== found.text) return [{ from: found.from, to: found.to, sections }];
      return sections.map((section) => ({ from: found.from + section.from, to: found.from + section.to, sections: [section] }));
    });
}

type Node = { readonly next: Map<number, Node>; token: AddedToken | null };

/** Finds the leftmost, then longest tokens. Throws an Error for two with one text: the original takes either of them. */
function finder(tokens: readonly (readonly [string, AddedToken])[]): Finder {
  const root: Node = { next: new Map(), token: null };
  for (const [text, token] of tokens) {
    if (text === "") continue;
    let node = root;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      if (!node.next.has(unit)) node.next.set(unit, { next: new Map(), token: null });
      node = node.next.get(unit)!;
    }
    if (node.token) {
      const names = [node.token, token].map(({ content }) => JSON.stringify(content)).join(" and ");
      throw new Error(`its normalizer makes one text of its added tokens ${names}, so that their ids are not defined`);
    }
    node.token = token;
  }
  return (text) => {
    const sections: Found[] = [];
    const between = (to: number) => {
      if (to > from) sections.push({ text: text.slice(from, to), from, to });
    };
    let from = 0; // what is before it has its section
    for (let at = 0; at < text.length; ) {
      const found = longestAt(root, text, at);
      if (!found) {
        at++;
        continue;
      }
      const { token, end } = found;
      if (!token.single_word || !(isWord(charBefore(text, at)) || isWord(charAt(text, end)))) {
        const start = token.lstrip ? Math.max(spacesBefore(text, at), from) : at;
        between(start);
        from = token.rstrip ? spacesBehind(text, end) : end;
        if (from > start) sections.push({ token, from: start, to: from }); // else a token before it has taken all of it along
      }
      at = end; // white space that a token takes along may hold tokens, which come, too
    }
    between(text.length);
    return sections;
  };
}

function longestAt(root: Node, text: string, at: number): { readonly token: AddedToken; readonly end: number } | null {
  let found: { token: AddedToken; end: number } | null = null;
  let node: Node | undefined = root;
  for (let end = at; node; node = node.next.get(text.charCodeAt(end++))) if (node.token) found = { token: node.token, end };
  return found;
}

const SPACE = /\p{White_Space}/u;
const isWord = (char: string): boolean => /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u.test(char);
const charAt = (text: string, at: number): string => (at < text.length ? String.fromCodePoint(text.codePointAt(at)!) : "");
const charBefore = (text: string, at: number): string => [...text.slice(Math.max(0, at - 2), at)].at(-1) ?? "";

function spacesBefore(text: string, at: number): number {
  let start = at;
  while (start > 0 && SPACE.test(text[start - 1]!)) start--;
  return start;
}

function spacesBehind(text: string, at: number): number {
  let end = at;
  while (end < text.length && SPACE.test(text[end]!)) end++;
  return end;
}
