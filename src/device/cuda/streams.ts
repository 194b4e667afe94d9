// Streams in addition to the main one, on which tensors leave and arrive while kernels run. Events order them; the host waits
// for none.

import { EVENT_NO_TIMING, result, STREAM_NON_BLOCKING } from "../../../ffi/cuda.ts";
import { now, sleep } from "../../base/clock.ts";
import { check, type Driver, OutParam } from "./driver.ts";

/** Milliseconds for which the end of the work is asked for at once, before sleeping between questions. */
const EAGER_MS = 5;
/** The same before and after the time that a recent wait took: passes of a run are alike, and a sleep ends late. */
const BEFORE_MS = 3;
const AFTER_MS = 4;
/** Waits that are remembered. */
const RECENT = 12;

/** Ways to let time pass. */
export type Pauses = {
  readonly now: () => number;
  readonly sleep: (ms: number) => Promise<void>;
  readonly yield: () => Promise<void>;
};
const PAUSES: Pauses = { now, sleep, yield: () => new Promise((resolve) => setImmediate(resolve)) };

/**
 * Asks until the answer is another than "not ready", and gives that; timers, signals and messages come through meanwhile. It
 * sleeps between questions, but for the beginning of a wait and where such waits have ended.
 */
export function waiting(pauses = PAUSES): (ask: () => number) => Promise<number> {
  const recent: number[] = [];
  return async (ask) => {
    for (const begin = pauses.now(); ; ) {
      const status = ask();
      const waited = pauses.now() - begin;
      const isEager = waited < EAGER_MS;
      if (status !== result.NOT_READY) {
        if (!isEager && recent.push(waited) > RECENT) recent.shift();
        return status;
      }
      const isNear = recent.some((time) => waited > time - BEFORE_MS && waited < time + AFTER_MS);
      await (isEager || isNear ? pauses.yield() : pauses.sleep(1));
    }
  };
}

export const until = waiting();

export class SideStream implements Disposable {
  readonly stream: number;
  readonly #out = new OutParam();
  readonly #order: number; // its meaning is taken at each wait, so one is enough
  readonly #idle: number[] = []; // events that nothing waits for
  readonly #marks = new Set<number>(); // those that something will wait for
  readonly #unsettled: { readonly event: number; readonly resolve: () => void; readonly reject: (error: Error) => void }[] = [];

  constructor(
    private readonly driver: Driver,
    private readonly main: number,
  ) {
    check(driver, "cuStreamCreate", driver.cuStreamCreate(this.#out.ptr, STREAM_NON_BLOCKING));
    this.stream = this.#out.number;
    this.#order = this.newEvent();
  }

  /** What is enqueued here from now on comes after what the main stream has now. */
  afterMain(): void {
    this.record(this.#order, this.main);
    this.wait(this.#order, this.stream);
  }

  /** What is enqueued on the main stream from now on comes after what this one has now. */
  beforeMain(): void {
    this.record(this.#order, this.stream);
    this.wait(this.#order, this.main);
  }

  record(event: number, stream = this.stream): void {
    check(this.driver, "cuEventRecord", this.driver.cuEventRecord(event, stream));
  }

  wait(event: number, stream = this.stream): void {
    check(this.driver, "cuStreamWaitEvent", this.driver.cuStreamWaitEvent(stream, event, 0));
  }

  /** What is enqueued on the main stream after a call of the function returned comes after what this one has now. */
  mark(): () => void {
    const event = this.#idle.pop() ?? this.newEvent();
    this.#marks.add(event);
    this.record(event);
    return () => {
      this.wait(event, this.main);
      if (this.#marks.delete(event)) this.#idle.push(event); // the wait has taken its meaning
    };
  }

  /** Resolves when what this stream has now is done; throws what went wrong on the GPU. */
  settled(): Promise<void> {
    const event = this.#idle.pop() ?? this.newEvent();
    this.record(event);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#unsettled.push({ event, resolve, reject });
    if (this.#unsettled.length === 1) void this.#settle();
    return promise;
  }

  /** A stream does its work in order: the first event is the only one to ask for. */
  async #settle(): Promise<void> {
    for (let first = this.#unsettled[0]; first; first = this.#unsettled[0]) {
      const { event, resolve, reject } = first;
      try {
        const status = await until(() => (this.#closed ? result.SUCCESS : this.driver.cuEventQuery(event)));
        check(this.driver, "a copy between stages", status);
        this.#idle.push(event);
        resolve();
      } catch (error) {
        reject(error as Error);
      }
      this.#unsettled.shift();
    }
  }

  /** Waits, with the whole process, until all that this stream has is done. */
  synchronise(): void {
    this.driver.cuStreamSynchronize(this.stream);
  }

  #closed = false;

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.synchronise();
    for (const event of [this.#order, ...this.#idle, ...this.#marks]) this.driver.cuEventDestroy_v2(event);
    this.driver.cuStreamDestroy_v2(this.stream);
  }

  /** An event of this process alone; whose it is destroys it. */
  newEvent(): number {
    check(this.driver, "cuEventCreate", this.driver.cuEventCreate(this.#out.ptr, EVENT_NO_TIMING));
    return this.#out.number;
  }
}

/** One for what leaves and one for what arrives, so that neither waits for the other. */
export function sideStreams(driver: Driver, main: number) {
  const send = new SideStream(driver, main);
  const receive = new SideStream(driver, main);
  return {
    send,
    receive,
    [Symbol.dispose]: () => {
      send[Symbol.dispose]();
      receive[Symbol.dispose]();
    },
  };
}
