// Threads that write adapters' files while training continues: files/saver.ts, each started when it is first needed.

import { Worker } from "node:worker_threads";
import { RunError, textOf } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import type { FromSaver, SaverJob } from "../../files/saver.ts";

/** As bus/heartbeat.ts has it. */
const CODE = Bun.isStandaloneExecutable ? "./src/files/saver.ts" : new URL("../../files/saver.ts", import.meta.url);

/** What a thread is to do, and memory that it gets instead of a copy. */
export type Job = { readonly work: SaverJob; readonly owned: readonly ArrayBuffer[] };

type Thread = { readonly worker: Worker; job: PromiseWithResolvers<void> | null };

export class FileThreads implements AsyncDisposable {
  readonly #threads: Thread[] = [];
  readonly #free: (() => void)[] = [];
  readonly #under = new Set<Promise<void>>();
  #busy = 0;
  #isClosed = false;

  /** At most `most` jobs at once. */
  constructor(private readonly most: number) {}

  /** Carries out a job when a thread is free, which `make` is called for then. Throws what the job throws, as a RunError. */
  run(make: () => Job | Promise<Job>): Promise<void> {
    const done = this.#run(make);
    const settled = done.catch(() => undefined);
    this.#under.add(settled);
    settled.finally(() => this.#under.delete(settled));
    return done;
  }

  async #run(make: () => Job | Promise<Job>): Promise<void> {
    if (this.#busy >= this.most) await new Promise<void>((resolve) => this.#free.push(resolve));
    else this.#busy++;
    try {
      const { work, owned } = await make();
      if (this.#isClosed) throw new RunError("files.closed", `the run ended before ${work.folder} was begun`);
      const thread = this.#threads.find(({ job }) => job === null) ?? this.#start();
      thread.job = Promise.withResolvers<void>();
      thread.worker.postMessage(work, [...owned]);
      await thread.job.promise;
    } finally {
      const next = this.#free.shift();
      if (next) next();
      else this.#busy--;
    }
  }

  #start(): Thread {
    const thread: Thread = { worker: new Worker(CODE), job: null };
    const settle = (how: (job: PromiseWithResolvers<void>) => void) => {
      const { job } = thread;
      thread.job = null;
      if (job) how(job);
    };
    thread.worker.on("message", ({ notice, failure }: FromSaver) => {
      if (notice !== undefined) log(0, () => `notice: ${notice}`);
      else if (failure) settle(({ reject }) => reject(new RunError(failure.code, failure.message, failure.hint)));
      else settle(({ resolve }) => resolve());
    });
    thread.worker.on("error", (error) => {
      this.#threads.splice(this.#threads.indexOf(thread), 1);
      settle(({ reject }) => reject(new Error(`the thread that writes files: ${textOf(error)}`)));
    });
    this.#threads.push(thread);
    return thread;
  }

  /** Waits for what the threads are doing; they begin nothing more. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.allSettled(this.#threads.map(({ job }) => job?.promise));
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()));
  }

  /** Waits for all jobs that were given. */
  async [Symbol.asyncDispose](): Promise<void> {
    while (this.#under.size > 0) await Promise.all(this.#under);
    await this.close();
  }
}
