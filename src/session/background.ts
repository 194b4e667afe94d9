// What goes on beside the training: started and watched here, so that no failure is lost and whoever waits is woken.

/** Work that nobody waits for by itself. */
export class BackgroundTasks {
  readonly #tasks = new Set<Promise<void>>();
  #changed = Promise.withResolvers<void>();

  /** `failed` is told of what goes wrong, `settled` is called whenever something has come to its end. */
  constructor(
    private readonly failed: (error: unknown) => void,
    private readonly settled: () => void,
  ) {}

  get idle(): boolean {
    return this.#tasks.size === 0;
  }

  start(work: Promise<unknown>): void {
    const task: Promise<void> = work
      .catch((error) => this.failed(error))
      .then(() => {
        this.#tasks.delete(task);
        this.settled();
        this.wake();
      });
    this.#tasks.add(task);
  }

  /** Something has changed: those that wait look again. */
  wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** Waits until the condition holds; `check` throws what went wrong. */
  async until(condition: () => boolean, check: () => Promise<void>): Promise<void> {
    for (await check(); !condition(); await check()) await this.#changed.promise;
  }
}
