// Work concurrent with the training: every failure is reported, and whatever waits for its end is woken.

/** Background tasks that no caller awaits directly. */
export class BackgroundTasks {
  readonly #tasks = new Set<Promise<void>>();
  #changed = Promise.withResolvers<void>();

  /** `failed` receives what a task throws; `settled` is called at the end of each task. */
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

  /** Has every `until` check its condition again. */
  wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** Waits until the condition holds; `check` throws what the run has failed with. */
  async until(condition: () => boolean, check: () => Promise<void>): Promise<void> {
    for (await check(); !condition(); await check()) await this.#changed.promise;
  }
}
