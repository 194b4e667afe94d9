// Added tokens: those that a text is cut at before anything else looks at it, such as "<|im_end|>". The package knows neither
// "single_word" nor the order of the two passes (tokens as they are written first, then those that the normaliser changes too).

import type { Normaliser } from "./pre-tokenise.ts";

export type AddedToken = {
  readonly id: number;
  readonly content: string;
  /** Only where no letter or digit touches it. */
  readonly single_word?: boolean;
  /** Takes the white space before it, or behind it, along. */
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  /** Looked for in the normalised text. */
  readonly normalized?: boolean;
  readonly special?: boolean;
};

/** A token, or a piece of text between tokens. */
export type Section = { readonly token: AddedToken } | { readonly text: string };

type Finder = (text: string) => Section[];

/** Cuts a text at its added tokens and normalises what lies between. */
export function sectioner(tokens: readonly AddedToken[], normalise: Normaliser): (text: string) => Section[] {
  const isNormalised = ({ normalized, special }: AddedToken) => normalized ?? !special;
  const raw = finder(new Map(tokens.filter((token) => !isNormalised(token)).map((token) => [token.content, token])));
  const normalised = finder(new Map(tokens.filter(isNormalised).map((token) => [normalise(token.content), token])));
  return (text) => raw(text).flatMap((section) => ("token" in section ? [section] : normalised(normalise(section.text))));
}

type Node = { readonly next: Map<number, Node>; token: AddedToken | null };

/** Finds the leftmost, then longest tokens. */
function finder(tokens: ReadonlyMap<string, AddedToken>): Finder {
  const root: Node = { next: new Map(), token: null };
  for (const [text, token] of tokens) {
    if (text === "") continue;
    let node = root;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      if (!node.next.has(unit)) node.next.set(unit, { next: new Map(), token: null });
      node = node.next.get(unit)!;
    }
    node.token = token;
  }
  return (text) => {
    const sections: Section[] = [];
    let from = 0; // what is before it has its section
    for (let at = 0; at < text.length; ) {
      const found = longestAt(root, text, at);
      if (!found) {
        at++;
        continue;
      }
      const { token, end } = found;
      if (!token.single_word || !(isWord(charBefore(text, at)) || isWord(charAt(text, end)))) {
        const start = Math.max(token.lstrip ? spacesBefore(text, at) : at, from);
        if (start > from) sections.push({ text: text.slice(from, start) });
        sections.push({ token });
        from = token.rstrip ? spacesBehind(text, end) : end;
      }
      at = Math.max(end, from);
    }
    if (from < text.length) sections.push({ text: text.slice(from) });
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
