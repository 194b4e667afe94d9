// How fast a run is, measured: its stages are opened and make some of its real steps, and nothing is kept of them.

import { now } from "../../base/clock.ts";
import { RunError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { openStages } from "../../cluster/open-stages.ts";
import { operationsOf } from "../../plan/operations.ts";
import type { Plan } from "../../plan/plan.ts";
import type { SessionEvent } from "../events/events.ts";
import type { RequestData } from "../preparation/prepare.ts";
import { run } from "../training/training.ts";
import { type Estimate, estimateAt, isSampling } from "./estimate.ts";
import { keepSpeed, runKey } from "./speeds.ts";

/** Steps and time that are measured at least, and the time after which a measurement ends however few they are. */
const [LEAST_STEPS, LEAST_MS, MOST_MS] = [4, 4000, 60_000];

/**
 * Makes steps for some seconds, of all adapters that train at once, and keeps the speed for later plans. `report` is called
 * with each step that counts. Throws what a stage fails with, and a RunError, `plan.measure`, where the run ends too early.
 */
export async function measureRun(
  plan: Plan,
  data: readonly RequestData[],
  signal: AbortSignal,
  report: (steps: number) => void = () => undefined,
): Promise<Estimate> {
  const stop = new AbortController();
  const stopped = AbortSignal.any([signal, stop.signal]);
  await using stages = await openStages(plan, { folder: plan.recipe.model.path }, "auto", signal);
  const { bus, lost } = stages;
  const warm = new Set<number>();
  const together = Math.min(plan.slots, plan.adapters.length);
  const opened = now();
  let [from, last, steps, tokens] = [Number.NaN, Number.NaN, 0, 0];
  const emit = (event: SessionEvent): void => {
    if (event.type === "failed") throw new RunError("plan.measure", `${event.adapter}: ${event.message}`);
    if (event.type !== "step") return;
    last = now();
    if (warm.size < together) {
      warm.add(event.index); // its first step loads kernels and touches memory
      from = last;
      return;
    }
    steps++;
    tokens += event.tokens;
    report(steps);
    if ((steps >= LEAST_STEPS && last - from >= LEAST_MS) || last - opened > MOST_MS) stop.abort();
  };
  const rows = data.map(({ train, sources }) => ({ train, eval: [], sources }));
  const late = setTimeout(() => stop.abort(), 2 * MOST_MS);
  try {
    await run({ plan, data: rows, bus, output: null, emit, lost, stop: stopped });
  } catch (error) {
    throw await stages.causeOf(error);
  } finally {
    clearTimeout(late);
  }
  signal.throwIfAborted();
  if (steps === 0) throw new RunError("plan.measure", "the run ends before a step can be measured", "leave --measure out");
  const { training } = operationsOf(plan, []);
  const flops = (training * tokens) / sum(plan.adapters.map((of) => of.tokens)) / ((last - from) / 1000);
  if (!isSampling(plan)) keepSpeed(runKey(plan), flops);
  return estimateAt(plan, data, flops, "measured");
}
