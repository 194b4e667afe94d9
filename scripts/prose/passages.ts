// What of a file is written for people: its comments and messages, or the text of a page.

export type Prose = {
  /** The file with a space for each character that is not prose, so that places stay. */
  readonly text: string;
  /** The same of comments alone. */
  readonly comments: string;
};

type Piece = {
  readonly kind: "comment" | "message";
  readonly from: number;
  readonly to: number;
  /** Where the template begins that it is a piece of. */
  readonly template?: number;
};

/** Three words in a row: what is shorter is a key or a name. */
const SENTENCE = /\p{L}{2,},? \p{L}+,? \p{L}{2,}/u;

/** The prose of a file; one of an unknown language has none. In tests, strings are data, except the names of tests. */
export function proseOf(path: string, source: string): Prose {
  if (path.endsWith(".md")) return { text: pageOf(source), comments: blank(source) };
  const isTest = path.startsWith("tests/");
  const all = piecesOf(path, source);
  const templates = Map.groupBy(all, ({ template }) => template);
  const kept = all.filter((piece) => {
    if (piece.kind === "comment") return true;
    const from = piece.template ?? piece.from;
    if (isTest) return NAMES_TEST.test(source.slice(Math.max(0, from - 40), from));
    const pieces = piece.template === undefined ? [piece] : templates.get(piece.template)!;
    return SENTENCE.test(pieces.map((part) => source.slice(part.from, part.to)).join("value"));
  });
  const of = (pieces: readonly Piece[]) => only(source, pieces);
  return { text: of(kept), comments: of(kept.filter(({ kind }) => kind === "comment")) };
}

const NAMES_TEST = /(\b(test|describe)(\.\w+)?|\))\(["'`]$/;

function piecesOf(path: string, source: string): Piece[] {
  if (/\.(ts|c|h)$/.test(path)) return scanC(source, path.endsWith(".ts"));
  if (path.endsWith(".py")) return scan(source, PYTHON);
  if (/\.(sh|toml)$/.test(path) || source.startsWith("#!")) return scan(source, SHELL);
  return [];
}

type Grammar = { readonly token: RegExp; readonly comment: RegExp };

/** A docstring is a comment. */
const PYTHON: Grammar = {
  token: /"""[\s\S]*?"""|'''[\s\S]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#[^\n]*/g,
  comment: /^(#|"""|''')/,
};
const SHELL: Grammar = { token: /(?<=(?:^|\s)(?:say|fail|echo) )"[^"\n]*"|(?<=^|\s)#[^\n]*/gm, comment: /^#/ };

const scan = (source: string, { token, comment }: Grammar): Piece[] =>
  [...source.matchAll(token)].map(({ 0: found, index }) =>
    comment.test(found)
      ? { kind: "comment", from: index, to: index + found.length }
      : { kind: "message", from: index + 1, to: index + found.length - 1 },
  );

/** What may stand before a division; before a regular expression stands anything else. */
const VALUE_ENDS = /[\w)\]}]$/;
const KEYWORD_ENDS = /\b(return|case|typeof)$/;
const REGEXP = /\/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\//y;
const C_TOKEN = /\/\/[^\n]*|\/\*[\s\S]*?\*\/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/y;

/** C and TypeScript; `templates` for what is between backticks, in which there is code between braces. */
function scanC(source: string, templates: boolean): Piece[] {
  const pieces: Piece[] = [];
  const open: ("`" | "{")[] = []; // what the place is in
  const starts: number[] = []; // of the templates among them
  let at = 0;
  let last = 0; // where the last code before this place ends
  const match = (pattern: RegExp): number => {
    pattern.lastIndex = at;
    return pattern.exec(source)?.[0].length ?? 0;
  };
  while (at < source.length) {
    const char = source[at]!;
    if (open.at(-1) === "`") {
      const end = match(/(?:\\[\s\S]|\$(?!\{)|[^\\`$])*/y);
      pieces.push({ kind: "message", from: at, to: at + end, template: starts.at(-1)! });
      at += end;
      if (source[at] === "`") {
        open.pop();
        starts.pop();
      } else open.push("{");
      at += source[at] === "`" ? 1 : 2;
      last = at;
      continue;
    }
    const length = match(C_TOKEN);
    if (length > 0) {
      const isComment = char === "/";
      pieces.push({
        kind: isComment ? "comment" : "message",
        from: at + (isComment ? 0 : 1),
        to: at + length - (isComment ? 0 : 1),
      });
      at += length;
      if (!isComment) last = at;
      continue;
    }
    const before = source.slice(Math.max(0, last - 10), last);
    const isRegexp = templates && char === "/" && (!VALUE_ENDS.test(before) || KEYWORD_ENDS.test(before));
    if (templates && char === "`") {
      open.push("`");
      starts.push(at + 1);
    } else if (char === "{") open.push("{");
    else if (char === "}") open.pop();
    at += (isRegexp && match(REGEXP)) || 1;
    if (!/\s/.test(char)) last = at;
  }
  return pieces;
}

function only(source: string, pieces: readonly Piece[]): string {
  let text = "";
  for (const { kind, from, to } of pieces) {
    text += blank(source.slice(text.length, from));
    const piece = source.slice(from, to);
    text +=
      kind === "comment"
        ? piece.replace(/^(\/\/+|\/\*+|#+!?|"""|''')|(\*\/|"""|''')$|(?<=\n\s*)\*|(?<!`)`[^`\n]+`/g, blank)
        : piece.replace(/\\(u\{?[0-9a-f]+\}?|x..|.)/gi, blank);
  }
  return text + blank(source.slice(text.length));
}

/** A page without code, addresses and tags. */
const pageOf = (source: string): string =>
  source.replace(/^ *(```|~~~)[\s\S]*?^ *\1|^ {4}.*|``.*?``|`[^`]+`|<[^>\n]+>|\]\([^)\n]*\)/gm, blank);

const blank = (text: string): string => text.replace(/[^\n]/g, " ");
