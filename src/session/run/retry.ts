// From an accepted run to its result: stages are opened again for more adapters, with less memory, and where one was lost.

import { MloraError, textOf } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { RowsDiffer } from "../../data/unread.ts";
import { type EventOf, noticeEvent, type RunResult } from "../events/events.ts";
import { attempt, type Job } from "./attempt.ts";
import { findStored, type Resumed, rewindTold } from "./resume.ts";

/** Trains all adapters of the run. Throws what a stage failed with once it was lost as often as the recipe allows. */
export async function trainToEnd(job: Job, from: Resumed | null): Promise<RunResult> {
  const { restarts } = job.plan.recipe.run;
  let resumed = from;
  for (let lost = 0; ; ) {
    const before = stepsSaved(job);
    let cause: EventOf<"reopening">["cause"];
    try {
      const result = await attempt(job, resumed);
      if (!result.suspended) return result;
      cause = { why: "capacity" };
    } catch (error) {
      if (job.processes || job.stop.signal.aborted) throw error;
      if (isRefusal(error)) {
        job.planner.refused(job.plan);
        cause = { why: "memory", message: textOf(error) };
      } else if (error instanceof RowsDiffer) cause = { why: "rows", message: error.message };
      else {
        if (stepsSaved(job) > before) lost = 0; // what was saved since then is not lost again
        if (lost === restarts || !isLoss(error)) throw error;
        cause = { why: "lost", message: textOf(error), restart: ++lost, restarts };
      }
    }
    await job.early?.conclude(job);
    job.emit({ type: "reopening", cause });
    job.plan = job.planner.plan(job.adapters.request);
    const { adapters, slots, stages } = job.plan;
    job.emit({
      type: "replanned",
      slots: Math.min(slots, adapters.length),
      adapters: adapters.length,
      rows: stages[0]!.sizes.rows,
    });
    resumed = resumeFrom(job, true);
  }
}

/**
 * Takes the run's folder to where its adapters were saved. Throws RequestErrors where it holds another run, and, unless the
 * run `isOpen` for more adapters, where all of them have ended.
 */
export function resumeFrom({ plan, adapters, model, outcomes, emit }: Omit<Job, "control">, isOpen: boolean): Resumed {
  const { output } = plan.recipe.run;
  const notice = (text: string) => emit(noticeEvent(null, text));
  const { ended, steps, left } = findStored(output, plan, adapters.request.data, model, notice, isOpen);
  const resumed = { ended: new Map([...ended, ...outcomes]), steps, left };
  rewindTold(output, (name) => (resumed.ended.has(name) || left.has(name) ? null : (steps.get(name) ?? 0)), notice);
  if (resumed.ended.size + resumed.steps.size > 0)
    emit({
      type: "continued",
      output,
      adapters: plan.adapters.map(({ name, steps: all }) => ({
        name,
        status: resumed.ended.get(name)?.status ?? null,
        step: resumed.steps.get(name) ?? 0,
        steps: all,
      })),
    });
  return resumed;
}

const stepsSaved = ({ saved }: Job): number => sum([...saved.values()]);

/** A stage or the server is gone; a fault of the work itself would come again. */
const isLoss = (error: unknown): boolean =>
  error instanceof MloraError &&
  /^(stage\.ended|bus\.(gone|left)|nats\.(ended|silent|closed)|link\.(lost|closed))$/.test(error.code);

/** A device lacks memory that it had when the run was planned: a plan that takes less may do. */
const isRefusal = (error: unknown): boolean => error instanceof MloraError && error.code === "device.memory";
