// The next token out of the logits: the likeliest, or one by chance among the likely ones.

import { likeliest, logProb } from "./logits.ts";

export { likeliest, logProb, topOf } from "./logits.ts";

export type Sampling = {
  /** What logits are divided by; 0: always the likeliest token. */
  readonly temperature: number;
  /** The number of the likeliest tokens that are sampled from; 0 for all. */
  readonly topK: number;
  /** Only the likeliest tokens that together have this probability; 1 for all. */
  readonly topP: number;
};

/**
 * The tokens that may come, with their probabilities, the likeliest first (of equals the first): first temperature, then top-k,
 * then top-p among what is left, as transformers does it. Temperature above 0.
 */
export function candidates(logits: Float32Array, { temperature, topK, topP }: Sampling): (readonly [number, number])[] {
  const top = logits[likeliest(logits)]!;
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - top) / temperature));
  let total = 0;
  for (const weight of weights) total += weight;
  // Below this all that is left has together less than 1 - p, so that none of it is among the likeliest that have p.
  const negligible = topK === 0 ? ((1 - topP) * total) / weights.length : 0;
  let kept: number[] = [];
  for (let i = 0; i < weights.length; i++) if (weights[i]! > 0 && weights[i]! >= negligible) kept.push(i);
  kept.sort((a, b) => weights[b]! - weights[a]! || a - b);
  if (topK > 0) kept = kept.slice(0, topK);
  if (topK > 0) total = kept.reduce((sum, i) => sum + weights[i]!, 0);
  let [count, mass] = [0, 0];
  while (count < kept.length && (count === 0 || mass < topP * total)) mass += weights[kept[count++]!]!;
  if (topP < 1) kept = kept.slice(0, count);
  else mass = kept.reduce((sum, i) => sum + weights[i]!, 0);
  return kept.map((i) => [i, weights[i]! / mass] as const);
}

/** A token; log-probabilities by the logits as they are, and among those that it was drawn from. */
export type Chosen = { readonly token: number; readonly logProb: number; readonly drawnLogProb: number };

/** Where the logits are no finite numbers. */
const NONE: Chosen = { token: -1, logProb: Number.NaN, drawnLogProb: Number.NaN };

/** The next token; `uniform` in [0, 1) is the chance. Its number is -1 where the logits are no finite numbers. */
export function choose(logits: Float32Array, sampling: Sampling, uniform: number): Chosen {
  const best = likeliest(logits);
  if (logits.includes(Number.NaN) || !Number.isFinite(logits[best]!)) return NONE;
  if (sampling.temperature === 0 || sampling.topK === 1) {
    const own = logProb(logits, best);
    return { token: best, logProb: own, drawnLogProb: sampling.temperature === 0 ? own : 0 }; // of one token: certain
  }
  const all = candidates(logits, sampling);
  let mass = 0;
  for (const [token, probability] of all) {
    mass += probability;
    if (uniform < mass) return { token, logProb: logProb(logits, token), drawnLogProb: Math.log(probability) };
  }
  const [token, probability] = all.at(-1)!; // rounding
  return { token, logProb: logProb(logits, token), drawnLogProb: Math.log(probability) };
}
