// How memory grows with a pass: Mem = b0 + b1 B L + b2 B L^2 for B rows of L tokens (mLoRA, arXiv 2312.02515, section 4.3),
// fitted by least squares. Fitted to the plan's own numbers it says what a token costs; fitted to measured ones, how far the
// plan is from the truth.

import { alignUp, sum } from "../base/shape.ts";
import { stageMemory, stageStreamBytes } from "./memory.ts";
import { type Plan, type StagePlan, totalBytes } from "./plan.ts";

export type MemorySample = { readonly sequences: number; readonly length: number; readonly bytes: number };

export type MemoryModel = {
  /** Bytes of what is there without any pass, of a token, and of a token for each token of its row. */
  readonly b0: number;
  readonly b1: number;
  readonly b2: number;
  /** Mean absolute error over the samples, relative to each. */
  readonly meanError: number;
};

/** The model that fits at least three samples, of passes that differ in rows and in length, best. */
export function fitMemory(samples: readonly MemorySample[]): MemoryModel {
  const terms = samples.map(({ sequences: b, length: l }) => [1, b * l, b * l * l]);
  const scale = [0, 1, 2].map((k) => Math.max(...terms.map((row) => row[k]!)));
  const scaled = terms.map((row) => row.map((value, k) => value / scale[k]!));
  const normal = scale.map((_, i) => scale.map((_, j) => sum(scaled.map((row) => row[i]! * row[j]!))));
  const right = scale.map((_, i) => sum(scaled.map((row, n) => row[i]! * samples[n]!.bytes)));
  const [b0, b1, b2] = solve(normal, right).map((value, k) => value / scale[k]!) as [number, number, number];
  const errors = samples.map(({ sequences, length, bytes }) =>
    Math.abs(predict({ b0, b1, b2 }, sequences, length) / bytes - 1),
  );
  return { b0, b1, b2, meanError: sum(errors) / errors.length };
}

/** Bytes with a pass of `sequences` rows of `length` tokens. */
export const predict = ({ b0, b1, b2 }: Omit<MemoryModel, "meanError">, sequences: number, length: number): number =>
  b0 + b1 * sequences * length + b2 * sequences * length ** 2;

/** Gauss elimination with pivots. */
function solve(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const rows = matrix.map((row, i) => [...row, right[i]!]);
  const n = rows.length;
  for (let k = 0; k < n; k++) {
    const best = rows.slice(k).reduce((a, b) => (Math.abs(b[k]!) > Math.abs(a[k]!) ? b : a));
    rows.splice(rows.indexOf(best), 1, rows[k]!);
    rows[k] = best;
    for (const row of rows.slice(k + 1)) {
      const factor = row[k]! / best[k]!;
      for (let j = k; j <= n; j++) row[j]! -= factor * best[j]!;
    }
  }
  const x = new Array<number>(n).fill(0);
  for (let k = n - 1; k >= 0; k--) {
    const known = sum(x.slice(k + 1).map((value, j) => value * rows[k]![k + 1 + j]!));
    x[k] = (rows[k]![n]! - known) / rows[k]![k]!;
  }
  return x;
}

/** What the stages of a plan would take with other passes, all else as it is. */
export const memoryModel = (plan: Plan): MemoryModel =>
  modelOf(plan, ({ layerRange, memory }, sizes) =>
    totalBytes(stageMemory(plan.spec, layerRange, sizes, plan.device, memory.adapters)),
  );

/** The same of host memory for streams between layers, which is in proportion to the rows of a pass. */
export const hostMemoryModel = (plan: Plan): MemoryModel =>
  modelOf(plan, ({ layerRange }, sizes) => stageStreamBytes(plan.spec, layerRange, sizes, plan.device));

type BytesOf = (stage: StagePlan, sizes: StagePlan["sizes"]) => number;

function modelOf(plan: Plan, bytesOf: BytesOf): MemoryModel {
  const samples = sampleLengths(plan.spec.maxPositions).flatMap((length) =>
    [8, 24, 64].map((sequences) => ({ sequences, length, bytes: bytesWith(plan, sequences, length, bytesOf) })),
  );
  return fitMemory(samples);
}

/** At least two, or the squares of lengths would say nothing that the lengths do not. */
function sampleLengths(most: number): readonly number[] {
  const usual = [128, 512, 2048, 8192].map((length) => Math.min(length, most));
  const few = [4, 2, 1].map((part) => Math.ceil(most / part));
  return [...new Set(most > 128 ? usual : few)];
}

function bytesWith({ stages, device }: Plan, sequences: number, length: number, bytesOf: BytesOf): number {
  const rows = alignUp(sequences * length, device.rowTile);
  return sum(
    stages.map((stage) => {
      const { sizes } = stage;
      const chunk = Math.min(rows, sizes.chunk);
      const ofRow = (group: string) => (group === "head" ? chunk / sizes.chunk : rows / sizes.rows);
      const low = Object.entries(sizes.low).map(([group, elements]) => [group, Math.ceil(elements * ofRow(group))]);
      const changed = { ...sizes, rows, targets: rows, chunk, positions: length, low: Object.fromEntries(low) };
      return bytesOf(stage, changed);
    }),
  );
}
