// The jobs of a server: which of them train now, and what clients ask of one that is under way.

import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { MloraError } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { counted } from "../base/units.ts";
import type { LatestRows } from "../session/control/controls.ts";
import { ApiError, badRequest, failureText, isFatal } from "./errors.ts";
import { type Halt, JobFault, type JobOptions, JobRun } from "./job-run.ts";
import type { Asked, JobError, JobRow } from "./job-store.ts";

export type JobsOptions = JobOptions & {
  /** Jobs that train at once. */
  readonly atOnce: number;
  /** Jobs of a tenant that are not over, at most. */
  readonly most: number;
  readonly log: (event: string, more: Readonly<Record<string, unknown>>) => void;
  /** Called with what has lost the stages: jobs that were under way continue when the server is started again. */
  readonly lost: (error: unknown) => void;
};

const newId = (): string => `ftjob-${randomText(24)}`;
/** The same for one key of one tenant. */
const idOf = (tenant: string, key: string): string =>
  `ftjob-${new Bun.CryptoHasher("sha256")
    .update(JSON.stringify([tenant, key]))
    .digest("hex")
    .slice(0, 32)}`;
/** But for the seed: a repeat of a request without one has another. */
const isSame = (known: Asked, asked: Asked): boolean =>
  JSON.stringify({ ...known, seed: 0 }) === JSON.stringify({ ...asked, seed: 0 });

export class Jobs {
  readonly #runs = new Map<string, { readonly run: JobRun; readonly over: Promise<void> }>();
  #isStopping = false;

  constructor(private readonly options: JobsOptions) {}

  /** Continues what an earlier server left. */
  begin(): void {
    this.#tidy();
    for (const job of this.options.store.open()) if (job.status === "validating_files") this.#validate(job);
    this.#settle();
  }

