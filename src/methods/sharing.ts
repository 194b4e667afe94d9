// Which factors of an adapter each expert has of its own.

import type { LinearShape } from "../families/linears.ts";

/**
 * shared-outer: of gate and up all experts share A, of down B, so that what is on the stream's side is once; per-expert: each
 * has its own A and B everywhere.
 */
export const EXPERT_SHARINGS = ["shared-outer", "per-expert"] as const;
export type ExpertSharing = (typeof EXPERT_SHARINGS)[number];

/** How many A, or B, a linear has: one, or one of each expert, next to each other as A [E rank, in] and B [out, E rank]. */
export const copiesOf = (
  { experts, outer }: Pick<LinearShape, "experts" | "outer">,
  factor: "A" | "B",
  sharing: ExpertSharing,
): number => (experts === null || (sharing === "shared-outer" && factor === outer) ? 1 : experts);
