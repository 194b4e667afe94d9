// Requests of other processes to add adapters: each is answered soon, with a ticket to ask for its outcome.

import { sleep } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { readText } from "../base/units.ts";
import type { Underway } from "../bus/control.ts";
import type { ReadProgress } from "../data/reading.ts";

/** A request is answered within this time. */
const ANSWER_MS = 2_000;
/** A command that has not asked for this long is gone, and its request is dropped, unless it has come to something. */
const GONE_MS = 30_000;
/** Outcomes that are kept for commands which cannot ask while stages are being opened, however long that takes. */
const MOST_KEPT = 100;

/** Does the work until `signal` is aborted, and reports how far its reading is. */
export type Work = (signal: AbortSignal, progress: (progress: ReadProgress) => void) => Promise<string>;
type Addition = {
  readonly outcome: Promise<string>;
  readonly stop: AbortController;
  reading: string;
  isSettled: boolean;
  gone: ReturnType<typeof setTimeout> | undefined;
};

export class Additions {
  readonly #all = new Map<string, Addition>();

  constructor(private readonly times = { answerMs: ANSWER_MS, goneMs: GONE_MS }) {}

  /** The outcome, or a ticket to ask for it. */
  begin(work: Work): Promise<string | Underway> {
    const ticket = randomText(20);
    const stop = new AbortController();
    const outcome = work(stop.signal, (progress) => {
      addition.reading = readText(progress, 0);
    });
    const addition: Addition = { outcome, stop, reading: "waiting for its turn", isSettled: false, gone: undefined };
    const settled = () => {
      addition.isSettled = true;
    };
    outcome.then(settled, settled);
    this.#all.set(ticket, addition);
    const kept = [...this.#all].filter(([, { isSettled }]) => isSettled);
    for (const [old] of kept.slice(0, Math.max(0, kept.length - MOST_KEPT))) this.#all.delete(old);
    return this.#answer(ticket, addition);
  }

  ask(ticket: string): Promise<string | Underway> {
    const addition = this.#all.get(ticket);
    if (!addition) throw new RequestError("control.ticket", "the run adds nothing under this ticket", "add the recipe again");
    return this.#answer(ticket, addition);
  }

  async #answer(ticket: string, addition: Addition): Promise<string | Underway> {
    clearTimeout(addition.gone);
    const found = await Promise.race([addition.outcome, sleep(this.times.answerMs)]).catch((error) => {
      this.#all.delete(ticket);
      throw error;
    });
    if (typeof found === "string") {
      this.#all.delete(ticket);
      return found;
    }
    addition.gone = setTimeout(() => {
      if (addition.isSettled) return;
      addition.stop.abort(new RequestError("control.gone", "the command that asked for it is gone"));
      this.#all.delete(ticket);
    }, this.times.goneMs);
    return { ticket, reading: addition.reading };
  }
}
