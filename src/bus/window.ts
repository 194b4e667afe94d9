// The window of a sender over a wire that loses messages, and of its receiver: numbered chunks arrive once and in order.
//
// The receiver takes the next number and nothing else, and says how far it has come; what it has not confirmed is kept by the
// sender, a window's worth at most, so that memory stays flat. Chunks are not sent again after a time, since a stage that
// computes does not read for seconds: the sender asks what has arrived, and a chunk that was sent before the question and is
// missing in the answer was lost.

import { now } from "../base/clock.ts";

/** Of the sizes that were measured, the fastest. */
export const CHUNK_BYTES = 2 ** 20;
const WINDOW_BYTES = 8 * 2 ** 20;
/** Time without an answer after which `look` asks. */
export const PROBE_MS = 250;

type Chunk = { readonly bytes: Uint8Array };
/** A chunk that may be on its way; `probes` were asked before it was sent. */
type Sent<C> = { readonly number: number; readonly chunk: C; probes: number };

export type Wire<C extends Chunk> = {
  /** The next chunk to be sent; null while there is none. */
  readonly next: () => C | null;
  readonly send: (number: number, chunk: C) => void;
  readonly probe: (probe: number) => void;
};

export class SendWindow<C extends Chunk> {
  readonly #wire: Wire<C>;
  #sent: Sent<C>[] = []; // in order, not yet confirmed
  readonly #waiting: (() => void)[] = [];
  #onTheWay = 0; // bytes
  #numbers = 0;
  #probes = 0;
  #answered = 0;
  #heard = now();

  constructor(wire: Wire<C>) {
    this.#wire = wire;
  }

  /** Sends what there is, as far as the window reaches; to be called when there is more. */
  pump(): void {
    while (this.#onTheWay < WINDOW_BYTES) {
      const chunk = this.#wire.next();
      if (!chunk) break;
      if (this.isEmpty) this.#heard = now();
      const number = this.#numbers++;
      this.#sent.push({ number, chunk, probes: this.#probes });
      this.#onTheWay += chunk.bytes.length;
      this.#wire.send(number, chunk);
    }
    if (this.isEmpty) for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** All that was sent has arrived. */
  get isEmpty(): boolean {
    return this.#sent.length === 0;
  }

  /** Resolves when all that was sent has arrived. */
  settled(): Promise<void> {
    return this.isEmpty ? Promise.resolve() : new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Asks what has arrived. */
  ask(): void {
    if (!this.isEmpty) this.#wire.probe(++this.#probes);
  }

  /** Asks where no answer came for a while; to be called now and then. */
  look(): void {
    if (now() - this.#heard >= PROBE_MS) this.ask();
  }

  /**
   * All chunks below `next` have arrived; what was sent before question `probe` and is not among them was lost. Returns what is
   * wrong with an answer that cannot be, which changes nothing; null for any other.
   */
  acknowledge(next: number, probe: number): string | null {
    if (next > this.#numbers || probe > this.#probes)
      return `it confirms chunk ${next - 1} of ${this.#numbers}, question ${probe} of ${this.#probes}`;
    const left = this.#sent.findIndex(({ number }) => number >= next);
    const arrived = this.#sent.splice(0, left < 0 ? this.#sent.length : left);
    for (const { chunk } of arrived) this.#onTheWay -= chunk.bytes.length;
    if (arrived.length > 0) this.#heard = now();
    if (probe > this.#answered) {
      this.#answered = probe;
      for (const lost of this.#sent.filter(({ probes }) => probes < probe)) {
        lost.probes = this.#probes;
        this.#wire.send(lost.number, lost.chunk);
      }
    }
    this.pump();
    return null;
  }

  /** Forgets what was sent. */
  clear(): void {
    [this.#sent, this.#onTheWay] = [[], 0];
    this.pump();
  }
}

export class ReceiveWindow {
  readonly #answer: (next: number, probe: number) => void;
  #next = 0;
  #probe = 0;
  #due = false;

  /** `answer` says that all chunks below `next` have come, and which question was the latest. */
  constructor(answer: (next: number, probe: number) => void) {
    this.#answer = answer;
  }

  asked(probe: number): void {
    this.#probe = Math.max(this.#probe, probe);
    this.#reply();
  }

  /** Whether a chunk that has come is the next one. Any is answered: the sender may not know where the receiver is. */
  isNext(number: number): boolean {
    this.#reply();
    return number === this.#next;
  }

  /** The next chunk has been taken. */
  advance(): void {
    this.#next++;
  }

  /** Once for all chunks that came together. */
  #reply(): void {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      this.#answer(this.#next, this.#probe);
    });
  }
}
