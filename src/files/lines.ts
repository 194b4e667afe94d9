// Lines of a file of any size, in memory that does not grow with it.

import { readSync } from "node:fs";

const CHUNK = 1 << 20;
const NEWLINE = 10;

/** A line without its newline, and where the next one begins; `bytes` is null for a line longer than `most`. */
export type Line = { readonly bytes: Uint8Array | null; readonly end: number };

/**
 * The whole lines of an open file; what follows the last newline is left out. Bytes are good until the next line is asked for.
 */
export function* linesOf(fd: number, most: number): Generator<Line> {
  const buffer = new Uint8Array(new ArrayBuffer(most + CHUNK));
  let held = 0; // bytes of a line that has begun
  let tooLong = false;
  for (let position = 0; ; ) {
    const got = readSync(fd, buffer, held, CHUNK, position);
    if (got === 0) return;
    const end = held + got;
    let from = 0;
    for (let at = buffer.indexOf(NEWLINE, held); at >= 0 && at < end; at = buffer.indexOf(NEWLINE, from)) {
      yield { bytes: tooLong || at - from > most ? null : buffer.subarray(from, at), end: position + at + 1 - held };
      tooLong = false;
      from = at + 1;
    }
    position += got;
    held = end - from;
    if (held > most) {
      tooLong = true;
      held = 0;
    } else buffer.copyWithin(0, from, end);
  }
}
