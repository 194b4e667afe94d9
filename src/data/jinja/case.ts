// Letters' cases as Python's str methods have them. JavaScript knows upper and lower case of texts alone: neither the title
// case of a letter (ß is SS, and Ss where a word begins) nor the folded one.

import { charsOf } from "./values.ts";

/** Letters of two, in upper case: their title case is the character after it. */
const DIGRAPHS: ReadonlySet<string> = new Set(["Ǆ", "Ǉ", "Ǌ", "Ǳ"]);
const IOTA = "\u{345}";
/** Upper case that no lower case begins a word with. */
const GEORGIAN = /^[\u{10d0}-\u{10ff}]$/u;
const ALONE = new Map([["ŉ", "ʼN"]]);

/** A letter as a word begins with it. */
function titled(char: string): string {
  if (/^\p{Lt}$/u.test(char) || GEORGIAN.test(char)) return char;
  const upper = char.toUpperCase();
  if (DIGRAPHS.has(upper)) return String.fromCodePoint(upper.codePointAt(0)! + 1);
  const [first = "", ...rest] = charsOf(upper);
  if (rest.length === 0) return upper;
  if (ALONE.has(char)) return ALONE.get(char)!;
  // A Greek iota beneath is a mark under the capital, or in a letter of its own.
  if (char.normalize("NFD").endsWith(IOTA)) {
    const marked = upper.slice(0, -1) + IOTA;
    const letter = marked.normalize("NFC");
    return letter.length === 1 ? letter : marked;
  }
  return first + rest.join("").toLowerCase();
}

export function capitalize(text: string): string {
  const [first = "", ...rest] = charsOf(text);
  return rest.length === 0 ? titled(first) : titled(first) + afterFirst(first, rest.join(""));
}

/** What follows a first letter, in lower case: a sigma at the end of a word has a form of its own. */
const afterFirst = (first: string, rest: string): string => (first + rest).toLowerCase().slice(first.toLowerCase().length);

export const title = (text: string): string => text.replace(/\p{Cased}+/gu, (word) => capitalize(word));

/** Whether each word begins with a capital, and has none after it. */
export function isTitle(text: string): boolean {
  let [found, afterCased] = [false, false];
  for (const char of text) {
    const isCapital = /[\p{Lt}\p{Uppercase}]/u.test(char);
    const isCased = isCapital || /\p{Lowercase}/u.test(char);
    if (isCased && isCapital === afterCased) return false;
    found ||= isCased;
    afterCased = isCased;
  }
  return found;
}

const FINAL_SIGMA = /(?<=\p{Cased}\p{Case_Ignorable}*)Σ(?!\p{Case_Ignorable}*\p{Cased})/gu;

export function swapcase(text: string): string {
  const finals = new Set([...text.matchAll(FINAL_SIGMA)].map(({ index }) => index));
  return text.replace(/\p{Uppercase}|\p{Lowercase}/gu, (char, at: number) => {
    if (finals.has(at)) return "ς";
    return /\p{Uppercase}/u.test(char) ? char.toLowerCase() : char.toUpperCase();
  });
}

/** Cherokee is folded to its capitals, an i without its dot to itself; all others by way of their capitals. */
const FOLDED = /[\u{13a0}-\u{13f5}ı]/u;
const CHEROKEE = /[\u{13f8}-\u{13fd}\u{ab70}-\u{abbf}]/u;

export const casefold = (text: string): string =>
  charsOf(text)
    .map((char) => {
      if (FOLDED.test(char)) return char;
      if (CHEROKEE.test(char)) return char.toUpperCase();
      return charsOf(char.toLowerCase().toUpperCase())
        .map((upper) => upper.toLowerCase())
        .join("");
    })
    .join("");

/** Characters that are digits to Python: of numbers, raised, in circles. */
export const DIGITS =
  /^[\p{Nd}²³¹\u{1369}-\u{1371}\u{19da}⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒\u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}\u{1f100}-\u{1f10a}]+$/u;
/** Characters that have a number's value: with the numerals of Chinese. */
export const NUMERIC =
  /^[\p{N}㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零\u{f96b}\u{f973}\u{f978}\u{f9b2}\u{f9d1}\u{f9d3}\u{f9fd}\u{20001}\u{20064}\u{200e2}\u{20121}\u{2092a}\u{20983}\u{2098c}\u{2099c}\u{20aea}\u{20afd}\u{20b19}\u{22390}\u{22998}\u{23b1b}\u{2626d}\u{2f890}]+$/u;
