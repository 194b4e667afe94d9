// A micro-batch from the rows of several adapters: tokens packed one after the other, never padded to a common length.
//
// An adapter's rows begin at a multiple of the device's row tile, and so do its targets among all targets: a product may sum
// differently at another place within a tile. Everything a kernel must know of a token (position, sequence,
// number within its adapter's mini-batch, target) is a table, so that a token's place in the batch means nothing.

import { alignUp, sum } from "../base/shape.ts";
import type { Completion, GroupPolicy } from "../objectives/group-policy.ts";
import type { PolicyLoss } from "../objectives/policy.ts";
import {
  floatBits,
  type MicroBatch,
  type PackedGroup,
  type PackedPolicy,
  type PackedPreference,
  type PackedSequence,
  paddingTables,
} from "./micro-batch.ts";

/**
 * Tokens of one sequence: mask[i] = 1 where token i is to be predicted from those before it. `weights` multiply the losses of
 * these tokens, as the segment's weight does.
 */
export type Tokens = {
  readonly ids: Int32Array;
  readonly mask: Uint8Array;
  readonly weights?: Float32Array;
  /** What is to be predicted in place of each token; left out, the token itself. */
  readonly targets?: Int32Array;
  /** All other tokens but the first are scored, too: targets of weight 0. */
  readonly isScored?: boolean;
  /** Of each token, where the loss is a policy's: its log-probability when it was sampled, and its advantage. */
  readonly sampled?: { readonly logProbs: Float32Array; readonly advantages: Float32Array };
  /** Where its targets are a completion of a group. */
  readonly completion?: PackedCompletion;
};

/** `old` and `reference` of each token. */
export type PackedCompletion = Pick<Completion, "advantage" | "scale"> & {
  readonly old: Float32Array | null;
  readonly reference: Float32Array | null;
};

/**
 * A tokenised row of data. Of preferences it has another, less preferred answer; of KTO another row's, and whether its own is
 * desirable; of CIT the answer to a paraphrase; of prompts the columns of the row as JSON.
 */
export type Row = Tokens & { readonly other?: Tokens; readonly label?: boolean; readonly columns?: string };

/** The sequences of a row, in the order in which they are packed. */
export const sequencesOf = (row: Row): readonly Tokens[] => (row.other ? [row, row.other] : [row]);

/** How a share's loss is made of its rows' log-probabilities, where it is not the sum of its targets' losses. */
export type SegmentPreference = Omit<PackedPreference, "firstSequence" | "labels">;

/** Packed sequences of a share: those of its rows, then, for what is only scored, one more for each row that has it. */
export const packedSequences = (samples: readonly Row[]): number => {
  const all = samples.flatMap(sequencesOf);
  return all.length + all.filter(({ isScored }) => isScored).length;
};

/** Rows of one adapter's micro-batch; -1: of the base model alone, which learns nothing. */
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
  /** The rows' loss where they are `sampled`. */
  readonly policy?: PolicyLoss;
  /** The same where they are completions. */
  readonly group?: GroupPolicy;
  /** Of the distribution whose log-probabilities the losses are; left out, 1. */
  readonly temperature?: number;
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

const targetsOf = ({ mask, isScored }: Tokens): number =>
  isScored ? mask.length - 1 : mask.subarray(1).filter((is) => is === 1).length;

/** Targets of a share, padded to whole tiles. */
const segmentTargets = (samples: readonly Row[], rowTile: number): number =>
  alignUp(sum(samples.flatMap(sequencesOf).map(targetsOf)), rowTile);

