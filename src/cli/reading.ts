// What a person sees while data is read: one line on a terminal, drawn anew; elsewhere a line now and then.

import { now } from "../base/clock.ts";
import { formatBytes, readText } from "../base/units.ts";
import type { Reading } from "../session/preparation/prepare.ts";

/** Milliseconds before the first word, and between lines where there is no terminal. */
const [QUIET_MS, LINE_MS] = [1_000, 10_000];
/** Takes the line away that stands there. */
const CLEAR = "\r\x1b[K";

type Stream = Pick<NodeJS.WriteStream, "isTTY" | "write">;

/** One line that is drawn anew; without a terminal, a line each LINE_MS. Disposing takes it away. */
export function openLine(stream: Stream = process.stderr): Disposable & { readonly show: (text: string) => void } {
  let [drawn, saidAt] = [false, now()];
  return {
    show(text) {
      if (stream.isTTY) stream.write(`${CLEAR}${text}`);
      else if (now() - saidAt >= LINE_MS) {
        stream.write(`${text}\n`);
        saidAt = now();
      }
      drawn = stream.isTTY;
    },
    [Symbol.dispose]() {
      if (drawn) stream.write(CLEAR);
      drawn = false;
    },
  };
}

/** Shows how far the reading is, where it takes long enough to ask. */
export function readProgress(stream?: Stream): Disposable & Required<Pick<Reading, "progress">> {
  const started = now();
  const line = openLine(stream);
  return {
    progress(progress) {
      const ms = now() - started;
      if (ms < QUIET_MS) return;
      if (progress.fetching !== undefined) line.show(`fetching ${progress.fetching}: ${formatBytes(progress.bytes)}`);
      else if (progress.rows > 0) line.show(`reading: ${readText(progress, ms / 1000)}`);
    },
    [Symbol.dispose]: () => line[Symbol.dispose](),
  };
}
