// Where each key of a TOML text stands, for messages. Walks a text that has been parsed already, so it need not judge it.

export type Place = { readonly line: number; readonly column: number };
export type Path = readonly (string | number)[];

const BARE = /[A-Za-z0-9_-]/;
const keyOf = (path: Path): string => JSON.stringify(path);

/** The place of every key, table and array element, by path. */
export class Places {
  readonly #found = new Map<string, Place>();
  constructor(text: string) {
    walk(text, (path, place) => {
      if (!this.#found.has(keyOf(path))) this.#found.set(keyOf(path), place);
    });
  }

  /** The place of a path, or of the nearest thing around it. */
  of(path: Path): Place {
    for (let length = path.length; length > 0; length--) {
      const place = this.#found.get(keyOf(path.slice(0, length)));
      if (place) return place;
    }
    return { line: 1, column: 1 };
  }
}

function walk(text: string, found: (path: Path, place: Place) => void): void {
  let at = 0;
  let [line, lineStart] = [1, 0];
  const place = (): Place => ({ line, column: at - lineStart + 1 });
  const step = (count = 1): void => {
    for (let i = 0; i < count && at < text.length; i++) {
      if (text[at++] !== "\n") continue;
      line++;
      lineStart = at;
    }
  };
  const skipSpace = (newlines: boolean): void => {
    while (at < text.length) {
      const c = text[at]!;
      if (c === "#") while (at < text.length && text[at] !== "\n") step();
      else if (c === " " || c === "\t" || c === "\r" || (newlines && c === "\n")) step();
      else return;
    }
  };

  const quoted = (): string => {
    const quote = text[at]!;
    const long = text.startsWith(quote.repeat(3), at);
    const end = long ? quote.repeat(3) : quote;
    step(end.length);
    const start = at;
    while (at < text.length && !text.startsWith(end, at)) step(quote === '"' && text[at] === "\\" ? 2 : 1);
    const inside = text.slice(start, at);
    step(end.length);
    while (long && text[at] === quote) step(); // quotes that end a long string's content
    return inside;
  };
  const keys = (): string[] => {
    const parts: string[] = [];
    for (;;) {
      skipSpace(false);
      if (text[at] === '"' || text[at] === "'") parts.push(quoted());
      else {
        const start = at;
        while (at < text.length && BARE.test(text[at]!)) step();
        parts.push(text.slice(start, at));
      }
      skipSpace(false);
      if (text[at] !== ".") return parts;
      step();
    }
  };
  const value = (path: Path): void => {
    const c = text[at];
    if (c === '"' || c === "'") quoted();
    else if (c === "[") {
      step();
      for (let index = 0; at < text.length; index++) {
        skipSpace(true);
        if (text[at] === "]") break;
        found([...path, index], place());
        value([...path, index]);
        skipSpace(true);
        if (text[at] === ",") step();
      }
      step();
    } else if (c === "{") {
      step();
      while (at < text.length) {
        skipSpace(true);
        if (text[at] === "}") break;
        pair(path);
        skipSpace(true);
        if (text[at] === ",") step();
      }
      step();
    } else while (at < text.length && !",]}#\n".includes(text[at]!)) step();
  };
  const pair = (table: Path): void => {
    const start = place();
    const before = at;
    const parts = keys();
    for (let i = 1; i <= parts.length; i++) found([...table, ...parts.slice(0, i)], start);
    skipSpace(false);
    if (text[at] === "=") step();
    skipSpace(false);
    value([...table, ...parts]);
    if (at === before) step(); // never stands still, whatever the text
  };

  const lengths = new Map<string, number>(); // of arrays of tables
  const resolve = (parts: readonly string[]): Path => {
    let path: Path = [];
    for (const part of parts) {
      path = [...path, part];
      const length = lengths.get(keyOf(path));
      if (length !== undefined) path = [...path, length - 1];
    }
    return path;
  };
  let table: Path = [];
  while (at < text.length) {
    skipSpace(true);
    if (at >= text.length) return;
    if (text[at] !== "[") {
      pair(table);
      continue;
    }
    const start = place();
    const array = text[at + 1] === "[";
    step(array ? 2 : 1);
    const parts = keys();
    if (array) {
      const path = [...resolve(parts.slice(0, -1)), parts.at(-1)!];
      lengths.set(keyOf(path), (lengths.get(keyOf(path)) ?? 0) + 1);
      found(path, start);
    }
    table = resolve(parts);
    found(table, start);
    while (at < text.length && text[at] === "]") step();
  }
}
