// What the stages have done in the last seconds, for those who watch: recorded while it is asked for, since a stage that is
// timed waits for its device after each part.

import { now } from "../base/clock.ts";
import { maxOf } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { StageSpan } from "../bus/messages.ts";
import { type StageTrace, Tracer } from "./trace.ts";

/** How much is kept, in ms. */
const WINDOW_MS = 60_000;
/** Spans that are kept of a stage. */
const MOST_SPANS = 6000;
/** Recording ends when it has not been asked for in this time. */
const UNWATCHED_MS = 5_000;
/** What is asked for again within this time is what was there. */
const FRESH_MS = 200;
/** Passes whose adapters are remembered: far more than a window has. */
const MOST_PASSES = 20_000;

/** Part of what a stage did, in ms of one clock; its adapters by name. */
export type LiveSpan = Pick<StageSpan, "kind" | "start" | "end"> & { readonly adapters: readonly string[] };

type Attended = {
  readonly bus: Bus;
  readonly holders: () => ReadonlyMap<number, string>;
  /** Of a trace of the whole run, which keeps its spans. */
  readonly whole: Tracer | null;
  /** Best opened before stages are busy: their clocks are asked. */
  own: Tracer | null;
  spans: LiveSpan[][];
  /** Spans of the whole trace that have been read. */
  read: number[];
};

export class LiveSpans {
  readonly #passes = new Map<number, readonly string[]>();
  #attended: Attended | null = null;
  #collecting: Promise<void> = Promise.resolve();
  #collectedAt = Number.NEGATIVE_INFINITY;
  #end: Timer | null = null;

  /** A packed batch has begun: slots change hands, so its adapters are kept by its number. */
  begin(pass: number, adapters: readonly string[]): void {
    this.#passes.set(pass, adapters);
    if (this.#passes.size > MOST_PASSES) this.#passes.delete(this.#passes.keys().next().value!);
  }

  /** Until it is disposed, what is asked for is of these stages; `holders`: what is in each slot now. */
  attend(bus: Bus, tracers: Pick<Attended, "whole" | "own">, holders: Attended["holders"]): Disposable {
    const empty = <T>(make: () => T): T[] => Array.from({ length: bus.stages }, make);
    this.#attended = { bus, holders, ...tracers, spans: empty(() => []), read: empty(() => 0) };
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
    const { bus, whole, holders } = of;
    if (whole) await whole.collect();
    else {
      of.own ??= await Tracer.open(bus);
      await of.own.record({ passes: true, kernels: false });
    }
    const slots = holders();
    const namesOf = ({ pass, adapters }: StageSpan): readonly string[] =>
      (pass === null ? null : this.#passes.get(pass)) ?? adapters.flatMap((slot) => slots.get(slot) ?? []);
    const named = (span: StageSpan): LiveSpan => {
      return { kind: span.kind, start: span.start, end: span.end, adapters: namesOf(span) };
    };
    const { traces } = (whole ?? of.own)!;
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
