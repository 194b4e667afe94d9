// What the backward pass computes again instead of keeping.

/**
 * Nothing; the norms' and the activation's outputs (cheap: no matrix product); all of a layer except its input; or all of half
 * a layer except its input, which waits in host memory.
 */
export const RECOMPUTATIONS = ["none", "selective", "full", "offload"] as const;
export type Recomputation = (typeof RECOMPUTATIONS)[number];

/** Whether only inputs are kept, so that layers can have the same memory one after the other. */
export const keepsInputsAlone = (recomputation: Recomputation): boolean =>
  recomputation === "full" || recomputation === "offload";
