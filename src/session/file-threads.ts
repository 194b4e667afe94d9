// Threads that write adapters' files while training continues: files/saver.ts, each started when it is first needed.

import { Worker } from "node:worker_threads";
import { RunError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import type { FromSaver, SaverJob } from "../files/saver.ts";

/** As bus/heartbeat.ts has it. */
const CODE = Bun.isStandaloneExecutable ? "./src/files/saver.ts" : new URL("../files/saver.ts", import.meta.url);

/** Jobs at once: large ones, and all with the small ones, which mostly wait for the disk. */
export type MostJobs = { readonly large: number; readonly small: number };
/** Where a job writes: those of one folder are done in their order. */
export type JobPlace = { readonly folder: string; readonly isSmall: boolean };
/** What a thread is to do, and memory that it gets instead of a copy. */
export type Job = { readonly work: SaverJob; readonly owned: readonly ArrayBuffer[] };

type Thread = { readonly worker: Worker; job: PromiseWithResolvers<void> | null };

export class FileThreads implements AsyncDisposable {
  readonly #threads: Thread[] = [];
  readonly #waiting: { readonly of: JobPlace; readonly begin: () => void }[] = [];
  readonly #under = new Set<Promise<void>>();
  /** Folders in which a job writes. */
  readonly #folders = new Set<string>();
  #busy = 0;
  #large = 0;
  #isClosed = false;

  constructor(private readonly most: MostJobs) {}

  /** Carries out a job when its turn has come, which `make` is called for then. Throws what the job throws, as a RunError. */
  run(of: JobPlace, make: () => Job | Promise<Job>): Promise<void> {
    const done = this.#run(of, make);
    const settled = done.catch(() => undefined);
    this.#under.add(settled);
    settled.finally(() => this.#under.delete(settled));
    return done;
  }

  async #run(of: JobPlace, make: () => Job | Promise<Job>): Promise<void> {
    await new Promise<void>((begin) => {
      this.#waiting.push({ of, begin });
      this.#next();
    });
    try {
      const { work, owned } = await make();
      if (this.#isClosed) throw new RunError("files.closed", `the run ended before ${work.folder} was begun`);
      const thread = this.#threads.find(({ job }) => job === null) ?? this.#start();
      thread.job = Promise.withResolvers<void>();
      thread.worker.postMessage(work, [...owned]);
      await thread.job.promise;
    } finally {
      this.#busy--;
      if (!of.isSmall) this.#large--;
      this.#folders.delete(of.folder);
      this.#next();
    }
  }

  /** Begins what may begin, in the order of the calls. */
  #next(): void {
    const { large, small } = this.most;
    const kept = new Set<string>(this.#folders); // a later job of a folder does not overtake one that waits
    for (const job of [...this.#waiting]) {
      if (this.#busy >= Math.max(large, small)) return;
      const { folder, isSmall } = job.of;
      if (!kept.has(folder) && (isSmall ? this.#busy < small : this.#large < large)) {
        this.#waiting.splice(this.#waiting.indexOf(job), 1);
        this.#busy++;
        if (!isSmall) this.#large++;
        this.#folders.add(folder);
        job.begin();
      }
      kept.add(folder);
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
