// A JSON file as a whole, with the place of what is wrong in it: JSON.parse says what it misses, and not where.

import { readFileSync, statSync } from "node:fs";
import { textOf } from "./errors.ts";
import { parsePython } from "./python-json.ts";
import { count, counted } from "./units.ts";

/** What an error of `parseJsonFile` says of its file, and the way out where the file itself is at fault. */
export function jsonProblem(error: unknown): { readonly isMissing: boolean; readonly what: string; readonly hint?: string } {
  const { code } = error as { readonly code?: unknown };
  if (code === "ENOENT") return { isMissing: true, what: "no such file" };
  if (code !== undefined) return { isMissing: false, what: `cannot be read: ${textOf(error)}` };
  const hint = "the file is damaged, cut short or edited wrongly: correct it there, or fetch it again";
  return { isMissing: false, what: `cannot be read as JSON: ${textOf(error)}`, hint };
}

/**
 * The value of a JSON file in UTF-8, Python's words for numbers among it. Throws an Error with what is wrong and where; that of
 * a file that is missing has the code ENOENT.
 */
export function parseJsonFile(path: string, mostBytes = 256 << 20): unknown {
  const stat = statSync(path);
  // A pipe would be waited for.
  if (!stat.isFile()) throw new Error(stat.isDirectory() ? "it is a folder" : "it is no regular file");
  if (stat.size > mostBytes) throw new Error(`it has ${counted(stat.size, "byte")}, at most ${count(mostBytes)} are read`);
  const text = textOfBytes(readFileSync(path));
  try {
    return parsePython(text);
  } catch (error) {
    const fault = jsonFault(text);
    throw fault === null ? error : new Error(fault, { cause: error });
  }
}

function textOfBytes(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new Error("it is not UTF-8 text", { cause: error });
  }
}

/** What may stand next. `next`: after a value within a list or an object. */
type Expected = "value" | "first" | "key" | "firstKey" | "colon" | "next" | "end";

const SPACE = /[ \t\r\n]*/y;
/** In double quotes: from the blank on, all but the quote and the backslash stand for themselves. */
const STRING = /"[ !#-[\]-\uffff]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[ !#-[\]-\uffff]*)*"/y;
const SCALAR = /(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|-?Infinity|NaN)(?![\w.+-])/y;

/** Where `text` is no JSON, and what was found there: "line 3, column 7: expected ..., found ...". Null where it is JSON. */
export function jsonFault(text: string): string | null {
  const open: ("}" | "]")[] = [];
  let expected: Expected = "value";
  let at = 0;
  const take = (pattern: RegExp): boolean => {
    pattern.lastIndex = at;
    const found = pattern.test(text);
    if (found) at = pattern.lastIndex;
    return found;
  };
  const closed = () => (open.length === 0 ? "end" : "next");
  for (;;) {
    take(SPACE);
    const sign = text[at];
    const last = open.at(-1);
    if (sign === undefined && expected === "end") return null;
    if (sign !== undefined && sign === last && ["next", "first", "firstKey"].includes(expected)) {
      open.pop();
      at++;
      expected = closed();
    } else if (expected === "next" && sign === ",") {
      at++;
      expected = last === "}" ? "key" : "value";
    } else if (expected === "colon" && sign === ":") {
      at++;
      expected = "value";
    } else if ((expected === "key" || expected === "firstKey") && take(STRING)) {
      expected = "colon";
    } else if ((expected === "value" || expected === "first") && (sign === "{" || sign === "[")) {
      open.push(sign === "{" ? "}" : "]");
      at++;
      expected = sign === "{" ? "firstKey" : "first";
    } else if ((expected === "value" || expected === "first") && (take(STRING) || take(SCALAR))) {
      expected = closed();
    } else {
      return `${placeOf(text, at)}: expected ${wordsOf(expected, last)}, found ${foundAt(text, at)}`;
    }
  }
}

function wordsOf(expected: Expected, close: "}" | "]" | undefined): string {
  switch (expected) {
    case "value":
      return "a value";
    case "first":
      return "a value or ']'";
    case "key":
      return "a key in double quotes";
    case "firstKey":
      return "a key in double quotes or '}'";
    case "colon":
      return "':' after the key";
    case "next":
      return `',' or '${close}'`;
    case "end":
      return "nothing more";
    default:
      return expected satisfies never;
  }
}

function placeOf(text: string, at: number): string {
  const before = text.slice(0, at);
  const line = before.split("\n").length;
  return `line ${line}, column ${at - before.lastIndexOf("\n")}`;
}

function foundAt(text: string, at: number): string {
  if (at >= text.length) return "the end of the file";
  const sign = String.fromCodePoint(text.codePointAt(at)!);
  if (sign === '"') return "a text that is not closed or has a sign that must be escaped";
  const word = /[\w.+-]{1,20}/y;
  word.lastIndex = at;
  return JSON.stringify(word.exec(text)?.[0] ?? sign);
}
