// The token that an adapter of a run finds likeliest after others, while it trains: an evaluation of one target, next to those
// of held-out rows. It has no gradient and no dropout, so nothing that is trained depends on it.

import { type Bus, requestAll } from "../../bus/bus.ts";
import type { Plan } from "../../plan/plan.ts";
import { pack, type Row } from "../../schedule/pack.ts";
import { evaluationSegment, totalsOf } from "./batches.ts";

/** Tokens that one may follow, at most. */
export function tokensBefore({ stages, device: { rowTile } }: Plan): number {
  const { positions, rows } = stages[0]!.sizes;
  return Math.min(positions, rows - (rows % rowTile));
}

/** By the adapter in a slot, as it is after all requests so far. All tokens are read again: a run keeps no keys and values. */
export async function nextToken(bus: Bus, plan: Plan, slot: number, ids: readonly number[]): Promise<number> {
  const row: Row = { ids: Int32Array.from([...ids, 0]), mask: Uint8Array.from([...ids.map(() => 0), 1]) };
  const objective = { name: "sft" } as const;
  const segment = evaluationSegment(slot, [row], [0], totalsOf([row], objective), objective, null);
  const batch = pack([segment], plan.slots, plan.device.rowTile);
  const losses = (await requestAll(bus, { type: "evaluate", batch, logProbs: true, top: 1 })).at(-1)!;
  return losses[0]!.top!.ids[0]!;
}
