// The table of results at the end of a run.

import { join } from "node:path";
import { count, duration } from "../base/units.ts";
import { isPreference } from "../objectives/registry.ts";
import type { Plan } from "../plan/plan.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import type { AdapterResult, RunResult } from "../session/events.ts";
import { shortPath } from "../session/prepare.ts";
import { table } from "./table.ts";

/** The lines of the table: what each adapter learned, and its folder. */
export function summary({ adapters: all, seconds, tokens }: RunResult, { adapters: planned }: Plan, output: string): string[] {
  const { adapters, best } = ranked(
    all,
    planned.map(({ recipe }) => recipe),
  );
  const change = (before: string | null, after: string | null) =>
    before === null && after === null ? "-" : `${before ?? "-"} -> ${after ?? "-"}`;
  const percent = (of: AdapterResult["before"]) => (of ? `${((100 * of.exact) / of.rows).toFixed(0)} %` : null);
  const heldOut = adapters.some(({ before, after }) => before ?? after);
  const mixed = planned.some(({ recipe }) => isPreference(recipe.objective)); // preferences are judged, not reproduced
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

/** Adapters with the same rows and objective next to each other, the best first; `best`: the first of each such group. */
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
  const isComplete = ({ status }: AdapterResult) => Number(status === "done" || status === "early");
  const lossOf = ({ after }: AdapterResult) => after?.loss ?? Number.POSITIVE_INFINITY;
  const better = (a: AdapterResult, b: AdapterResult) =>
    isComplete(b) - isComplete(a) || (isComplete(a) ? 0 : b.steps - a.steps) || lossOf(a) - lossOf(b);
  const sorted = groups.map((group) => (group.some(({ after }) => after) ? group.toSorted(better) : group));
  const winners = sorted
    .filter((group) => group.length > 1 && group[0]!.after && isComplete(group[0]!))
    .map(([first]) => first!);
  return { adapters: sorted.flat(), best: new Set(winners) };
}
