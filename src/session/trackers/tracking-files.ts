// Bytes that go to the end of files in a run's folder, a few writes for many events. They are no result of the run: what cannot
// be written waits, is written with what follows, and at the end it is said that it is missing.

import { existsSync } from "node:fs";
import { appendBytes } from "../../base/atomic.ts";
import { now } from "../../base/clock.ts";
import { MloraError, textOf } from "../../base/errors.ts";
import { count } from "../../base/units.ts";
import type { Listener } from "../events/events.ts";

/** Time between writes, and what waits at most: of all adapters together. */
const [EVERY_MS, MOST_WAITING] = [5_000, 16 << 20];

export type Tracking = {
  readonly listener: Listener;
  /** Before a checkpoint: what comes before it lasts, since a resumed run does not make it again. */
  readonly write: () => void;
  /** At the end; says what is missing. */
  readonly flush: () => void;
};

export class WaitingBytes {
  readonly #of = new Map<string, Uint8Array[]>();
  #bytes = 0;
  #lost = 0;
  #fault: unknown = null;
  #at = now();

  constructor(
    private readonly folder: string,
    private readonly notice: (text: string) => void,
  ) {}

  add(path: string, record: Uint8Array): void {
    if (this.#lost > 0 || this.#bytes + record.length > MOST_WAITING) {
      this.#lost++; // at the end, so that what is there has no gap
      return;
    }
    const of = this.#of.get(path);
    if (of) of.push(record);
    else this.#of.set(path, [record]);
    this.#bytes += record.length;
    if (now() - this.#at >= EVERY_MS) this.write();
  }

  write(): void {
    this.#at = now();
    try {
      if (!existsSync(this.folder)) return; // the run finds that out, and says it
      for (const [path, records] of this.#of) {
        appendBytes(path, Buffer.concat(records));
        this.#of.delete(path);
        for (const { length } of records) this.#bytes -= length;
      }
    } catch (error) {
      if (!(error instanceof MloraError)) throw error;
      if (this.#fault === null) this.notice(`${textOf(error)}; training continues, and what it holds waits`);
      this.#fault = error;
    }
  }

  end(): void {
    this.write();
    const lost = this.#lost + [...this.#of.values()].flat().length;
    if (lost > 0 && this.#fault !== null)
      this.notice(`${textOf(this.#fault)}; ${count(lost)} of its last records ${lost === 1 ? "is" : "are"} missing`);
  }
}