/** Packs the shares in their order; `adapters` is the size of the tables, one share an adapter at most. */
export function pack(segments: readonly Segment[], adapters: number, rowTile: number): MicroBatch {
  const rows = sum(segments.map((segment) => segmentRows(segment.samples, rowTile)));
  const targets = sum(segments.map((segment) => segmentTargets(segment.samples, rowTile)));
  const tables = paddingTables({ rows, targets, adapters, rowTile });
  const sequences: PackedSequence[] = [];
  const preferences: PackedPreference[] = [];
  const policies: PackedPolicy[] = [];
  const groups: PackedGroup[] = [];
  let [row, target, tokens] = [0, 0, 0];
  for (const segment of segments) {
    const [firstRow, firstSequence] = [row, sequences.length];
    if (segment.adapter >= 0) tables.dropout.set(dropoutRow(segment), 4 * segment.adapter);
    if (segment.preference) {
      const labels = segment.samples.map(({ label = true }) => label);
      preferences.push({ ...segment.preference, firstSequence, labels });
    }
    const scored: (() => void)[] = [];
    for (const sample of segment.samples.flatMap(sequencesOf)) {
      const length = fedLength(sample);
      const firstTarget = target;
      const put = (i: number, at: number, weight: number) => {
        tables.targetRows[target] = at;
        tables.targetIds[target] = (sample.targets ?? sample.ids)[i + 1]!;
        tables.sharpness[target] = 1 / (segment.temperature ?? 1);
        tables.weights[target++] = weight;
      };
      const sequenceFrom = (first: number) =>
        sequences.push({ adapter: segment.adapter, firstTarget: first, targets: target - first });
      for (let i = 0; i < length; i++) {
        const at = row + i;
        tables.ids[at] = sample.ids[i]!;
        tables.positions[at] = i;
        tables.bounds.set([row, row + length], 2 * at);
        tables.rowNumber[at] = segment.firstRow + at - firstRow;
        if (sample.mask[i + 1] === 1) put(i, at, segment.weight * (sample.weights?.[i + 1] ?? 1));
      }
      sequenceFrom(firstTarget);
      // After the targets that count, which so have the places that they have without these.
      if (sample.isScored) {
        const first = row;
        scored.push(() => {
          const firstScored = target;
          for (let i = 0; i < length; i++) if (sample.mask[i + 1] !== 1) put(i, first + i, 0);
          sequenceFrom(firstScored);
        });
      }
      row += length;
      tokens += length;
    }
    if (segment.policy) policies.push(policyOf(segment.policy, segment.samples, firstSequence));
    if (segment.group) groups.push(groupOf(segment.group, segment.samples, firstSequence));
    for (const putScored of scored) putScored();
    target = alignUp(target, rowTile);
    row = alignUp(row, rowTile);
    tables.tileAdapter.fill(segment.adapter, firstRow / rowTile, row / rowTile);
  }
  const sampled = { ...(policies.length > 0 ? { policies } : {}), ...(groups.length > 0 ? { groups } : {}) };
  return { ...tables, sequences, preferences, ...sampled, tokens };
}

/** Of a row's tokens, what its targets have. */
const ofTargets = ({ mask }: Row, values: Float32Array): number[] => [...values].filter((_, i) => i > 0 && mask[i] === 1);

/** What a policy's loss must know of the targets of a share. */
function policyOf(loss: PolicyLoss, samples: readonly Row[], firstSequence: number): PackedPolicy {
  const all = (what: "logProbs" | "advantages") =>
    Float32Array.from(samples.flatMap((sample) => ofTargets(sample, sample.sampled![what])));
  return {
    ...{ loss, firstSequence, sequences: samples.length },
    ...{ logProbs: all("logProbs"), advantages: all("advantages") },
  };
}

/** The same of completions, which all have what the first has. */
function groupOf(policy: GroupPolicy, samples: readonly Row[], firstSequence: number): PackedGroup {
  const each = (what: "advantage" | "scale") => Float32Array.from(samples, ({ completion }) => completion![what]);
  const all = (what: "old" | "reference") =>
    samples[0]!.completion![what]
      ? Float32Array.from(samples.flatMap((sample) => ofTargets(sample, sample.completion![what]!)))
      : null;
  return {
    ...{ policy, firstSequence, advantages: each("advantage"), scales: each("scale") },
    ...{ old: all("old"), references: all("reference") },
  };
}
