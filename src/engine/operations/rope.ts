// The tables of a rotary embedding: cos and sin of position times frequency, with the scalings that models use (linear: Chen et
// al. 2023; llama3: as in Meta's Llama 3.1 release; YaRN: Peng et al. 2023; LongRoPE: Ding et al. 2024). What scales cos, sin
// or queries is in the tables.

import { range } from "../../base/shape.ts";
import { type ModelSpec, type Rope, shortPositions } from "../../base/spec.ts";

/** The frequencies of the rotated pairs, f32 as Hugging Face computes them; `isLong` takes LongRoPE's long factors. */
export function ropeFrequencies({ headDim, rotated, theta, scaling }: Rope, isLong = false): Float32Array {
  const of = scaling?.kind === "proportional" ? headDim : rotated;
  const plain = Float32Array.from({ length: rotated / 2 }, (_, i) => 1 / theta ** ((2 * i) / of));
  if (scaling === null) return plain;
  switch (scaling.kind) {
    case "linear":
      return plain.map((frequency) => frequency / scaling.factor);
    case "proportional":
      return plain.map((frequency, i) => (i < Math.floor((scaling.share * headDim) / 2) ? frequency / scaling.factor : 0));
    case "longrope":
      return plain.map((_, i) => 1 / ((isLong ? scaling.long : scaling.short)[i]! * theta ** ((2 * i) / of)));
    case "llama3": {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
      return plain.map((frequency) => {
        const turns = (originalMaxPositions * frequency) / (2 * Math.PI); // of this pair over the original context
        if (turns > highFreqFactor) return frequency;
        if (turns < lowFreqFactor) return frequency / factor;
        const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
        return ((1 - smooth) * frequency) / factor + smooth * frequency;
      });
    }
    case "yarn": {
      const { factor, originalMaxPositions, betaFast, betaSlow, truncate } = scaling;
      // The pair that turns so often over the original context.
      const pairOf = (turns: number) =>
        (rotated * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      const [first, last] = [pairOf(betaFast), pairOf(betaSlow)];
      const low = Math.max(truncate ? Math.floor(first) : first, 0);
      const high = Math.min(truncate ? Math.ceil(last) : last, rotated - 1);
      const width = low === high ? 0.001 : high - low;
      return plain.map((frequency, i) => {
        const ramp = Math.min(Math.max((i - low) / width, 0), 1);
        return (frequency / factor) * ramp + frequency * (1 - ramp);
      });
    }
  }
}

/** Of a rope whose frequencies depend on the length of a sequence: the positions from which a long one's tables begin. */
const longPositions = ({ scaling }: Rope, positions: number): number | null =>
  scaling?.kind === "longrope" ? positions : null;

/** Rows of a rope's tables: those of long sequences follow on those of short ones. */
export const tableRows = (rope: Rope, positions: number): number => positions + (longPositions(rope, positions) ?? 0);

/** cos and sin, f32[tableRows, rotated / 2] each, and what queries are multiplied by, f32[tableRows] or null. */
export function ropeTables(
  rope: Rope,
  positions: number,
): { readonly cos: Float32Array; readonly sin: Float32Array; readonly queryScale: Float32Array | null } {
  const { rotated, scaling, queryScale } = rope;
  const [half, rows] = [rotated / 2, tableRows(rope, positions)];
  const magnitude = scaling && "magnitude" in scaling ? scaling.magnitude : 1;
  const [cos, sin] = [new Float32Array(rows * half), new Float32Array(rows * half)];
  for (const first of range(rows / positions)) {
    const frequencies = ropeFrequencies(rope, first > 0);
    for (let position = 0; position < positions; position++)
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(position * frequencies[i]!);
        const at = (first * positions + position) * half + i;
        cos[at] = Math.fround(Math.cos(angle)) * magnitude;
        sin[at] = Math.fround(Math.sin(angle)) * magnitude;
      }
  }
  const scaleAt = (position: number): number =>
    1 + queryScale!.beta * Math.log(1 + Math.floor(position / queryScale!.originalMaxPositions));
  return { cos, sin, queryScale: queryScale && Float32Array.from({ length: rows }, (_, row) => scaleAt(row % positions)) };
}

/** Rows of the ropes' tables of a pass's rows: those of long sequences, and of negative positions, follow on all others. */
export function tablePositions(
  { spec, sizes }: { readonly spec: ModelSpec; readonly sizes: { readonly positions: number } },
  positions: Int32Array,
  isLong: (row: number) => boolean,
): Int32Array {
  if (shortPositions(spec) === null) return positions;
  return positions.map((position, row) => {
    const isFar = position < 0 || isLong(row);
    return (position < 0 ? ~position : position) + (isFar ? sizes.positions : 0);
  });
}
