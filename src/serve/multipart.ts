// A multipart/form-data body that is read as it comes (RFC 7578): fields are short texts, a file goes to where it is taken.

import { badRequest } from "./errors.ts";

export type Part = {
  readonly name: string;
  /** Null for a field that is no file. */
  readonly filename: string | null;
};

/** Takes what a file's part holds, piece by piece. */
export type Sink = (part: Part) => (piece: Uint8Array) => void;

const MOST_HEADERS = 16 << 10;
const MOST_FIELD = 64 << 10;
const MOST_PARTS = 32;
const LINE = Buffer.from("\r\n");
const BLANK = Buffer.from("\r\n\r\n");

/** The boundary that a request's content type names. Throws an ApiError. */
export function boundaryOf(contentType: string | null): string {
  const found = /^multipart\/form-data\s*;.*?\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(contentType ?? "");
  if (!found) throw badRequest("Expected a multipart/form-data body with a boundary, as the upload of a file has.");
  return (found[1] ?? found[2])!;
}

/** Reads all parts; fields come back by their names. Throws ApiErrors for what is no such body. */
export async function readMultipart(
  pieces: AsyncIterable<Uint8Array>,
  boundary: string,
  sink: Sink,
): Promise<ReadonlyMap<string, string>> {
  const mark = Buffer.from(`\r\n--${boundary}`);
  const fields = new Map<string, string>();
  let held: Buffer = Buffer.from("\r\n"); // so that the first boundary is like the others
  let take: ((piece: Uint8Array) => void) | null = null;
  let close = (): void => undefined;
  let state: "preamble" | "after mark" | "headers" | "content" | "end" = "preamble";
  let parts = 0;
  const broken = (what: string) => badRequest(`The multipart body is broken: ${what}.`);

  const field = (name: string) => {
    const kept: Uint8Array[] = [];
    let size = 0;
    take = (piece) => {
      size += piece.length;
      if (size > MOST_FIELD) throw badRequest(`The field '${name}' is longer than ${MOST_FIELD} bytes.`, name);
      kept.push(Uint8Array.from(piece));
    };
    close = () => void fields.set(name, Buffer.concat(kept).toString("utf8"));
  };

  /** Reads on in what is held; false where more is needed. */
  const advance = (): boolean => {
    if (state === "preamble" || state === "content") {
      const at = held.indexOf(mark);
      const whole = at < 0 ? Math.max(0, held.length - mark.length + 1) : at;
      if (whole > 0) take?.(held.subarray(0, whole));
      held = held.subarray(at < 0 ? whole : at + mark.length);
      if (at < 0) return false;
      if (state === "content") close();
      take = null;
      state = "after mark";
      return true;
    }
    if (state === "after mark") {
      if (held.length < 2) return false;
      if (held.subarray(0, 2).toString("latin1") === "--") {
        state = "end";
        return false;
      }
      const at = held.indexOf(LINE);
      if (at < 0 && held.length < MOST_HEADERS) return false;
      if (at < 0 || !/^[ \t]*$/.test(held.subarray(0, at).toString("latin1")))
        throw broken("a boundary is not on a line of its own");
      held = held.subarray(at); // with its line break, so that a part without headers has a blank line
      state = "headers";
      return true;
    }
    if (state === "headers") {
      const at = held.indexOf(BLANK);
      if (at < 0 && held.length < MOST_HEADERS) return false;
      if (at < 0 || at > MOST_HEADERS) throw broken(`the headers of a part have more than ${MOST_HEADERS} bytes`);
      if (++parts > MOST_PARTS) throw broken(`it has more than ${MOST_PARTS} parts`);
      const part = partOf(held.subarray(0, at).toString("utf8"));
      if (!part) throw broken("a part has no content-disposition with a name");
      held = held.subarray(at + BLANK.length);
      if (part.filename === null) field(part.name);
      else {
        take = sink(part);
        close = () => undefined;
      }
      held = Buffer.concat([LINE, held]); // an empty part ends at once
      const file = take!;
      let skipped = 0;
      take = (piece) => {
        const of = piece.subarray(LINE.length - skipped);
        skipped = Math.min(LINE.length, skipped + piece.length);
        if (of.length > 0) file(of);
      };
      state = "content";
      return true;
    }
    return false;
  };

  for await (const piece of pieces) {
    if ((state as string) === "end") continue; // what follows is no part
    held = held.length === 0 ? Buffer.from(piece) : Buffer.concat([held, piece]);
    while (advance());
  }
  if ((state as string) !== "end") throw broken("it ends before its last boundary");
  return fields;
}

function partOf(headers: string): Part | null {
  const line = /^content-disposition:\s*form-data\s*;(.*)$/im.exec(headers)?.[1];
  if (line === undefined) return null;
  const value = (key: string): string | null => {
    const found = new RegExp(`(?:^|;)\\s*${key}=(?:"((?:\\\\.|[^"\\\\])*)"|([^;\\s]+))`, "i").exec(line);
    return found ? (found[1]?.replaceAll(/\\(.)/g, "$1") ?? found[2]!) : null;
  };
  const name = value("name");
  if (name === null) return null;
  const extended = /(?:^|;)\s*filename\*=utf-8''([^;\s]+)/i.exec(line)?.[1];
  return { name, filename: extended === undefined ? value("filename") : decodeOrKeep(extended) };
}

function decodeOrKeep(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
