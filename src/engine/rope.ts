// The tables of the rotary embedding: cos and sin of position times frequency, with the scalings that models of the Llama kind
// use (linear: Chen et al. 2023; llama3: as in Meta's Llama 3.1 release).

import type { ModelSpec } from "../base/spec.ts";

/** The frequencies of a head's pairs, f32 as Hugging Face computes them. */
export function ropeFrequencies({ headDim, ropeTheta, ropeScaling }: ModelSpec): Float32Array {
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = Math.fround(1 / ropeTheta ** ((2 * i) / headDim));
    if (ropeScaling === null) return frequency;
    if (ropeScaling.kind === "linear") return frequency / ropeScaling.factor;
    const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = ropeScaling;
    const turns = (originalMaxPositions * frequency) / (2 * Math.PI); // of this pair over the original context
    if (turns > highFreqFactor) return frequency;
    if (turns < lowFreqFactor) return frequency / factor;
    const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return ((1 - smooth) * frequency) / factor + smooth * frequency;
  });
}

/** cos and sin, f32[positions, headDim / 2] each. */
export function ropeTables(spec: ModelSpec, positions: number): { readonly cos: Float32Array; readonly sin: Float32Array } {
  const frequencies = ropeFrequencies(spec);
  const half = frequencies.length;
  const [cos, sin] = [new Float32Array(positions * half), new Float32Array(positions * half)];
  for (let position = 0; position < positions; position++)
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * frequencies[i]!);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  return { cos, sin };
}
