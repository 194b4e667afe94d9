// The embedding and the output head, tables [vocab, hidden], as an adapter trains them: a product that is added to a whole
// table, or the rows of single tokens, which take the place of the base's (PEFT's trainable_token_indices).

import * as v from "valibot";
import type { LayerRange } from "../base/layers.ts";
import { count, natural, type Output, real } from "../base/schema.ts";
import type { ModelSpec } from "../base/spec.ts";

export const TABLE_KINDS = ["embedding", "head"] as const;
export type TableKind = (typeof TABLE_KINDS)[number];

const product = v.strictObject({ rank: natural, scale: real });
const rows = v.strictObject({ tokens: v.array(count) });
const table = v.union([product, rows]);
export type Table = Output<typeof table>;

/** What an adapter trains of them. In a tied model the head has the embedding's tokens and shares their rows. */
export const tables = v.strictObject({ embedding: v.exactOptional(table), head: v.exactOptional(table) });
export type Tables = Output<typeof tables>;

/**
 * Of a product A [rank, hidden] and B [vocab, rank]: rows of the embedding and of the head are those of W + scale B A. Rows of
 * tokens are [tokens, hidden].
 */
export const TABLE_TENSORS = ["A", "B", "rows"] as const;
export type TableTensor = (typeof TABLE_TENSORS)[number];
export const tableTensors = (table: Table): readonly TableTensor[] => ("tokens" in table ? ["rows"] : ["A", "B"]);
/** The shape as files have it. */
export function tableShape({ vocab, hidden }: ModelSpec, table: Table, tensor: TableTensor): readonly [number, number] {
  if ("tokens" in table) return [table.tokens.length, hidden];
  return tensor === "A" ? [table.rank, hidden] : [vocab, table.rank];
}

/** Ranks of a product; tokens of rows. */
export const tableWidth = (table: Table): number => ("tokens" in table ? table.tokens.length : table.rank);

export const isTableKind = (name: string): name is TableKind => (TABLE_KINDS as readonly string[]).includes(name);

/** The layer with which a table's tensors go from stage to stage: the first or the last. */
export const layerOfTable = ({ layers }: Pick<ModelSpec, "layers">, kind: TableKind): number =>
  kind === "embedding" ? 0 : layers - 1;

/** Whether a table's tensors lie with a range of layers. */
export const hasTable = ({ layers }: Pick<ModelSpec, "layers">, { from, to }: LayerRange, kind: TableKind): boolean =>
  kind === "embedding" ? from === 0 : to === layers;

/** Whether the rows of tokens are one parameter in both tables. */
export const sharesRows = ({ tiedEmbeddings }: Pick<ModelSpec, "tiedEmbeddings">, of: Tables | undefined): boolean =>
  tiedEmbeddings && of?.head !== undefined && "tokens" in of.head;

/** Whether two adapters change the same of both tables, with scales that differ by rounding alone. */
export const sameTables = (a: Tables | undefined, b: Tables | undefined): boolean =>
  TABLE_KINDS.every((kind) => {
    const [one, other] = [a?.[kind], b?.[kind]];
    if (!one || !other) return one === other;
    if ("tokens" in one || "tokens" in other)
      return "tokens" in one && "tokens" in other && `${one.tokens}` === `${other.tokens}`;
    return one.rank === other.rank && Math.abs(one.scale - other.scale) <= 1e-9 * Math.abs(other.scale);
  });
