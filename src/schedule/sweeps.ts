// What saves money in a sweep: an adapter that gets no better ends early, and of those that were tried the worse ones are
// dropped.

export type Best = {
  readonly loss: number;
  /** Where it was that low. */
  readonly step: number;
  /** Evaluations since one was lower by `minDelta`, and the step of the latest that was judged. */
  readonly since: number;
  readonly judged: number;
  /** The loss that `since` counts from, where it is not the lowest. */
  readonly mark?: number;
};

/**
 * An evaluation in the light of those before: the lowest loss is the best; patience counts those that are not lower by
 * `minDelta`. A loss that is no number is never better, and any other is better than it. The same step is judged once.
 */
export function updateBest(best: Best | null, loss: number, step: number, minDelta: number): Best {
  if (best?.judged === step) return best;
  const known = (of: number | undefined) => (of === undefined || Number.isNaN(of) ? Number.POSITIVE_INFINITY : of);
  const lowest = best !== null && !(loss < known(best.loss)) ? best : { loss, step };
  const before = known(best?.mark ?? best?.loss);
  const isLower = loss < before - minDelta;
  const mark = isLower ? loss : before;
  return {
    loss: lowest.loss,
    step: lowest.step,
    since: isLower ? 0 : (best?.since ?? 0) + 1,
    judged: step,
    ...(Number.isFinite(mark) && mark !== lowest.loss ? { mark } : {}),
  };
}

/** Why an adapter ends early, for people. */
export const whyEarly = ({ step, since, mark }: Best, minDelta: number): string =>
  mark === undefined
    ? `no better than at step ${step} since`
    : `not better by ${minDelta} in ${since} ${since === 1 ? "evaluation" : "evaluations"}; step ${step} was the best`;

/**
 * Successive halving (Jamieson and Talwalkar 2016): of those that have come to a rung, the share `keep` with the lowest losses,
 * one at least; of equal losses the earlier ones.
 */
export function survivors<T extends { readonly loss: number }>(at: readonly T[], keep: number): T[] {
  const count = Math.max(1, Math.ceil(keep * at.length));
  const rank = ({ loss }: T) => (Number.isNaN(loss) ? Number.POSITIVE_INFINITY : loss);
  return [...at].sort((a, b) => rank(a) - rank(b) || at.indexOf(a) - at.indexOf(b)).slice(0, count);
}
