// What the stages have done in the last seconds, for those who watch: recorded while it is asked for, since a stage that is
// timed waits for its device after each part.

import { now } from "../../base/clock.ts";
import { maxOf } from "../../base/shape.ts";
import type { Bus } from "../../bus/bus.ts";
import type { StageSpan } from "../../bus/messages.ts";
import { SpanNames } from "./span-names.ts";
import { type StageTrace, Tracer } from "./trace.ts";

/** How much is kept, in ms. */
const WINDOW_MS = 60_000;
/** Spans that are kept of a stage. */
const MOST_SPANS = 6000;
/** Recording ends when it has not been asked for in this time. */
const UNWATCHED_MS = 5_000;
/** What is asked for again within this time is what was there. */
const FRESH_MS = 200;

/** Part of what a stage did, in ms of one clock; its adapters by name. */
export type LiveSpan = Pick<StageSpan, "kind" | "start" | "end"> & { readonly adapters: readonly string[] };

type Attended = {
  readonly bus: Bus;
  /** Of a trace of the whole run, which keeps its spans. */
  readonly whole: Tracer | null;
  /** Best opened before stages are busy: their clocks are asked. */
  own: Tracer | null;
  spans: LiveSpan[][];
  /** Spans of the whole trace that have been read. */
  read: number[];
};

export class LiveSpans {
  #attended: Attended | null = null;
  #collecting: Promise<void> = Promise.resolve();
  #collectedAt = Number.NEGATIVE_INFINITY;
  #end: Timer | null = null;

  constructor(readonly names = new SpanNames()) {}

  /** Until it is disposed, what is asked for is of these stages. */
  attend(bus: Bus, tracers: Pick<Attended, "whole" | "own">): Disposable {
    const empty = <T>(make: () => T): T[] => Array.from({ length: bus.stages }, make);
    this.#attended = { bus, ...tracers, spans: empty(() => []), read: empty(() => 0) };
    return {
      [Symbol.dispose]: () => {
        if (this.#end) clearTimeout(this.#end);
        this.#attended = null;
      },
    };
  }

  /** The last seconds of each stage, first stage first; empty while no stages are open. */
  async recent(): Promise<readonly (readonly LiveSpan[])[]> {
    const of = this.#attended;
    if (!of) return [];
    if (now() - this.#collectedAt > FRESH_MS) {
      this.#collectedAt = now();
      this.#collecting = this.#collect(of);
    }
    await this.#collecting;
    this.#endLater(of);
    return of.spans;
  }

  async #collect(of: Attended): Promise<void> {
    const { bus, whole } = of;
    if (whole) await whole.collect();
    else {
      of.own ??= await Tracer.open(bus);
      await of.own.record({ passes: true, kernels: false });
    }
    const { traces, began } = (whole ?? of.own)!;
    const named = (span: StageSpan): LiveSpan => {
      return { kind: span.kind, start: span.start, end: span.end, adapters: this.names.of(span, began) };
    };
    of.spans = of.spans.map((kept, stage) => [...kept, ...this.#unread(of, traces[stage]!, stage).map(named)]);
    const last = maxOf(of.spans.map((spans) => spans.at(-1)?.end ?? 0));
    of.spans = of.spans.map((spans) => spans.filter(({ end }) => end > last - WINDOW_MS).slice(-MOST_SPANS));
  }

  /** New spans of a stage; those of an own tracer are taken out of it. */
  #unread(of: Attended, { spans }: StageTrace, stage: number): readonly StageSpan[] {
    if (!of.whole) return (spans as StageSpan[]).splice(0);
    const unread = spans.slice(of.read[stage]!);
    of.read[stage] = spans.length;
    return unread;
  }

  #endLater(of: Attended): void {
    if (this.#end) clearTimeout(this.#end);
    this.#end = setTimeout(() => {
      of.spans = of.spans.map(() => []);
      void of.own?.record({ passes: false, kernels: false }).catch(() => undefined); // the stages may be gone
    }, UNWATCHED_MS);
    this.#end.unref();
  }
}
