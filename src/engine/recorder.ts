// What a stage did and when, while a trace is recorded. Timing waits for the device after each part, so that a part ends when
// its work is done; without a trace nothing is timed and nothing waits.

import { now } from "../base/clock.ts";
import type { KernelSpan, StageSpan } from "../bus/messages.ts";
import type { Device } from "../device/device.ts";
import type { BatchTables } from "../schedule/micro-batch.ts";

/** Spans that are kept at most: a trace of a long run must not fill the memory. */
const MOST_SPANS = 100_000;

type Timed = <T>(kind: StageSpan["kind"], work: () => T | Promise<T>) => Promise<T>;

export class Recorder {
  #spans: StageSpan[] = [];
  #passes = false;
  /** Start of the timeline of kernels; null while there is none. */
  #kernelsFrom: number | null = null;

  constructor(private readonly device: Device) {}

  /** Returns what was recorded so far; `passes` and `kernels` say what is recorded from now on. */
  async record(passes: boolean, kernels: boolean): Promise<{ spans: StageSpan[]; kernels: KernelSpan[] }> {
    const from = this.#kernelsFrom;
    const launches = from === null ? [] : await this.device.endTimeline();
    const timed = launches.map(({ kernel, startMs, ms }) => ({ kernel, start: from! + startMs, end: from! + startMs + ms }));
    const spans = this.#spans;
    this.#spans = [];
    this.#passes = passes;
    this.#kernelsFrom = kernels ? now() : null;
    if (kernels) this.device.startTimeline();
    return { spans, kernels: timed };
  }

  /** Times parts of the work of these adapters on a pass, or on none. */
  timer(pass: number | null, adapters: readonly number[]): Timed {
    return async (kind, work) => {
      if (!this.#passes) return work();
      const start = now();
      const result = await work();
      await this.device.idle();
      if (this.#spans.length < MOST_SPANS) this.#spans.push({ kind, pass, adapters, start, end: now() });
      return result;
    };
  }
}

/** Milliseconds until something is done. */
export async function timed(done: Promise<void>): Promise<{ readonly ms: number }> {
  const begin = now();
  await done;
  return { ms: now() - begin };
}

/** The slots that have rows in a packed batch. */
export const adaptersOf = ({ tileAdapter }: Pick<BatchTables, "tileAdapter">): number[] =>
  [...new Set(tileAdapter)].filter((adapter) => adapter >= 0);
