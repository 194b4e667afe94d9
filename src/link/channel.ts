// Small messages between the two ends of a link: what is where, under which tag. Large ones never go this way.

import { RunError } from "../base/errors.ts";

export interface Channel extends Disposable {
  /** Sends after all that was sent before; does not wait. Nothing happens where the channel is over: `receive` tells of it. */
  send(message: Uint8Array): void;
  /** The next message. Throws a RunError, `link.*`, when the channel is over and nothing is left. */
  receive(): Promise<Uint8Array>;
}

/** What has come and is not yet asked for, or is asked for and has not come. */
export class Queue<T> {
  readonly #items: T[] = [];
  readonly #waiting: { resolve: (item: T) => void; reject: (error: Error) => void }[] = [];
  #end: Error | null = null;

  push(item: T): void {
    const first = this.#waiting.shift();
    if (first) first.resolve(item);
    else if (!this.#end) this.#items.push(item);
  }

  /** No more items come; those that are here can still be had. The first reason counts. */
  end(reason: Error): void {
    this.#end ??= reason;
    for (const { reject } of this.#waiting.splice(0)) reject(this.#end);
  }

  next(): Promise<T> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve(item);
    if (this.#end) return Promise.reject(this.#end);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }
}

/** The two ends of a channel within one process. */
export function channelPair(): readonly [Channel, Channel] {
  const queues = [new Queue<Uint8Array>(), new Queue<Uint8Array>()] as const;
  const end = (mine: Queue<Uint8Array>, theirs: Queue<Uint8Array>): Channel => ({
    send: (message) => theirs.push(message.slice()),
    receive: () => mine.next(),
    [Symbol.dispose]: () => {
      theirs.end(new RunError("link.lost", "the other end of the channel is gone"));
      mine.end(new RunError("link.closed", "the channel was closed"));
    },
  });
  return [end(queues[0], queues[1]), end(queues[1], queues[0])];
}
