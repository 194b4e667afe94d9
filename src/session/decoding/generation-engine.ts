// How the stages of a run generate, and which of their passes may be given to them before the last one is answered.

import { shortPositions } from "../../base/spec.ts";
import type { Bus } from "../../bus/bus.ts";
import type { StagesPlan } from "../../cluster/setup.ts";
import { extendsByRow, isByRow } from "../../engine/generation/row-pass.ts";
import { programOf } from "../../engine/layers/program.ts";
import { wholeModel } from "../../engine/weights/weights.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { tileOf } from "../../plan/generation.ts";
import type { Plan } from "../../plan/plan.ts";
import { engineOver, type GenerationEngine } from "./decoding.ts";
import { readingOn } from "./reading.ts";

/**
 * Whether these stages read the ids of a pass from what the pass before chooses: one stage, which has both; all rows are
 * extended by rows; and the id of a token decides nothing but its row of the embedding, which is zeros where logits that are no
 * numbers gave none. Rows of a table in the machine's memory are brought unlooked at. Training passes may come in between:
 * they write nothing of what a pass leaves for the next.
 */
export function stagesFollow(plan: StagesPlan): boolean {
  const { spec, stages } = plan;
  const [{ sizes, device }, ...others] = stages as [StagesPlan["stages"][number], ...StagesPlan["stages"][number][]];
  if (others.length > 0 || spec.perLayer !== null || readingOn(plan).reading !== "rows") return false;
  return extendsByRow(programOf(spec, wholeModel(spec)), device, sizes);
}

/** The same of an adapter's sequences: none of its rows goes by tiles, and it has no rows of tokens by their ids. */
export const isFollowed = (of: PoolAdapter): boolean => isByRow(of) && of.tables === undefined;

/** Generation next to training; null where the stages have no cache. */
export function engineOf(bus: Bus, plan: Plan): GenerationEngine | null {
  const { spec, device, stages } = plan;
  const { cache, ...sizes } = stages[0]!.sizes;
  if (!cache) return null;
  const reading = { ...readingOn(plan), follows: stagesFollow(plan) };
  return engineOver(bus, {
    tile: tileOf(device),
    shortPositions: shortPositions(spec),
    ...reading,
    sizes: { ...sizes, cache },
  });
}