  /** Removes what a kill has left of jobs that are over, or were never accepted. */
  #tidy(): void {
    const { store, folder } = this.options;
    for (const id of readdirSync(folder)) {
      const job = store.known(id);
      if (!job) rmSync(join(folder, id), { recursive: true, force: true });
      else if (job.finished_at !== null) new JobRun(job, this.options).forget();
    }
  }

  /**
   * Throws ApiErrors; then there is no job. `key`: the client's `Idempotency-Key`; one that has lost its answer and asks again
   * has the job that is there.
   */
  create(tenant: string, asked: Asked, key: string | null): JobRow {
    const { store, most } = this.options;
    const id = key === null ? newId() : idOf(tenant, key);
    const known = store.known(id);
    if (known && !isSame(known.asked, asked))
      throw badRequest("This 'Idempotency-Key' was another job's: each has a key of its own.", null, "idempotency_key_reused");
    if (known) return known;
    if (store.open(tenant).length >= most)
      throw new ApiError(429, `This key has ${counted(most, "job")} that are not over, the most that it may have.`, {
        code: "rate_limit_exceeded",
      });
    const job = store.db.together(() => {
      const added = store.add(id, tenant, asked);
      new JobRun(added, this.options).keepFiles();
      store.event(added.id, `Created fine-tuning job: ${added.id}`, {}, "created");
      return added;
    });
    this.#validate(job);
    return job;
  }

  /** Reads and checks a job's files, and has it wait for its turn. */
  #validate(job: JobRow): void {
    this.#start(job, async (run) => {
      await run.prepare();
      if (run.halted === null) this.options.store.setStatus(job.id, "queued");
      else this.#halted(run);
    });
  }

  cancel(tenant: string, id: string): Promise<JobRow> {
    return this.#halt(tenant, id, "cancelled");
  }

  pause(tenant: string, id: string): Promise<JobRow> {
    return this.#halt(tenant, id, "paused");
  }

  resume(tenant: string, id: string): JobRow {
    const { store } = this.options;
    const job = store.find(tenant, id);
    if (job.status !== "paused") throw wrongStatus(job, "resumed");
    const { isPrepared } = new JobRun(job, this.options);
    store.setStatus(id, isPrepared ? "queued" : "validating_files");
    store.event(id, "The job has been resumed");
    if (isPrepared) this.#settle();
    else this.#validate(store.get(id));
    return store.get(id);
  }

  /** Between two steps; resolves when the job has left the stages. */
  async #halt(tenant: string, id: string, why: Extract<Halt, "paused" | "cancelled">): Promise<JobRow> {
    const { store } = this.options;
    const job = store.find(tenant, id);
    const isOver = job.finished_at !== null;
    if (isOver || job.status === why) throw wrongStatus(job, why);
    const under = this.#runs.get(id);
    if (under) {
      under.run.halt(why);
      await under.over;
    } else this.#ended(job, why);
    return store.get(id);
  }

  #ended(job: JobRow, why: "paused" | "cancelled"): void {
    const { store } = this.options;
    store.db.together(() => {
      store.setStatus(job.id, why);
      store.event(job.id, why === "paused" ? "The job has been paused" : "The job has been cancelled");
    });
    if (why === "cancelled") new JobRun(job, this.options).forget();
  }

  /** Ends all that is under way between two steps, and saves it; it continues when the server is started again. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    for (const { run } of this.#runs.values()) run.halt("stopping");
    await Promise.all([...this.#runs.values()].map(({ over }) => over));
  }

  /** The rows that a job trains on now; null where it does not train. */
  latestRows(tenant: string, id: string): LatestRows | null {
    return this.#runs.get(this.options.store.find(tenant, id).id)?.run.latestRows ?? null;
  }

  /** Where the adapter of a job is that has succeeded, and has not been deleted; null of others. */
  adapterFolder(tenant: string, id: string): string | null {
    const job = this.options.store.find(tenant, id);
    const folder = join(this.options.folder, job.id, "model");
    return job.status === "succeeded" && existsSync(folder) ? folder : null;
  }

  get running(): number {
    return this.#runs.size;
  }

  /** Starts jobs while there is room: in turn of the tenants that have the fewest under way, of each the first. */
  #settle(): void {
    const { store, atOnce } = this.options;
    for (;;) {
      const training = [...this.#runs.values()].filter(({ run }) => run.job.status !== "validating_files");
      if (this.#isStopping || training.length >= atOnce) return;
      const isReady = ({ id, status }: JobRow) => (status === "queued" || status === "running") && !this.#runs.has(id);
      const waiting = store.open().filter(isReady);
      const under = training.map(({ run }) => run.job.tenant);
      const share = ({ tenant }: JobRow) => under.filter((of) => of === tenant).length;
      const [next] = waiting.sort((a, b) => share(a) - share(b) || a.seq - b.seq);
      if (!next) return;
      this.#start(next, async (run) => {
        store.setStatus(next.id, "running");
        if (!(await run.train())) this.#halted(run);
      });
    }
  }

  #start(job: JobRow, work: (run: JobRun) => Promise<void>): void {
    const run = new JobRun(job, this.options);
    const over = this.#run(run, work).finally(() => {
      this.#runs.delete(job.id);
      this.#settle();
    });
    this.#runs.set(job.id, { run, over });
  }

  /** Never throws. */
  async #run(run: JobRun, work: (run: JobRun) => Promise<void>): Promise<void> {
    const { store, log } = this.options;
    const { id } = run.job;
    try {
      await work(run);
    } catch (error) {
      if (run.halted !== null) return this.#halted(run);
      if (isFatal(error)) return this.options.lost(error);
      const failure = failureOf(error);
      store.db.together(() => {
        store.setStatus(id, "failed", failure);
        store.event(id, `The job has failed: ${failure.message}`, { level: "error" });
      });
      if (failure.code === "server_error") log("error", { job: id, error: failureText(error), stack: (error as Error).stack });
      run.forget();
    }
  }

  #halted(run: JobRun): void {
    const why = run.halted;
    if (why === "stopping") return; // it is running for those who ask, and will be
    if (why !== null) this.#ended(run.job, why);
  }
}

const wrongStatus = ({ id, status }: JobRow, what: string): ApiError =>
  badRequest(`Job ${id} cannot be ${what}: it is ${status}.`, null, "invalid_status");

function failureOf(error: unknown): JobError {
  if (error instanceof JobFault) return { code: "invalid_training_file", message: error.message, param: error.param };
  if (error instanceof ApiError) {
    const { message, code, param } = error.body.error;
    return { code: code ?? "invalid_request", message, param };
  }
  if (error instanceof MloraError) return { code: error.code, message: failureText(error), param: null };
  return { code: "server_error", message: "The server failed at this job; its log says why.", param: null };
}
