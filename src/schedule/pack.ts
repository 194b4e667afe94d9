// A micro-batch from the rows of several adapters: tokens packed one after the other, never padded to a common length.
//
// An adapter's rows begin at a multiple of the device's row tile, and so do its targets among all targets: a product may sum
// differently at another place within a tile. Everything a kernel must know of a token (position, sequence,
// number within its adapter's mini-batch, target) is a table, so that a token's place in the batch means nothing.

import { alignUp, sum } from "../base/shape.ts";
import { floatBits, type MicroBatch, type PackedPreference, type PackedSequence, paddingTables } from "./micro-batch.ts";

/**
 * Tokens of one sequence: mask[i] = 1 where token i is to be predicted from those before it. `weights` multiply the losses of
 * these tokens, as the segment's weight does.
 */
export type Tokens = { readonly ids: Int32Array; readonly mask: Uint8Array; readonly weights?: Float32Array };

/**
 * A tokenised row of data. Of preferences it has another, less preferred answer; of KTO another row's, and whether its own is
 * desirable; of CIT the answer to a paraphrase.
 */
export type Row = Tokens & { readonly other?: Tokens; readonly label?: boolean };

/** The sequences of a row, in the order in which they are packed. */
export const sequencesOf = (row: Row): readonly Tokens[] => (row.other ? [row, row.other] : [row]);

/** How a share's loss is made of its rows' log-probabilities, where it is not the sum of its targets' losses. */
export type SegmentPreference = Omit<PackedPreference, "firstSequence" | "labels">;

/** Rows of one adapter's micro-batch. */
export type Segment = {
  readonly adapter: number;
  readonly samples: readonly Row[];
  /** Optimizer steps made before, the seed, and the rate: what dropout is a function of. Rate 0 when evaluating. */
  readonly seed: number;
  readonly step: number;
  readonly dropout: number;
  /** Tokens of the mini-batch in micro-batches before this one: rows of dropout masks are numbered through. */
  readonly firstRow: number;
  /** What each target's loss is multiplied by: 1 / targets of the whole mini-batch. */
  readonly weight: number;
  /** Left out for supervised fine-tuning. */
  readonly preference?: SegmentPreference;
};

/** Tokens that a sequence feeds to the model: its last is only a target. */
const fedLength = ({ ids }: Tokens): number => ids.length - 1;

/** Tokens that a row feeds to the model, and those of its longest sequence. */
export const inputLength = (row: Row): number => fedLength(row) + (row.other ? fedLength(row.other) : 0);
export const longestSequence = (row: Row): number => Math.max(...sequencesOf(row).map(fedLength));

/** Rows that a share takes, padded to whole tiles. */
export const segmentRows = (samples: readonly Row[], rowTile: number): number =>
  alignUp(sum(samples.map(inputLength)), rowTile);

/** An adapter's row of the dropout table: seed, step, keep threshold, bits of 1 / (1 - p). */
function dropoutRow({ seed, step, dropout }: Segment): number[] {
  const threshold = Math.min(Math.floor(dropout * 2 ** 32), 2 ** 32 - 1);
  return [seed | 0, step | 0, threshold | 0, floatBits(1 / (1 - dropout))];
}

/** Targets of a share, padded to whole tiles. */
const segmentTargets = (samples: readonly Row[], rowTile: number): number =>
  alignUp(sum(samples.flatMap(sequencesOf).map(({ mask }) => mask.subarray(1).filter((is) => is === 1).length)), rowTile);

/** Packs the shares in their order; `adapters` is the size of the tables, one share an adapter at most. */
export function pack(segments: readonly Segment[], adapters: number, rowTile: number): MicroBatch {
  const rows = sum(segments.map((segment) => segmentRows(segment.samples, rowTile)));
  const targets = sum(segments.map((segment) => segmentTargets(segment.samples, rowTile)));
  const tables = paddingTables({ rows, targets, adapters, rowTile });
  const sequences: PackedSequence[] = [];
  const preferences: PackedPreference[] = [];
  let [row, target, tokens] = [0, 0, 0];
  for (const segment of segments) {
    const firstRow = row;
    tables.dropout.set(dropoutRow(segment), 4 * segment.adapter);
    if (segment.preference) {
      const labels = segment.samples.map(({ label = true }) => label);
      preferences.push({ ...segment.preference, firstSequence: sequences.length, labels });
    }
    for (const sample of segment.samples.flatMap(sequencesOf)) {
      const length = fedLength(sample);
      const firstTarget = target;
      for (let i = 0; i < length; i++) {
        const at = row + i;
        tables.ids[at] = sample.ids[i]!;
        tables.positions[at] = i;
        tables.bounds.set([row, row + length], 2 * at);
        tables.rowNumber[at] = segment.firstRow + at - firstRow;
        if (sample.mask[i + 1] !== 1) continue;
        tables.targetRows[target] = at;
        tables.targetIds[target] = sample.ids[i + 1]!;
        tables.weights[target++] = segment.weight * (sample.weights?.[i + 1] ?? 1);
      }
      sequences.push({ adapter: segment.adapter, firstTarget, targets: target - firstTarget });
      row += length;
      tokens += length;
    }
    target = alignUp(target, rowTile);
    row = alignUp(row, rowTile);
    tables.tileAdapter.fill(segment.adapter, firstRow / rowTile, row / rowTile);
  }
  return { ...tables, sequences, preferences, tokens };
}
