// Cosines of pooled vectors, and the gradient by the vectors: plain numbers in double precision, sums in the
// order of the elements.

/** Below this a vector counts as this long, as PyTorch has it. */
const SHORTEST = 1e-8;

type Directions = readonly { readonly unit: Float64Array; readonly length: number }[];

function directionsOf(vectors: readonly Float32Array[]): Directions {
  return vectors.map((vector) => {
    const length = Math.max(Math.sqrt(vector.reduce((total, x) => total + x * x, 0)), SHORTEST);
    return { unit: Float64Array.from(vector, (x) => x / length), length };
  });
}

function dot(a: Float64Array, b: Float64Array): number {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i]! * b[i]!;
  return total;
}

/** Of each u, its cosine with each v. */
export function cosines(us: readonly Float32Array[], vs: readonly Float32Array[]): number[][] {
  const [as, bs] = [directionsOf(us), directionsOf(vs)];
  return as.map((a) => bs.map((b) => dot(a.unit, b.unit)));
}

/**
 * From a function's slopes by the cosines, [u][v], its gradients by the vectors:
 * d cos(u, v) / du = (v / |v| - cos u / |u|) / |u|.
 */
export function cosineGradients(
  us: readonly Float32Array[],
  vs: readonly Float32Array[],
  gradients: readonly (readonly number[])[],
) {
  const [as, bs] = [directionsOf(us), directionsOf(vs)];
  const by = (own: Directions, others: Directions, gradient: (i: number, j: number) => number): Float32Array[] =>
    own.map(({ unit, length }, i) => {
      const total = new Float64Array(unit.length);
      for (const [j, other] of others.entries()) {
        const factor = gradient(i, j) / length;
        const along = factor * dot(unit, other.unit);
        for (let k = 0; k < total.length; k++) total[k]! += factor * other.unit[k]! - along * unit[k]!;
      }
      return Float32Array.from(total);
    });
  return { us: by(as, bs, (i, j) => gradients[i]![j]!), vs: by(bs, as, (i, j) => gradients[j]![i]!) };
}
