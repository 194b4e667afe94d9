// The order of the calls of one adapter: each comes after those before it that change the adapter, and a change after all of
// them.

const settled = (of: Promise<unknown>): Promise<unknown> => of.catch(() => undefined);

export class Turns {
  #change: Promise<unknown> = Promise.resolve();
  readonly #reads = new Set<Promise<unknown>>();

  /** No call has been made that is not over. */
  get isIdle(): boolean {
    return this.#open === 0;
  }
  #open = 0;

  /** Work that changes the adapter: nothing else of it runs meanwhile. */
  change<T>(work: () => Promise<T>): Promise<T> {
    const before = Promise.all([this.#change, ...this.#reads]);
    this.#reads.clear();
    const done = before.then(work);
    this.#change = settled(done);
    this.#count(done);
    return done;
  }

  /** Work that leaves the adapter as it is: runs with other such work. */
  read<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#change.then(work);
    const over = settled(done);
    this.#reads.add(over);
    void over.then(() => this.#reads.delete(over));
    this.#count(done);
    return done;
  }

  #count(done: Promise<unknown>): void {
    this.#open++;
    void settled(done).then(() => this.#open--);
  }
}
