// What a stage did and when, while somebody asks for it. Timing waits for the device after each part, so that a part's end is when
// its work was done; without a trace nothing is timed and nothing waits.

import { now } from "../base/clock.ts";
import type { KernelSpan, StageSpan } from "../bus/messages.ts";
import type { Device } from "../device/device.ts";

/** More than this are not kept: a night's run must not fill the memory because somebody wanted to look at it. */
const MOST_SPANS = 100_000;

type Timed = <T>(kind: StageSpan["kind"], work: () => T | Promise<T>) => Promise<T>;

export class Recorder {
  #spans: StageSpan[] = [];
  #passes = false;
  /** When the timeline of kernels began; null while there is none. */
  #kernelsFrom: number | null = null;

  constructor(private readonly device: Device) {}

  /** What was recorded until now; from now on passes, kernels, both or neither are. */
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

  /** Times parts of the work on a pass, or on none; `of` say whose it is. */
  timer(pass: number | null, of: readonly { readonly adapter: number }[]): Timed {
    return async (kind, work) => {
      if (!this.#passes) return work();
      const start = now();
      const result = await work();
      await this.device.idle();
      const adapters = [...new Set(of.map(({ adapter }) => adapter))];
      if (this.#spans.length < MOST_SPANS) this.#spans.push({ kind, pass, adapters, start, end: now() });
      return result;
    };
  }
}
