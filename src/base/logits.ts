// Logits f32[vocab] of a token as a distribution.

/** The first of the largest. */
export function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/** Log-probability of a token by the logits as they are. */
export function logProb(logits: Float32Array, token: number): number {
  const top = logits[likeliest(logits)]!;
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - top);
  return logits[token]! - top - Math.log(total);
}

/** The `count` likeliest tokens with their log-probabilities, in falling order; of equals the first. */
export function topOf(logits: Float32Array, count: number): (readonly [token: number, logProb: number])[] {
  const best = logits[likeliest(logits)]!;
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - best);
  const norm = best + Math.log(total);
  const top: number[] = [];
  for (let id = 0; count > 0 && id < logits.length; id++) {
    if (top.length === count && logits[id]! <= logits[top.at(-1)!]!) continue;
    let at = top.length;
    while (at > 0 && logits[id]! > logits[top[at - 1]!]!) at--;
    top.splice(at, 0, id);
    if (top.length > count) top.pop();
  }
  return top.map((id) => [id, logits[id]! - norm] as const);
}

/** Logits of the outputs of a model's head: times `scale`, and with a cap above 0 bent by tanh to stay below it. */
export function shapedLogits(outputs: Float32Array, scale: number, cap: number): Float32Array {
  if (scale === 1 && cap === 0) return outputs;
  return outputs.map((value) => (cap === 0 ? scale * value : cap * Math.tanh((scale * value) / cap)));
}
