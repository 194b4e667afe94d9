// What a session reports, as data: the run's own events, and those of its opening, and of stages that are opened again.

import { RunError } from "../base/errors.ts";
import type { Invitation } from "../cluster/remote-stages.ts";
import type { ReadProgress } from "../data/reading.ts";
import type { Plan } from "../plan/plan.ts";
import type { Events } from "./events.ts";

/** An adapter of a run: `status` is how it ended, null where it goes on from `step`. */
export type AdapterOutlook = {
  readonly adapter: string;
  readonly steps: number;
  readonly step: number;
  readonly status: string | null;
};

/** A stage: layers from..to-1 on a device (`host` is empty on this machine), and the link to the next stage, null for the last. */
export type StageOutlook = {
  readonly from: number;
  readonly to: number;
  readonly host: string;
  readonly device: string;
  readonly link: string | null;
};

export type OpeningEvent =
  /** The data is read so far. */
  | ({ readonly type: "reading" } & ReadProgress)
  /** The run waits for stages on other machines. */
  | ({ readonly type: "inviting" } & Invitation)
  /** The output folder holds a run, which this one continues. */
  | { readonly type: "continued"; readonly output: string; readonly adapters: readonly AdapterOutlook[] }
  /** The run is accepted; `notices` concern its model and data, `paused` are adapters that stay paused, as before. */
  | {
      readonly type: "accepted";
      readonly run: string;
      readonly model: string;
      readonly device: string;
      readonly adapters: readonly string[];
      readonly slots: number;
      readonly notices: readonly string[];
      readonly paused: readonly string[];
    }
  /** The stages are open, and training begins. */
  | {
      readonly type: "opened";
      readonly plan: Plan;
      readonly stages: readonly StageOutlook[];
      readonly ended: readonly string[];
    }
  /** The stages are closed, to be opened again for more adapters, with less memory, or because one was lost. */
  | { readonly type: "reopening"; readonly why: "capacity" }
  | { readonly type: "reopening"; readonly why: "memory"; readonly message: string }
  /** For the `restart`th of at most `restarts` times. */
  | {
      readonly type: "reopening";
      readonly why: "lost";
      readonly message: string;
      readonly restart: number;
      readonly restarts: number;
    }
  /** By a new plan: `slots` of `adapters` train at once, in passes of at most `rows` rows. */
  | { readonly type: "replanned"; readonly slots: number; readonly adapters: number; readonly rows: number };
export type Reopening = Extract<OpeningEvent, { readonly type: "reopening" }>;

/** An observer's call, as data. */
export type RunEvent = {
  [K in keyof Events]: { readonly type: K; readonly values: Parameters<Events[K]> };
}[keyof Events];

export type SessionEvent = OpeningEvent | RunEvent;
export type Emit = (event: SessionEvent) => void;

/** Events that a reader may be behind: some hundred bytes each. */
const MOST_BEHIND = 100_000;

/** Gives each reader all events from when it began to read. */
export class EventStream {
  readonly #readers = new Set<ReadableStreamDefaultController<SessionEvent>>();
  #isOver = false;

  /** Ends with the session; fails with a RunError, `session.behind`, where the reader is too slow. */
  events(): AsyncIterable<SessionEvent> {
    let reader: ReadableStreamDefaultController<SessionEvent>;
    return new ReadableStream<SessionEvent>(
      {
        start: (controller) => {
          reader = controller;
          if (this.#isOver) controller.close();
          else this.#readers.add(controller);
        },
        cancel: () => void this.#readers.delete(reader),
      },
      new CountQueuingStrategy({ highWaterMark: MOST_BEHIND }),
    );
  }

  emit(event: SessionEvent): void {
    for (const reader of this.#readers)
      if (reader.desiredSize! > 0) reader.enqueue(event);
      else {
        this.#readers.delete(reader);
        reader.error(new RunError("session.behind", `a reader of the session's events is ${MOST_BEHIND} events behind`));
      }
  }

  end(): void {
    this.#isOver = true;
    for (const reader of this.#readers) reader.close();
    this.#readers.clear();
  }
}
