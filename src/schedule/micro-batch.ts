// A micro-batch: tables with everything that kernels must know of a row, and what its losses are made of. Packing (pack.ts),
// the wire, memory on the device and uploads follow from the one list of tables.

import * as v from "valibot";
import { count, floats, ints, type Output, real } from "../base/schema.ts";
import { range } from "../base/shape.ts";
import { batchTotals } from "../objectives/definition.ts";
import { groupPolicy } from "../objectives/group-policy.ts";
import { policyLoss } from "../objectives/policy.ts";
import { preferenceSchema } from "../objectives/registry.ts";

/** The row of a target that only fills a tile. */
const NO_ROW = -1;

type Table = {
  readonly dtype: "i32" | "f32";
  /** It has an entry of `width` elements for each of them. */
  readonly each: "row" | "tile" | "slot" | "target";
  readonly width: number;
};

/** What they mean is in ops/linear/low-rank.ts. */
export const TABLES = {
  ids: { dtype: "i32", each: "row", width: 1 },
  positions: { dtype: "i32", each: "row", width: 1 },
  bounds: { dtype: "i32", each: "row", width: 2 },
  rowNumber: { dtype: "i32", each: "row", width: 1 },
  tileAdapter: { dtype: "i32", each: "tile", width: 1 },
  dropout: { dtype: "i32", each: "slot", width: 4 },
  targetRows: { dtype: "i32", each: "target", width: 1 },
  targetIds: { dtype: "i32", each: "target", width: 1 },
  weights: { dtype: "f32", each: "target", width: 1 },
  /** What a target's logits are multiplied by: 1 / temperature. */
  sharpness: { dtype: "f32", each: "target", width: 1 },
} as const satisfies Readonly<Record<string, Table>>;

export type TableName = keyof typeof TABLES;
const ARRAYS = { i32: Int32Array, f32: Float32Array } as const;
const SCHEMAS = { i32: ints, f32: floats } as const;

/** The tables on the host. */
export type BatchTables = { readonly [N in TableName]: Output<(typeof SCHEMAS)[(typeof TABLES)[N]["dtype"]]> };
export type BatchSizes = {
  readonly rows: number;
  readonly targets: number;
  readonly adapters: number;
  readonly rowTile: number;
};

/** Something for each table, by its name. */
export const eachTable = <T>(make: (name: TableName, table: Table) => T): Readonly<Record<TableName, T>> =>
  Object.fromEntries(Object.entries(TABLES).map(([name, table]) => [name, make(name as TableName, table)])) as Record<
    TableName,
    T
  >;

/** Entries of a table. */
export const entriesOf = ({ each }: Table, { rows, targets, adapters, rowTile }: BatchSizes): number =>
  ({ row: rows, tile: Math.ceil(rows / rowTile), slot: adapters, target: targets })[each];

/** Tables of padding alone: rows that see only themselves, of no adapter, and adapters that drop nothing. */
export function paddingTables(sizes: BatchSizes): BatchTables {
  const tables = eachTable((_, table) => new ARRAYS[table.dtype](entriesOf(table, sizes) * table.width)) as BatchTables;
  for (let i = 0; i < tables.bounds.length; i++) tables.bounds[i] = i >> 1;
  tables.tileAdapter.fill(-1);
  tables.targetRows.fill(NO_ROW);
  tables.sharpness.fill(1);
  for (const adapter of range(sizes.adapters)) tables.dropout[4 * adapter + 3] = floatBits(1);
  return tables;
}

const bits = new DataView(new ArrayBuffer(4));
/** The bits of a number as f32, as an i32. */
export const floatBits = (value: number): number => {
  bits.setFloat32(0, value);
  return bits.getInt32(0);
};

/** One packed sequence: whose it is (-1: the base model's), and where its targets lie among all. */
const packedSequence = v.strictObject({
  adapter: v.pipe(v.number(), v.integer(), v.minValue(-1)),
  firstTarget: count,
  targets: count,
});
export type PackedSequence = Output<typeof packedSequence>;

/** A segment whose targets' weights are known only when their losses are. */
const packedPreference = v.strictObject({
  objective: preferenceSchema,
  /** Of the whole mini-batch: what losses are divided by. */
  totals: batchTotals,
  /** Of each row, the log-probabilities of its two sequences under the reference; null where there is none. */
  references: v.nullable(v.array(v.tuple([real, real]))),
  /** Its sequences begin here, two for each label. */
  firstSequence: count,
  labels: v.array(v.boolean()),
});
export type PackedPreference = Output<typeof packedPreference>;

/** Sequences whose targets' weights follow from their log-probabilities (objectives/policy.ts). */
const packedPolicy = v.strictObject({
  loss: policyLoss,
  firstSequence: count,
  sequences: count,
  /** f32 of each target of these sequences: its log-probability when it was sampled, and its advantage. */
  logProbs: floats,
  advantages: floats,
});
export type PackedPolicy = Output<typeof packedPolicy>;

/** Sequences that are completions of groups (objectives/group-policy.ts). */
const packedGroup = v.strictObject({
  policy: groupPolicy,
  firstSequence: count,
  /** f32 of each sequence. */
  advantages: floats,
  scales: floats,
  /** f32 of each target of these sequences: its log-probability when it was sampled, null where that is the present one. */
  old: v.nullable(floats),
  /** The same under the reference. */
  references: v.nullable(floats),
});
export type PackedGroup = Output<typeof packedGroup>;

const tableSchemas = eachTable((_, { dtype }) => SCHEMAS[dtype]) as {
  readonly [N in TableName]: (typeof SCHEMAS)[(typeof TABLES)[N]["dtype"]];
};
export const microBatch = v.strictObject({
  ...tableSchemas,
  sequences: v.array(packedSequence),
  preferences: v.array(packedPreference),
  policies: v.exactOptional(v.array(packedPolicy)),
  groups: v.exactOptional(v.array(packedGroup)),
  /** Real tokens, without padding. */
  tokens: count,
});
export type MicroBatch = Output<typeof microBatch>;

/** How the next token of each sequence of a pass is chosen (base/sample.ts): an entry for each. */
const choices = v.strictObject({
  temperature: floats,
  topK: ints,
  topP: floats,
  /** The chance, in [0, 1). */
  uniform: floats,
  /** 1 where all logits are asked for, too. */
  logits: ints,
});
export type Choices = Output<typeof choices>;

/** What came of a pass of generation: of each sequence its next token, -1 where the logits are no finite numbers. */
export const nextTokens = v.strictObject({
  tokens: ints,
  /** Of the token, by the logits as they are, and among those that it was drawn from. */
  logProbs: floats,
  drawnLogProbs: floats,
  /** f32[vocab] of those sequences that asked for them, in their order. */
  logits: v.array(floats),
});
export type NextTokens = Output<typeof nextTokens>;

/** A pass of generation (decode.ts). */
export const generationBatch = v.strictObject({
  ...tableSchemas,
  /**
   * i32[M]: the row of the cache for each row's keys and values, below 0 for none. The id of a row may be ~i: what the pass
   * before chooses for its sequence i.
   */
  places: ints,
  /** Pages of the cache that the pass is the first to find elsewhere: of each its number and its place, in turn. */
  pages: ints,
  choices,
  /** What rows attend to (engine/generation/kv-cache.ts). */
  from: v.picklist(["pass", "cache"]),
  /** The rows of tiles from this one on are multiplied by tiles, as in training, whatever else is in the pass. */
  rowTiles: count,
});
export type GenerationBatch = Output<typeof generationBatch>;
