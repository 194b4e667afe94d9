// The one sink of a session's events, and its readers.

import type { Listener, SessionEvent } from "./events.ts";

/** Events that wait for a reader at most: a few megabytes. */
const MOST_WAITING = 4096;

/**
 * The one sink of a session's events. Listeners are called at once and in order; readers take events in their own time. A
 * reader never makes the session wait: beyond MOST_WAITING its oldest events are dropped, and a `missed` event with their
 * number takes their place.
 */
export class EventStream {
  readonly #readers = new Set<Reader>();
  #isClosed = false;

  constructor(private readonly listeners: readonly Listener[] = []) {}

  readonly emit = (event: SessionEvent): void => {
    for (const listener of this.listeners) listener(event);
    for (const reader of this.#readers) reader.push(event);
  };

  /** All events from this call on, until the stream is closed. */
  events(): AsyncGenerator<SessionEvent, void> {
    const reader = new Reader();
    this.#readers.add(reader);
    if (this.#isClosed) reader.close();
    return reader.read(() => void this.#readers.delete(reader));
  }

  /** No event comes any more: readers end after those that they have not read. */
  close(): void {
    this.#isClosed = true;
    for (const reader of this.#readers) reader.close();
  }
}

class Reader {
  #waiting: SessionEvent[] = [];
  #missed = 0;
  #isClosed = false;
  #changed = Promise.withResolvers<void>();

  push(event: SessionEvent): void {
    if (this.#waiting.length === MOST_WAITING) {
      this.#waiting.shift();
      this.#missed++;
    }
    this.#waiting.push(event);
    this.#changed.resolve();
  }

  close(): void {
    this.#isClosed = true;
    this.#changed.resolve();
  }

  #take(): SessionEvent | undefined {
    if (this.#missed === 0) return this.#waiting.shift();
    const count = this.#missed;
    this.#missed = 0;
    return { type: "missed", count };
  }

  async *read(end: () => void): AsyncGenerator<SessionEvent, void> {
    try {
      for (;;) {
        const next = this.#take();
        if (next) yield next;
        else if (this.#isClosed) return;
        else {
          this.#changed = Promise.withResolvers();
          await this.#changed.promise;
        }
      }
    } finally {
      end();
    }
  }
}
