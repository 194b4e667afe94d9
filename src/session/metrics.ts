// A run's metrics.jsonl: a line for each step, evaluation, saved and failed adapter.

import { MloraError, textOf } from "../base/errors.ts";
import { count } from "../base/units.ts";
import type { Plan } from "../plan/plan.ts";
import type { Observer } from "./events.ts";
import type { Judgement } from "./executor.ts";

/** metrics.jsonl: an object a line, `type` first. */
export function metricsObserver(plan: Plan, append: (line: string) => void): Observer {
  const write = (type: string, adapter: number, values: object) =>
    append(JSON.stringify({ type, adapter: plan.adapters[adapter]!.name, ...values }));
  return {
    stepped: ({ adapter, step, epoch, loss, learningRate, gradNorm, tokens, tokensPerSecond, preference }) =>
      write("step", adapter, {
        step,
        epoch,
        loss,
        learning_rate: learningRate,
        grad_norm: gradNorm,
        tokens,
        tokens_per_second: Math.round(tokensPerSecond * 10) / 10,
        ...(preference ? judgement(preference) : {}),
      }),
    evaluated: ({ adapter, step, loss, exact, rows }) => write("evaluation", adapter, { step, loss, exact, rows }),
    saved: ({ adapter, step, folder }) => write("saved", adapter, { step, folder }),
    failed: (adapter, message) => write("failed", adapter, { message }),
  };
}

/** Of CIT the margin is one of cosines: to the likest paraphrase of another row. */
const judgement = ({ accuracy, margin, contrast }: Judgement) =>
  contrast === null ? { accuracy, reward_margin: margin } : { accuracy, similarity_margin: margin, contrastive_loss: contrast };

/** Lines that wait for room at most: some hundred bytes each. */
const MOST_WAITING = 100_000;

/** `flush` writes what waits, if it can, and says what was lost. */
export type PatientLines = { readonly append: (line: string) => void; readonly flush: () => void };

/**
 * Metrics are not the run's result: lines that cannot be written wait, in order, and are tried again with the next. `notice` is told when
 * that begins and, at the end, of lines that were not written. Throws where the file was removed: the run has no folder then.
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
      if (fault === null) notice(`${textOf(error)}; training goes on, and what is to be written waits`);
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
      if (waiting.length + lost > 0) notice(`${textOf(fault)}; its last ${count(waiting.length + lost)} lines are missing`);
    },
  };
}
