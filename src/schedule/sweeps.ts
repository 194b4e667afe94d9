// What saves money in a sweep: an adapter that gets no better ends early, and of those that were tried the worse ones are
// dropped.

export type Best = {
  readonly loss: number;
  /** Where it was that low. */
  readonly step: number;
  /** Evaluations since, and the step of the latest that was judged. */
  readonly since: number;
  readonly judged: number;
};

/** An evaluation in the light of those before; a loss that is no number is never better. The same step is judged once. */
export function updateBest(best: Best | null, loss: number, step: number, minDelta: number): Best {
  if (best?.judged === step) return best;
  if (loss < (best ? best.loss - minDelta : Number.POSITIVE_INFINITY)) return { loss, step, since: 0, judged: step };
  return { loss: best?.loss ?? loss, step: best?.step ?? step, since: (best?.since ?? 0) + 1, judged: step };
}

/**
 * Successive halving (Jamieson and Talwalkar 2016): of those that have come to a rung, the share `keep` with the lowest losses,
 * one at least; of equal losses the earlier ones.
 */
export function survivors<T extends { readonly loss: number }>(at: readonly T[], keep: number): T[] {
  const count = Math.max(1, Math.ceil(keep * at.length));
  const rank = ({ loss }: T) => (Number.isNaN(loss) ? Number.POSITIVE_INFINITY : loss);
  return [...at].sort((a, b) => rank(a) - rank(b) || at.indexOf(a) - at.indexOf(b)).slice(0, count);
}
