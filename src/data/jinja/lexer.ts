// Splits a template into its text and the tokens of its tags, as Jinja2 does with trim_blocks and lstrip_blocks, which is how
// transformers reads chat templates.

export type Token = { readonly type: string; readonly value: string; readonly line: number };

/** What is wrong with a template, or with what it was given. */
export class TemplateError extends Error {}

export const failAt = (line: number, what: string): never => {
  throw new TemplateError(`line ${line}: ${what}`);
};

/** Python's white space, which is not JavaScript's. */
export const SPACES = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const TRAILING = new RegExp(`[${SPACES}]+$`);
const ONLY_SPACE = new RegExp(`^[${SPACES}]+$`);

const sticky = (source: string) => new RegExp(source, "yu");
const SPACE = sticky(`[${SPACES}]+`);
const OPENING = /\{\{|\{%|\{#/g;
const RAW = sticky(`\\{%[-+]?[${SPACES}]*raw[${SPACES}]*(?:-%\\}[${SPACES}]*|%\\})`);
const RAW_END = new RegExp(`\\{%([-+]?)[${SPACES}]*endraw[${SPACES}]*(?:\\+%\\}|-%\\}[${SPACES}]*|%\\}\\n?)`, "g");
const COMMENT_END = new RegExp(`\\+#\\}|-#\\}[${SPACES}]*|#\\}\\n?`, "g");
const BLOCK_END = sticky(`\\+%\\}|-%\\}[${SPACES}]*|%\\}\\n?`);
const VARIABLE_END = sticky(`-\\}\\}[${SPACES}]*|\\}\\}`);
const FLOAT = sticky("(?:\\d+_)*\\d+(?:(?:\\.(?:\\d+_)*\\d+)?[eE][+-]?(?:\\d+_)*\\d+|\\.(?:\\d+_)*\\d+)");
const INTEGER = sticky("0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0[xX](?:_?[\\da-fA-F])+|[1-9](?:_?\\d)*|0(?:_?0)*");
const NAME = sticky("[\\p{ID_Continue}_]+");
const STRING = /'(?:[^'\\]|\\[\s\S])*'|"(?:[^"\\]|\\[\s\S])*"/y;
const OPERATOR = sticky("\\/\\/|\\*\\*|==|!=|>=|<=|[-+/*%~\\[\\](){}><=.:|,;]");
const CLOSES: Readonly<Record<string, string>> = { "}": "{", ")": "(", "]": "[" };

/** The tokens of a template, the last one of type "end". Throws a TemplateError with the line. */
export function tokensOf(template: string): readonly Token[] {
  const text = template.replace(/\r\n?/g, "\n").replace(/\n$/, "");
  const tokens: Token[] = [];
  let [at, line, lineStarts] = [0, 1, true];
  const push = (type: string, value: string) => tokens.push({ type, value, line });
  const advance = (to: number) => {
    for (let i = text.indexOf("\n", at); i >= 0 && i < to; i = text.indexOf("\n", i + 1)) line++;
    if (to > at) lineStarts = text[to - 1] === "\n";
    at = to;
  };
  const match = (pattern: RegExp): string | null => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    return found?.[0] ?? null;
  };
  /** The text before a tag, as far as it counts: `sign` is the tag's own. */
  const data = (to: number, sign: string, block: boolean) => {
    let piece = text.slice(at, to);
    if (sign === "-") piece = piece.replace(TRAILING, "");
    else if (sign !== "+" && block) {
      const from = piece.lastIndexOf("\n") + 1;
      if ((from > 0 || lineStarts) && ONLY_SPACE.test(piece.slice(from))) piece = piece.slice(0, from);
    }
    if (piece !== "") push("data", piece);
    advance(to);
  };
  const signAt = (index: number) => (text[index] === "-" || text[index] === "+" ? text[index]! : "");

  while (at < text.length) {
    OPENING.lastIndex = at;
    const opening = OPENING.exec(text);
    if (!opening) {
      data(text.length, "+", false);
      break;
    }
    const [kind, start] = [opening[0], opening.index];
    const sign = signAt(start + 2);
    data(start, sign, kind !== "{{");
    const raw = kind === "{%" ? match(RAW) : null;
    if (raw !== null || kind === "{#") {
      advance(start + (raw?.length ?? 2 + sign.length));
      const ending = raw === null ? COMMENT_END : RAW_END;
      ending.lastIndex = at;
      const end = ending.exec(text);
      if (!end) return failAt(line, raw === null ? "a comment has no end" : "a raw block has no end");
      if (raw !== null) data(end.index, end[1]!, true);
      advance(end.index + end[0].length);
      continue;
    }
    push(kind, kind);
    advance(start + 2 + sign.length);
    const open: string[] = [];
    for (;;) {
      const end = open.length === 0 ? match(kind === "{%" ? BLOCK_END : VARIABLE_END) : null;
      if (end !== null) {
        push(kind === "{%" ? "%}" : "}}", end);
        advance(at + end.length);
        break;
      }
      const space = match(SPACE);
      if (space !== null) {
        advance(at + space.length);
        continue;
      }
      const token = expressionToken(match);
      if (!token)
        return failAt(line, at === text.length ? `a tag '${kind}' has no end` : `unexpected ${JSON.stringify(text[at])}`);
      const [type, value] = token;
      if ("([{".includes(value) && type === value) open.push(value);
      else if (type in CLOSES && open.pop() !== CLOSES[type]) return failAt(line, `unexpected '${value}'`);
      push(type, type === "string" ? unescapeText(value.slice(1, -1), line) : value);
      advance(at + value.length);
    }
  }
  push("end", "");
  return tokens;
}

function expressionToken(match: (pattern: RegExp) => string | null): readonly [string, string] | null {
  for (const [type, pattern] of [
    ["float", FLOAT],
    ["integer", INTEGER],
    ["name", NAME],
    ["string", STRING],
  ] as const) {
    const found = match(pattern);
    if (found !== null) return [type, found];
  }
  const operator = match(OPERATOR);
  return operator === null ? null : [operator, operator];
}

const SIMPLE: Readonly<Record<string, string>> = {
  "\n": "",
  "\\": "\\",
  "'": "'",
  '"': '"',
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};

/** Python's escapes; one that it does not know stays with its backslash. */
const unescapeText = (text: string, line: number): string =>
  text.includes("\\")
    ? text.replace(
        /\\(?:([0-7]{1,3})|x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([\s\S]))/g,
        (whole, octal, x, u, long, one: string) => {
          if (octal !== undefined) return String.fromCodePoint(Number.parseInt(octal, 8));
          const code = x ?? u ?? long;
          if (code !== undefined && Number.parseInt(code, 16) <= 0x10ffff)
            return String.fromCodePoint(Number.parseInt(code, 16));
          if (one === undefined || one === "x" || one === "u" || one === "U" || one === "N")
            return failAt(line, `the escape ${whole.slice(0, 10)} in a text is not supported`);
          return SIMPLE[one] ?? whole;
        },
      )
    : text;
