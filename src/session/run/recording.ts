// Keeps in the run's folder how adapters ended.

import { textOf } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import { writeRecord } from "../../files/record.ts";
import { type AdapterResult, type Listener, type RunResult, resultOf } from "../events/events.ts";
import type { Job } from "./attempt.ts";
import type { Resumed } from "./resume.ts";

export type Recording = Disposable & { readonly listener: Listener; readonly end: (result: RunResult) => void };

/**
 * The record is written whole each time. Of a run that is stopped, in which all adapters end at once, it is written when the
 * last of them has, or when this is disposed of: until then each of them is one that its checkpoint continues, and so it is
 * after a kill.
 */
export function recording(
  job: Pick<Job, "outcomes" | "saved" | "estimate" | "stop">,
  output: string,
  resumed: Pick<Resumed, "ended"> | null,
  write: typeof writeRecord = writeRecord,
): Recording {
  const { outcomes, saved, stop } = job;
  const all = new Map<string, AdapterResult>(resumed?.ended);
  let isDue = false;
  const keep: typeof write = (...what) => {
    isDue = false; // what fails once is reported once
    write(...what);
  };
  return {
    listener: (event) => {
      if (event.type !== "ended") return;
      const result = resultOf(event);
      outcomes.set(result.name, result);
      if (result.status !== "failed") reached(saved, result.name, result.steps);
      all.set(result.name, result);
      isDue = true;
      if (result.status !== "stopped" || !stop.signal.aborted) keep(output, all.values());
    },
    end: ({ seconds, tokens }) => {
      const { estimate } = job;
      const estimated = { estimated_seconds: estimate?.seconds ?? null, basis: estimate?.basis ?? null };
      const time = { seconds, tokens, tokens_per_second: tokens / Math.max(1e-3, seconds), ...estimated };
      keep(output, all.values(), time);
    },
    [Symbol.dispose]: () => {
      if (!isDue) return;
      try {
        keep(output, all.values());
      } catch (error) {
        log(0, () => `notice: how adapters ended was not kept: ${textOf(error)}`); // what ended the run is the first fault
      }
    },
  };
}

/** Notes the last step at which an adapter was saved. */
export const reached = (saved: Map<string, number>, name: string, step: number): void =>
  void saved.set(name, Math.max(saved.get(name) ?? 0, step));
