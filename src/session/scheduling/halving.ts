// Which adapters of a sweep pass a rung, and which are dropped there (successive halving).

import { survivors } from "../../schedule/sweeps.ts";
import { scoreOf } from "../evaluation/own-metrics.ts";
import type { AdapterState } from "./adapter-state.ts";

/** `dropped`: the reason; null where the adapter passes the rung. */
export type RungDecision = { readonly adapter: AdapterState; readonly dropped: string | null };

/** Of each sweep whose adapters have all reached a rung, or ended before it: the best of them pass. */
export function decideRungs(all: readonly AdapterState[]): RungDecision[] {
  const groups = Map.groupBy(
    all.filter(({ plan }) => plan.recipe.halving !== null),
    ({ plan }) => plan.recipe.halving!.group,
  );
  return [...groups.values()].flatMap(decide);
}

function decide(members: readonly AdapterState[]): RungDecision[] {
  const waiting = members.filter(({ status }) => status === "rung");
  if (waiting.length === 0) return [];
  const step = Math.min(...waiting.map(({ steps }) => steps));
  const isBehind = ({ status, steps }: AdapterState) => status !== "ended" && status !== "rung" && steps <= step;
  if (members.some(isBehind)) return [];
  const here = waiting.filter(({ steps }) => steps === step);
  // Those that were dropped here before the run was interrupted count, or too many would be dropped now.
  const before = members.filter(({ result }) => result?.status === "dropped" && result.steps === step);
  const { halving, metrics } = members[0]!.plan.recipe;
  const lossOf = ({ latest, result, plan: { recipe } }: AdapterState) => {
    const evaluation = result?.after ?? latest;
    return (evaluation && scoreOf(recipe, evaluation)) ?? Number.NaN;
  };
  const at = [...here, ...before].map((adapter) => ({ adapter, loss: lossOf(adapter) }));
  const best = new Set(survivors(at, halving!.keep).map(({ adapter }) => adapter));
  const what = metrics?.best === undefined ? "lower losses" : `a better ${metrics.best}`;
  const reason = `${best.size} of ${at.length} continued from step ${step}, with ${what}`;
  return here.map((adapter) => ({ adapter, dropped: best.has(adapter) ? null : reason }));
}
