// How long a run will take and what it costs, as `mlora plan` says it.

import { MloraError, RequestError } from "../base/errors.ts";
import { count, counted, duration } from "../base/units.ts";
import { type Estimate, withoutEstimate } from "../session/planning/estimate.ts";
import type { PlannedRun } from "../session/planning/planned-run.ts";
import { openLine } from "./reading.ts";
import { onInterrupt } from "./signals.ts";

/** Money for an hour. */
export function priceOf(value: unknown): number {
  if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
  throw new RequestError("cli.flag", `--price is ${value}`, "give --price a number, 0 or more: money for an hour");
}

const BASES: Readonly<Record<Estimate["basis"], string>> = {
  measured: "measured by steps of this run",
  earlier: "from an earlier run of this model on this device",
  estimated: "estimated from the device's peak; --measure makes real steps",
};

const HOUR = 3600;

/** Lines for people, and the same as plain data; null where nothing can be said without a device that opens. */
export async function timeOf(planned: PlannedRun, isMeasured: boolean, price: number | null) {
  let estimate: Estimate;
  try {
    estimate = isMeasured ? await measured(planned) : await planned.estimate();
  } catch (error) {
    if (isMeasured || !(error instanceof MloraError)) throw error;
    return { lines: ["", withoutEstimate(error)], facts: null };
  }
  const { basis, seconds, evaluationSeconds, secondsPerStep, tokensPerSecond } = estimate;
  const cost = price === null ? null : (price * seconds) / HOUR;
  const evaluations = evaluationSeconds > 0 ? `, of which evaluations ${duration(evaluationSeconds)}` : "";
  return {
    lines: [
      "",
      `time: about ${duration(seconds)}${evaluations}; ${perStep(secondsPerStep)} a step, ${count(tokensPerSecond)} tokens/s`,
      `  ${BASES[basis]}; loading and saving come on top of it`,
      ...(cost === null ? [] : [`price: about ${money(cost)} at ${money(price!)} an hour`]),
    ],
    facts: {
      basis,
      seconds,
      evaluation_seconds: evaluationSeconds,
      seconds_per_step: secondsPerStep,
      tokens_per_second: tokensPerSecond,
      ...(cost === null ? {} : { price: cost, price_per_hour: price }),
    },
  };
}

async function measured(planned: PlannedRun): Promise<Estimate> {
  const stop = new AbortController();
  using _signals = onInterrupt(() => stop.abort(new RequestError("plan.stopped", "stopped while it was measured")));
  using line = openLine();
  line.show("measuring: the stages are opened");
  return await planned.measure(stop.signal, (steps) => line.show(`measuring: ${counted(steps, "step")}`));
}

const perStep = (seconds: number): string =>
  seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : duration(seconds);
/** At least two digits that say something. */
const money = (value: number): string => (value === 0 || value >= 0.1 ? value.toFixed(2) : value.toPrecision(2));
