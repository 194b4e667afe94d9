// Which adapters of a sweep go on from a rung, and which are dropped there.

import { survivors } from "../schedule/sweeps.ts";
import type { AdapterState } from "./adapter-state.ts";

export type RungDecision = {
  readonly live: AdapterState /** Why it is dropped; null where it goes on. */;
  readonly dropped: string | null;
};

/** Of every sweep whose adapters have all come to a rung, or ended before it: the best of them go on. */
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
  const lossOf = ({ latest, result }: AdapterState) => result?.after?.loss ?? latest?.loss ?? Number.NaN;
  const at = [...here, ...before].map((live) => ({ live, loss: lossOf(live) }));
  const best = new Set(survivors(at, members[0]!.plan.recipe.halving!.keep).map(({ live }) => live));
  const why = `${best.size} of ${at.length} went on from step ${step}, with lower losses`;
  return here.map((live) => ({ live, dropped: best.has(live) ? null : why }));
}
