// A micro-batch from the rows of several adapters: tokens packed one behind the other, never padded to a common length.
//
// An adapter's rows begin at a multiple of the device's row tile, and so do its targets among all targets: a product may sum
// differently at another place within a tile. Everything a kernel must know of a token (position, sequence,
// number within its adapter's mini-batch, target) is a table, so that a token's place in the batch means nothing.

import { alignUp, range, sum } from "../base/shape.ts";
import type { Preference } from "../objectives/registry.ts";

/**
 * Tokens of one sequence: mask[i] = 1 where token i is to be predicted from those before it. `weights` multiply the losses of these tokens,
 * next to the segment's weight.
 */
export type Tokens = { readonly ids: Int32Array; readonly mask: Uint8Array; readonly weights?: Float32Array };

/**
 * A tokenised row of data. Of preferences it has another, less preferred answer; of KTO another row's, and whether its own is desirable; of CIT
 * the answer to a paraphrase.
 */
export type Row = Tokens & { readonly other?: Tokens; readonly label?: boolean };

/** The sequences of a row, in the order in which they are packed. */
export const sequencesOf = (row: Row): readonly Tokens[] => (row.other ? [row, row.other] : [row]);

/** How a share's loss is made of its rows' log-probabilities, where it is not the sum of its targets' losses. */
export type SegmentPreference = {
  readonly objective: Preference;
  /** Of the whole mini-batch: what losses are divided by. */
  readonly totals: { readonly rows: number; readonly tokens: number };
  /** Of each row, the log-probabilities of its two sequences under the reference; null where there is none. */
  readonly references: readonly (readonly [number, number])[] | null;
};

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

/** One packed sequence of the micro-batch: whose it is, and where its targets lie among all. */
export type PackedSequence = { readonly adapter: number; readonly firstTarget: number; readonly targets: number };

/** A share whose targets' weights are known only when their losses are: `sequences` from `firstSequence` on, two for each label. */
export type PackedPreference = SegmentPreference & { readonly firstSequence: number; readonly labels: readonly boolean[] };

export type MicroBatch = {
  readonly ids: Int32Array;
  readonly positions: Int32Array;
  readonly bounds: Int32Array;
  readonly rowNumber: Int32Array;
  readonly tileAdapter: Int32Array;
  readonly dropout: Int32Array;
  readonly targetRows: Int32Array;
  readonly targetIds: Int32Array;
  readonly weights: Float32Array;
  readonly sequences: readonly PackedSequence[];
  readonly preferences: readonly PackedPreference[];
  /** Real tokens, padding left out. */
  readonly tokens: number;
};

/** Tokens that a sequence feeds to the model: its last is only a target. */
const fedLength = ({ ids }: Tokens): number => ids.length - 1;

/** Tokens that a row feeds to the model, and those of its longest sequence. */
export const inputLength = (row: Row): number => fedLength(row) + (row.other ? fedLength(row.other) : 0);
export const longestSequence = (row: Row): number => Math.max(...sequencesOf(row).map(fedLength));

/** Rows that a share takes, padded to whole tiles. */
export const segmentRows = (samples: readonly Row[], rowTile: number): number =>
  alignUp(sum(samples.map(inputLength)), rowTile);

/** The row of a target that only fills a tile. */
export const NO_ROW = -1;

const bits = new DataView(new ArrayBuffer(4));
const floatBits = (value: number): number => {
  bits.setFloat32(0, value);
  return bits.getInt32(0);
};

/** An adapter's row of the dropout table: seed, step, keep threshold, bits of 1 / (1 - p). */
function dropoutRow({ seed, step, dropout }: Segment): number[] {
  const threshold = Math.min(Math.floor(dropout * 2 ** 32), 2 ** 32 - 1);
  return [seed | 0, step | 0, threshold | 0, floatBits(1 / (1 - dropout))];
}

/** The dropout table of adapters that drop nothing. */
export function noDropout(adapters: number): Int32Array {
  const table = new Int32Array(4 * adapters);
  for (const adapter of range(adapters)) table[4 * adapter + 3] = floatBits(1);
  return table;
}

/** Packs the shares in their order; `adapters` is the size of the tables, one share an adapter at most. */
export function pack(segments: readonly Segment[], adapters: number, rowTile: number): MicroBatch {
  const rows = sum(segments.map((segment) => segmentRows(segment.samples, rowTile)));
  const tables = {
    ids: new Int32Array(rows),
    positions: new Int32Array(rows),
    bounds: new Int32Array(2 * rows),
    rowNumber: new Int32Array(rows),
    tileAdapter: new Int32Array(rows / rowTile).fill(-1),
    dropout: noDropout(adapters),
  };
  const targetRows: number[] = [];
  const targetIds: number[] = [];
  const weights: number[] = [];
  const sequences: PackedSequence[] = [];
  const preferences: PackedPreference[] = [];
  let row = 0;
  let tokens = 0;
  for (const segment of segments) {
    const firstRow = row;
    tables.dropout.set(dropoutRow(segment), 4 * segment.adapter);
    if (segment.preference) {
      const labels = segment.samples.map(({ label = true }) => label);
      preferences.push({ ...segment.preference, firstSequence: sequences.length, labels });
    }
    for (const sample of segment.samples.flatMap(sequencesOf)) {
      const length = fedLength(sample);
      const before = targetRows.length;
      for (let i = 0; i < length; i++) {
        const at = row + i;
        tables.ids[at] = sample.ids[i]!;
        tables.positions[at] = i;
        tables.bounds.set([row, row + length], 2 * at);
        tables.rowNumber[at] = segment.firstRow + at - firstRow;
        if (sample.mask[i + 1] !== 1) continue;
        targetRows.push(at);
        targetIds.push(sample.ids[i + 1]!);
        weights.push(segment.weight * (sample.weights?.[i + 1] ?? 1));
      }
      sequences.push({ adapter: segment.adapter, firstTarget: before, targets: targetRows.length - before });
      row += length;
      tokens += length;
    }
    while (targetRows.length % rowTile !== 0) {
      targetRows.push(NO_ROW);
      targetIds.push(0);
      weights.push(0);
    }
    const end = alignUp(row, rowTile);
    tables.tileAdapter.fill(segment.adapter, firstRow / rowTile, end / rowTile);
    for (; row < end; row++) tables.bounds.set([row, row], 2 * row); // padding sees nothing and nothing sees it
  }
  return {
    ...tables,
    targetRows: Int32Array.from(targetRows),
    targetIds: Int32Array.from(targetIds),
    weights: Float32Array.from(weights),
    sequences,
    preferences,
    tokens,
  };
}
