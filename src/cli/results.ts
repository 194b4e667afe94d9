// What a run came to: metrics.jsonl while it goes, the table at its end.

import { join } from "node:path";
import { MloraError, textOf } from "../base/errors.ts";
import { count, duration } from "../base/units.ts";
import { isPreference } from "../objectives/registry.ts";
import type { Plan } from "../plan/plan.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import type { AdapterResult, Observer, RunResult } from "../session/events.ts";
import type { Judgement } from "../session/executor.ts";
import { shortPath } from "../session/prepare.ts";
import { table } from "./table.ts";

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

/** The table at the end: what each adapter learned, and where it lies. */
export function summary({ adapters: all, seconds, tokens }: RunResult, { adapters: planned }: Plan, output: string): string[] {
  const { adapters, best } = ranked(
    all,
    planned.map(({ recipe }) => recipe),
  );
  const change = (before: string | null, after: string | null) =>
    before === null && after === null ? "-" : `${before ?? "-"} -> ${after ?? "-"}`;
  const percent = (of: AdapterResult["before"]) => (of ? `${((100 * of.exact) / of.rows).toFixed(0)} %` : null);
  const heldOut = adapters.some(({ before, after }) => before ?? after);
  const mixed = planned.some(({ recipe }) => isPreference(recipe.objective)); // preferences are judged, not written
  const loss = (value: number | null | undefined) => value?.toFixed(4) ?? null;
  const right = { align: "right" } as const;
  const lines = table<AdapterResult>(
    [
      ...(best.size > 0 ? [{ title: "", of: (a: AdapterResult) => (best.has(a) ? "*" : "") }] : []),
      { title: "adapter", of: ({ name }) => name },
      { title: "status", of: ({ status }) => status },
      { title: "steps", of: ({ steps }) => count(steps), ...right },
      heldOut
        ? { title: "held-out loss", of: ({ before, after }) => change(loss(before?.loss), loss(after?.loss)), ...right }
        : { title: "training loss", of: ({ firstLoss, lastLoss }) => change(loss(firstLoss), loss(lastLoss)), ...right },
      ...(heldOut
        ? [
            {
              title: mixed ? "right" : "exact match",
              of: (a: AdapterResult) => change(percent(a.before), percent(a.after)),
              ...right,
            },
          ]
        : []),
      { title: "tokens", of: (a) => count(a.tokens), ...right },
      { title: "seconds", of: (a) => a.seconds.toFixed(0), ...right },
      { title: "saved in", of: ({ folder }) => (folder ? shortPath(folder) : "-") },
    ],
    adapters,
  );
  const rate = `${count(tokens)} tokens in ${duration(seconds)}`;
  const legend = best.size > 0 ? ["* the lowest of those that are held against the same rows", ""] : [];
  return ["", ...lines, "", ...legend, `${rate}; metrics in ${shortPath(join(output, "metrics.jsonl"))}`];
}

/** Adapters that are held against the same rows stand together, the best first; `best` are those that are. */
function ranked(results: readonly AdapterResult[], recipes: readonly AdapterRecipe[]) {
  const rowsOf = ({
    train,
    eval: heldOut,
    evalSplit,
    format,
    template,
    system,
    trainOn,
    objective,
    maxLength,
  }: AdapterRecipe) => JSON.stringify([train, heldOut, evalSplit, format, template, system, trainOn, objective, maxLength]);
  const groups = [...Map.groupBy(results, (_, i) => rowsOf(recipes[i]!)).values()];
  const whole = ({ status }: AdapterResult) => Number(status === "done" || status === "early");
  const lossOf = ({ after }: AdapterResult) => after?.loss ?? Number.POSITIVE_INFINITY;
  const better = (a: AdapterResult, b: AdapterResult) =>
    whole(b) - whole(a) || (whole(a) ? 0 : b.steps - a.steps) || lossOf(a) - lossOf(b);
  const sorted = groups.map((group) => (group.some(({ after }) => after) ? group.toSorted(better) : group));
  const winners = sorted.filter((group) => group.length > 1 && group[0]!.after && whole(group[0]!)).map(([first]) => first!);
  return { adapters: sorted.flat(), best: new Set(winners) };
}
