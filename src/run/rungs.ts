// Which adapters of a sweep go on from a rung, and which are dropped there.

import { survivors } from "../schedule/sweeps.ts";
import type { Live } from "./live.ts";

export type RungDecision = {
  readonly live: Live /** Why it is dropped; null where it goes on. */;
  readonly dropped: string | null;
};

/** Of every sweep whose adapters have all come to a rung, or ended before it: the best of them go on. */
export function decideRungs(all: readonly Live[]): RungDecision[] {
  const groups = Map.groupBy(
    all.filter(({ plan }) => plan.recipe.halving !== null),
    ({ plan }) => plan.recipe.halving!.group,
  );
  return [...groups.values()].flatMap(decide);
}

function decide(members: readonly Live[]): RungDecision[] {
  const waiting = members.filter(({ standing }) => standing === "rung");
  if (waiting.length === 0) return [];
  const step = Math.min(...waiting.map(({ steps }) => steps));
  const isBehind = ({ standing, steps }: Live) => standing !== "ended" && standing !== "rung" && steps <= step;
  if (members.some(isBehind)) return [];
  const here = waiting.filter(({ steps }) => steps === step);
  // Those that were dropped here before the run was interrupted count, or too many would be dropped now.
  const before = members.filter(({ result }) => result?.status === "dropped" && result.steps === step);
  const lossOf = ({ latest, result }: Live) => result?.after?.loss ?? latest?.loss ?? Number.NaN;
  const at = [...here, ...before].map((live) => ({ live, loss: lossOf(live) }));
  const best = new Set(survivors(at, members[0]!.plan.recipe.halving!.keep).map(({ live }) => live));
  const why = `${best.size} of ${at.length} went on from step ${step}, with lower losses`;
  return here.map((live) => ({ live, dropped: best.has(live) ? null : why }));
}
