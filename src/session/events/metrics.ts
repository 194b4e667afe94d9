// A run's metrics.jsonl: a line for each step, evaluation, saved and failed adapter.

import { closeSync, existsSync, openSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { MloraError, textOf } from "../../base/errors.ts";
import { count } from "../../base/units.ts";
import { linesOf } from "../../files/lines.ts";
import type { EventOf, Listener, SessionEvent } from "./events.ts";

/** metrics.jsonl: an object a line, `type` first. */
export const metricsListener =
  (append: (line: string) => void): Listener =>
  (event) => {
    const values = valuesOf(event);
    if (values && "adapter" in event) append(JSON.stringify({ type: event.type, adapter: event.adapter, ...values }));
  };

/** Null for events that have no line. */
function valuesOf(event: SessionEvent): object | null {
  switch (event.type) {
    case "step":
      return stepValues(event);
    case "evaluation":
      return {
        step: event.step,
        loss: event.loss,
        exact: event.exact,
        rows: event.rows,
        ...(event.metrics ? { metrics: event.metrics } : {}),
      };
    case "saved":
      return { step: event.step, folder: event.folder };
    case "failed":
      return { message: event.message };
    default:
      return null;
  }
}

const stepValues = (event: EventOf<"step">) => ({
  step: event.step,
  epoch: event.epoch,
  loss: event.loss,
  learning_rate: event.learningRate,
  grad_norm: event.gradNorm,
  tokens: event.tokens,
  tokens_per_second: Math.round(event.tokensPerSecond * 10) / 10,
  ...(event.busiest === undefined ? {} : { busiest_expert: Math.round(event.busiest * 1e4) / 1e4 }),
  ...(event.preference ? preferenceValues(event.preference) : {}),
  ...event.rollouts,
});

/** Of CIT the margin is one of cosines: to the most similar paraphrase of another row. */
const preferenceValues = ({ accuracy, margin, contrast }: NonNullable<EventOf<"step">["preference"]>) =>
  contrast === null ? { accuracy, reward_margin: margin } : { accuracy, similarity_margin: margin, contrastive_loss: contrast };

/** Of a step or, without a gradient norm, of an evaluation. */
export type EarlierMetric = {
  readonly adapter: string;
  readonly step: number;
  readonly loss: number;
  readonly gradNorm: number | null;
  readonly tokensPerSecond: number | null;
};

const LONGEST_LINE = 1 << 20;

/** The objects of the metrics.jsonl of the run in this folder, in order; none where there is no such file. */
export function* metricLines(output: string): Generator<Readonly<Record<string, unknown>>> {
  const path = join(output, "metrics.jsonl");
  if (!existsSync(path)) return;
  const fd = openSync(path, "r");
  const decoder = new TextDecoder();
  try {
    for (const { bytes } of linesOf(fd, LONGEST_LINE)) {
      const found = bytes === null ? null : parsed(decoder.decode(bytes));
      if (typeof found === "object" && found !== null) yield found as Readonly<Record<string, unknown>>;
    }
  } finally {
    closeSync(fd);
  }
}

/** Steps and evaluations of the run in this folder, as metrics.jsonl has them; none where there is no such file. */
export function* earlierMetrics(output: string): Generator<EarlierMetric> {
  for (const line of metricLines(output)) {
    const found = v.safeParse(earlier, line);
    if (!found.success) continue;
    const { adapter, step, loss, grad_norm = null, tokens_per_second = null } = found.output;
    yield { adapter, step, loss, gradNorm: grad_norm, tokensPerSecond: tokens_per_second };
  }
}

const earlier = v.object({
  ...{ type: v.picklist(["step", "evaluation"]), adapter: v.string(), step: v.number(), loss: v.number() },
  ...{ grad_norm: v.exactOptional(v.number()), tokens_per_second: v.exactOptional(v.number()) },
});

/** A line that a kill cut off says nothing. */
function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

/** Lines that wait for room at most: some hundred bytes each. */
const MOST_WAITING = 100_000;

/** `flush` writes what waits, if it can, and says what was lost. */
export type PatientLines = { readonly append: (line: string) => void; readonly flush: () => void };

/**
 * Metrics are not the run's result: lines that cannot be written wait, in order, and are tried again with the next. `notice`
 * reports when that begins and, at the end, how many were not written. Throws where the file was removed: the run has no folder
 * then.
 */
export function patient(append: (line: string) => void, notice: (text: string) => void): PatientLines {
  const waiting: string[] = [];
  let fault: unknown = null;
  let lost = 0;
  const drain = (): void => {
    try {
      let done = 0;
      try {
        for (; done < waiting.length; done++) append(waiting[done]!);
      } finally {
        waiting.splice(0, done);
      }
    } catch (error) {
      if (error instanceof MloraError && error.code === "files.removed") throw error;
      if (fault === null) notice(`${textOf(error)}; training continues, and the lines wait`);
      fault = error;
    }
  };
  return {
    append: (line) => {
      if (lost === 0 && waiting.length < MOST_WAITING) waiting.push(line);
      else lost++; // at the end, so that what is there has no gap
      drain();
    },
    flush: () => {
      drain();
      const gone = waiting.length + lost;
      if (gone > 0) notice(`${textOf(fault)}; its last ${gone === 1 ? "line is" : `${count(gone)} lines are`} missing`);
    },
  };
}
