// Work of which a few pieces may be under way at a time, as each holds memory of the host.

export class Few {
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  /** `most`: pieces of work at once. */
  constructor(private readonly most: number) {}

  /** Begins work when its turn has come, in the order of the calls. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running === this.most) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}
