// Adapters that begin as a part of the weight, scale B0 A0, and keep it frozen after what they train: W - scale B0 A0 +
// scale B A is W + scale [B, -B0] [A; A0], a LoRA of twice the rank on the unchanged weight.

/** A [rank, in] and B [out, rank], row after row. */
export type Factors = { readonly a: Float32Array; readonly b: Float32Array };

/** [A; A0], f32[2 rank, in]. */
export function withFrozenA(a: Float32Array, part: Float32Array): Float32Array {
  const both = new Float32Array(2 * a.length);
  both.set(a);
  both.set(part, a.length);
  return both;
}

/** [B, -B0], f32[out, 2 rank]. */
export function withFrozenB(b: Float32Array, part: Float32Array, rank: number): Float32Array {
  const both = new Float32Array(2 * b.length);
  for (let row = 0; row < b.length / rank; row++)
    for (let r = 0; r < rank; r++) {
      both[2 * row * rank + r] = b[row * rank + r]!;
      both[(2 * row + 1) * rank + r] = -part[row * rank + r]!;
    }
  return both;
}

/** What is trained of [A; A0] and [B, -B0], `rank` of twice as many. */
export function trainedHalf({ a, b }: Factors, rank: number): Factors {
  const own = new Float32Array(b.length / 2);
  for (let i = 0; i < own.length; i++) own[i] = b[2 * rank * Math.floor(i / rank) + (i % rank)]!;
  return { a: a.subarray(0, a.length / 2), b: own };
}
