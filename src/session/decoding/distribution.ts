// The distribution that a token is sampled from: its log-probabilities for programs that answer requests.

import { candidates, likeliest, logProb, type Sampling, topOf } from "../../base/sample.ts";

export { logProb, type Sampling, topOf } from "../../base/sample.ts";

export type Distribution = {
  /** Natural logarithm of the probability of a token that was sampled. */
  readonly logProb: (token: number) => number;
  /** The likeliest tokens with theirs, in falling order: as many as are asked for, or fewer where no more may come. */
  readonly top: (count: number) => (readonly [token: number, logProb: number])[];
};

/** With temperature, top-k and top-p as they were sampled; where always the likeliest is taken, that of the logits. */
export function distributionOf(logits: Float32Array, sampling: Sampling): Distribution {
  const { temperature, topK, topP } = sampling;
  if (temperature > 0 && (topK > 0 || topP < 1)) {
    const all = candidates(logits, sampling).map(([id, probability]) => [id, Math.log(probability)] as const);
    return { logProb: (token) => all.find(([id]) => id === token)![1], top: (count) => all.slice(0, count) };
  }
  const best = logits[likeliest(logits)]!;
  const scaled = temperature === 0 || temperature === 1 ? logits : logits.map((value) => (value - best) / temperature);
  return { logProb: (token) => logProb(scaled, token), top: (count) => topOf(scaled, count) };
}
