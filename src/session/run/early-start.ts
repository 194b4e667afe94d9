// Training that begins before all rows are read: with rows that are read as its first steps need them, while the reader reads
// all in order. It trains what it would train later, since the order of rows follows from their number. Until all are read
// nothing is saved or exported, so that a row that is at fault ends the run as it would have before training.
//
// It holds where each row of a file is one row to train on. Where it turns out that some are dropped, training begins anew with
// those that are left, when all are read: no later than if it had waited for them.

import { RequestError, RunError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { isWorth } from "../../data/file-rows.ts";
import { lazyArray } from "../../data/rows.ts";
import { isKnownByRow, isSame, RowsDiffer, UnreadData, type UnreadDataset } from "../../data/unread.ts";
import { checkpointsIn } from "../../files/checkpoint.ts";
import { readRecord } from "../../files/record.ts";
import { type Plan, type StageDevice, totalBytes } from "../../plan/plan.ts";
import { inputLength, type Row } from "../../schedule/pack.ts";
import { noticeEvent } from "../events/events.ts";
import { knownEstimate } from "../planning/estimate.ts";
import {
  countRows,
  openRequest,
  planOn,
  type Reading,
  type Request,
  readRows,
  setCounts,
  type Unread,
} from "../preparation/prepare.ts";
import { checkpointFolder } from "../state/checkpoints.ts";
import type { Job } from "./attempt.ts";

/** What is read by then is worth no early start, in ms. */
const PATIENCE_MS = 1_000;
/** Bytes that a process takes on a GPU's host, besides what is planned. */
const GPU_HOST_BYTES = 8 * 2 ** 30;

export type EarlyOptions = {
  /** Devices of the stages; null where they are not known yet. */
  readonly devices: readonly StageDevice[] | null;
  /** The run's folder. */
  readonly output: string;
  /** Milliseconds that the reading has first. */
  readonly patienceMs?: number;
};

/** A request, as far as it is known: `early` where its rows are still being read. */
export type Begun = { readonly request: Request; readonly early: EarlyStart | null };

/** Reads a request; gives it before all its rows are read where it can begin without. Throws what `readRequest` throws. */
export async function beginRequest(
  [recipe, spec]: Parameters<typeof openRequest>,
  reading: Reading & { readonly signal: AbortSignal },
  options: EarlyOptions,
): Promise<Begun> {
  const unread = await openRequest(recipe, spec, reading);
  const uneven = new AbortController();
  let elsewhere = 0;
  const whole = readRows(unread, {
    ...reading,
    elsewhere: () => elsewhere,
    uneven: () => uneven.abort(new RowsDiffer("some rows are dropped")),
  });
  whole.catch(() => undefined); // it may fail before it is awaited
  const { devices, patienceMs = PATIENCE_MS } = options;
  if (devices !== null && isFit(unread, options.output)) {
    const isRead = await isSettled(whole, patienceMs);
    const begun = isRead ? null : await begin(unread, whole, AbortSignal.any([uneven.signal, reading.signal]));
    const plan = begun && planned(begun.request, devices);
    if (begun && plan) {
      elsewhere = bytesHere(plan);
      return { request: begun.request, early: new EarlyStart({ ...begun, unread, whole, uneven: uneven.signal, reading }) };
    }
    begun?.data[Symbol.dispose]();
  }
  return { request: await whole, early: null };
}

/** Whether it resolves within this time. Throws what it rejects with. */
async function isSettled(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const timer = Promise.withResolvers<false>();
  const handle = setTimeout(() => timer.resolve(false), ms);
  try {
    return await Promise.race([promise.then(() => true), timer.promise]);
  } finally {
    clearTimeout(handle);
  }
}

/** Whether each row is one to train on, as far as the recipe says; and whether no run before has left anything to continue. */
function isFit({ recipe: { adapters }, cache, files }: Unread, output: string): boolean {
  const isLarge = cache !== null && [...files.values()].flat().some((file) => isWorth(file, cache));
  const isFresh =
    readRecord(output).size === 0 && adapters.every(({ name }) => checkpointsIn(checkpointFolder(output, name)).length === 0);
  return isLarge && isFresh && adapters.every(isKnownByRow);
}

type Beginning = {
  readonly request: Request;
  readonly data: UnreadData;
  readonly datasets: readonly UnreadDataset[];
  /** Where the rows of each adapter's `lengths` are looked up. */
  readonly trained: { rows: readonly Row[] }[];
};

/** Null where rows cannot be found without reading all, or all are read meanwhile. */
async function begin(unread: Unread, whole: Promise<Request>, signal: AbortSignal): Promise<Beginning | null> {
  const { recipe, spec, exact, tokenizer, files, made } = unread;
  const isOver = new AbortController();
  const end = () => isOver.abort(new RowsDiffer("all rows are read"));
  whole.then(end, end);
  try {
    const found = await UnreadData.open(recipe.adapters, {
      ...{ tokenizer, vocab: spec.vocab, files },
      signal: AbortSignal.any([signal, isOver.signal]),
    });
    if (!found) return null;
    const { datasets, data } = found;
    const trained: Beginning["trained"] = [];
    for (const [i, { train, eval: heldOut, about }] of datasets.entries()) {
      const rows: { rows: readonly Row[] } = { rows: train };
      trained.push(rows);
      const lengths = lazyArray(train.length, (row) => inputLength(rows.rows[row]!));
      const longest = recipe.adapters[i]!.maxLength - 1;
      const most = longest * (train[0]!.other ? 2 : 1);
      const unread = { longest, targets: about.targets, lengths: { most, mean: about.tokens } };
      setCounts(train, { lengths, longest: [], targets: [], unread });
      await countRows(heldOut, 0);
    }
    const notice = "training begins while the rows are read; nothing is saved before all of them are";
    const request = {
      ...{ recipe, spec, exact, notices: [...unread.notices, notice] },
      data: datasets.map(({ about: _, ...of }, i) => ({ ...of, ...made[i]! })),
    };
    return { request, data, datasets, trained };
  } catch (error) {
    // The reader finds what is wrong with the rows, and says it of the first of them.
    if (error instanceof RowsDiffer || error instanceof RequestError || error instanceof RunError) return null;
    throw error;
  }
}

function planned(request: Request, devices: readonly StageDevice[]): Plan | null {
  try {
    return planOn(request, devices);
  } catch (error) {
    if (error instanceof RequestError) return null; // it may be the longest row there could be that is too long
    throw error;
  }
}

/** Bytes that this process may take for a run, at most. */
const bytesHere = ({ stages }: Plan): number =>
  sum(
    stages.map(({ device, memory, sizes }) => (device.kind === "cpu" ? totalBytes(memory) : sizes.hostBytes + GPU_HOST_BYTES)),
  );

type EarlyParts = Beginning & {
  readonly unread: Unread;
  readonly whole: Promise<Request>;
  readonly uneven: AbortSignal;
  readonly reading: { readonly signal: AbortSignal };
};

/** A run that trains while its rows are read. */
export class EarlyStart implements Disposable {
  readonly #over = new AbortController();
  readonly #taken = Promise.withResolvers<void>();
  #isTaken = false;
  #parts: EarlyParts | null;
  readonly #data: UnreadData;
  readonly #whole: Promise<Request>;

  constructor(parts: EarlyParts) {
    const { whole, data } = parts;
    [this.#parts, this.#whole, this.#data] = [parts, whole, data];
    this.taken.catch(() => undefined); // where nothing is saved nothing waits for it
  }

  /** Aborted, with the reason, where the training cannot continue: a row is at fault, or rows are others than it began with. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  /** Resolves when all rows are read and the run has them; rejects with the reason of `over`. */
  get taken(): Promise<void> {
    return this.#taken.promise;
  }

  get whole(): Promise<Request> {
    return this.#whole;
  }

  /** Has the run take all rows when they are read. */
  follow(job: Omit<Job, "control">): void {
    const { uneven, reading } = this.#parts!;
    const fail = (reason: unknown) => {
      if (this.#isTaken) return;
      const stopped = new RunError("run.stopped", "stopped before all rows were read: nothing is saved");
      this.#over.abort(reading.signal.aborted ? stopped : reason);
      this.#taken.reject(this.#over.signal.reason);
    };
    const differ = () => fail(uneven.reason);
    uneven.addEventListener("abort", differ);
    if (uneven.aborted) differ();
    this.#whole.then((request) => this.#take(job, request)).catch(fail);
  }

  /** Before stages are opened again: waits for all rows, which the run begins anew with. Throws what is wrong with them. */
  async conclude(job: Job): Promise<void> {
    job.early = null;
    if (this.#isTaken) return;
    const { data, notices } = await this.#whole;
    job.adapters.takeRows(data, false);
    this.#tell(job, notices);
  }

  [Symbol.dispose](): void {
    this.#data[Symbol.dispose]();
    this.#parts = null;
  }

  #take(job: Omit<Job, "control">, request: Request): void {
    if (this.#over.signal.aborted) return;
    const { datasets, trained } = this.#parts!;
    if (!datasets.every((of, i) => isSame(of, request.data[i]!))) throw new RowsDiffer("some rows are dropped");
    for (const [i, { train }] of request.data.entries()) trained[i]!.rows = train;
    job.adapters.takeRows(request.data, true);
    const { plan } = job;
    const whole = planOn(
      request,
      plan.stages.map(({ device }) => device),
    );
    for (const [i, { work, tokens }] of whole.adapters.entries()) Object.assign(plan.adapters[i]!, { work, tokens });
    job.estimate = knownEstimate(whole, request.data);
    this.#tell(job, request.notices);
    this[Symbol.dispose]();
    this.#isTaken = true;
    this.#taken.resolve();
    if (isBetter(whole, plan)) job.adapters.reopen();
  }

  /** Notices of rows, which were not known before. */
  #tell({ emit, adapters }: Pick<Job, "emit" | "adapters">, notices: readonly string[]): void {
    const known = new Set(adapters.request.notices);
    for (const text of notices) if (!known.has(text)) emit(noticeEvent(null, text));
  }
}

/** Whether a plan by the rows as they are has more at once than one by the longest that there could be, or computes less. */
function isBetter(whole: Plan, early: Plan): boolean {
  const recomputation = (of: Plan) => of.stages[0]!.sizes.recomputation;
  return whole.slots > early.slots || whole.resident > early.resident || recomputation(whole) !== recomputation(early);
}
