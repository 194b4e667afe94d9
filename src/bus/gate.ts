// Requests that use a stage's memory pass a gate, which is closed before the memory is released, also where the run fails.

import { RunError } from "../base/errors.ts";
import { Later, type StageHandlers } from "./bus.ts";

export class Gate {
  readonly #inside = new Set<Promise<unknown>>();
  #closed = false;

  /** The same handlers through the gate: once it is closed they throw a RunError, `bus.closed`. */
  guard<H extends Partial<StageHandlers>>(handlers: H): H {
    const guarded = Object.entries(handlers).map(([type, handle]) => [
      type,
      (request: never) => this.#enter(type, () => (handle as (request: never) => Promise<unknown>)(request)),
    ]);
    return Object.fromEntries(guarded) as H;
  }

  /** From now on nothing begins. Resolves when what had begun has ended, late replies included, however it ended. */
  async close(): Promise<void> {
    this.#closed = true;
    while (this.#inside.size > 0) await Promise.all(this.#inside);
  }

  async #enter(type: string, work: () => Promise<unknown>): Promise<unknown> {
    if (this.#closed) throw new RunError("bus.closed", `the stage was closed before the request '${type}'`);
    const begun = work();
    this.#hold(begun);
    return await begun;
  }

  #hold(work: Promise<unknown>): void {
    const settled: Promise<unknown> = work
      .then((found) => {
        if (found instanceof Later) this.#hold(found.reply); // before this one is let go
      })
      .catch(() => undefined)
      .finally(() => this.#inside.delete(settled));
    this.#inside.add(settled);
  }
}
