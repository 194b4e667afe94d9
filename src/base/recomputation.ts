// What the backward pass computes again instead of keeping.

/** Nothing; the norms' and the activation's outputs (cheap: no matrix product); or all of a layer except its input. */
export const RECOMPUTATIONS = ["none", "selective", "full"] as const;
export type Recomputation = (typeof RECOMPUTATIONS)[number];
