// The table of results at the end of a run.

import { join } from "node:path";
import { count, counted, duration, shortPath } from "../base/units.ts";
import type { Plan } from "../plan/plan.ts";
import type { AdapterResult, RunResult } from "../session/events/events.ts";
import type { Estimate } from "../session/planning/estimate.ts";
import { ranked } from "../session/run/ranking.ts";
import { type Column, right, table } from "./table.ts";

const MOST_OWN = 3;

/** The lines of the table: what each adapter learned, and its folder. */
export function summary(
  { adapters: all, seconds, tokens }: RunResult,
  { adapters: planned }: Plan,
  output: string,
  estimate: Estimate | null = null,
): string[] {
  const { adapters, best, isJudged } = ranked(
    all,
    planned.map(({ recipe }) => recipe),
  );
  const change = (before: string | null, after: string | null) =>
    before === null && after === null ? "-" : `${before ?? "-"} -> ${after ?? "-"}`;
  const percent = (of: AdapterResult["before"]) => (of ? `${((100 * of.exact) / of.rows).toFixed(0)} %` : null);
  const heldOut = adapters.some(({ before, after }) => before ?? after);
  const loss = (value: number | null | undefined) => value?.toFixed(4) ?? null;
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
              title: isJudged ? "right" : "exact match",
              of: (a: AdapterResult) => change(percent(a.before), percent(a.after)),
              ...right,
            },
          ]
        : []),
      ...ownColumns(adapters, planned),
      { title: "tokens", of: (a) => count(a.tokens), ...right },
      { title: "seconds", of: (a) => a.seconds.toFixed(0), ...right },
      { title: "saved in", of: ({ folder }) => (folder ? shortPath(folder) : "-") },
    ],
    adapters,
  );
  const expected = estimate ? `, ${duration(estimate.seconds)} were expected` : "";
  const rate = `${counted(tokens, "token")} in ${duration(seconds)}${expected}, ${count(tokens / Math.max(1e-3, seconds))} tokens/s`;
  const legend = best.size > 0 ? ["* the lowest of those that are held against the same rows", ""] : [];
  return ["", ...lines, "", ...legend, `${rate}; metrics in ${shortPath(join(output, "metrics.jsonl"))}`];
}

/** Of metrics of the recipe's programs: those that adapters are kept by, else all, while they are few. */
function ownColumns(adapters: readonly AdapterResult[], planned: Plan["adapters"]): Column<AdapterResult>[] {
  const best = planned.flatMap(({ recipe }) => recipe.metrics?.best ?? []);
  const all = adapters.flatMap(({ after }) => Object.keys(after?.metrics ?? {}));
  const text = (of: AdapterResult["before"], name: string) => {
    const value = of?.metrics?.[name];
    return value === undefined ? "-" : `${Number(value.toPrecision(4))}`;
  };
  return [...new Set(best.length > 0 ? best : all)].slice(0, MOST_OWN).map((name) => ({
    title: name,
    of: (a) => (a.before?.metrics || a.after?.metrics ? `${text(a.before, name)} -> ${text(a.after, name)}` : "-"),
    ...right,
  }));
}
