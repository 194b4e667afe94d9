// What adapters change of embedding and head in a pass of rows (row-pass.ts), each of which finds its own.

import type { Tensor } from "../../device/device.ts";
import type { HeadAdapters } from "../../ops/fewtables.ts";
import type { TableSite } from "../adapted/target-group.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";

/** `tokenRow` i32[M]: of each row the number of its token among those that its adapter trains, or -1. */
export type RowTablesOfPass = {
  readonly embedding: { readonly site: TableSite; readonly tokenRow: Tensor } | null;
  /** The rows are those of targets. */
  readonly head: HeadAdapters | null;
};

const tableOf = (pool: AdapterPool, slot: number, kind: "embedding" | "head") =>
  slot < 0 ? undefined : pool.layout(slot).tables[kind]?.table;

/** The number of a token among those whose rows of the embedding an adapter trains, or -1. */
export function trainedTokens(pool: AdapterPool): (adapter: number, id: number) => number {
  const numbers = new Map<number, ReadonlyMap<number, number>>();
  return (adapter, id) => {
    if (!numbers.has(adapter)) {
      const table = tableOf(pool, adapter, "embedding");
      numbers.set(adapter, new Map(table && "tokens" in table ? table.tokens.map((token, i) => [token, i]) : []));
    }
    return numbers.get(adapter)!.get(id) ?? -1;
  };
}

/** Null where no adapter of the pass changes a table. */
export function adaptedTables(
  pool: AdapterPool,
  adapters: ReadonlySet<number>,
  { tokenRow, targetAdapter }: { readonly tokenRow: Tensor; readonly targetAdapter: Tensor },
): RowTablesOfPass | null {
  const of = (kind: "embedding" | "head") => [...adapters].flatMap((slot) => tableOf(pool, slot, kind) ?? []);
  const [embedding, head] = [of("embedding"), of("head")];
  if (embedding.length === 0 && head.length === 0) return null;
  const site = pool.tableSite("head");
  const sizes = head.map((table) => ("tokens" in table ? table.tokens.length : table.rank));
  const ranks = head.flatMap((table) => ("tokens" in table ? [] : [table.rank]));
  const { upRanks, ranks: downRanks, factors, scale, firstColumn, tokens } = site;
  const span = { least: Math.min(...sizes), most: Math.max(...sizes) };
  return {
    embedding: embedding.length > 0 ? { site: pool.tableSite("embedding"), tokenRow } : null,
    head:
      head.length === 0
        ? null
        : {
            ...{ span, rowAdapter: targetAdapter, factors, scale, firstColumn, tokens, ranks: upRanks, downRanks },
            mostTokens: Math.max(0, ...head.flatMap((table) => ("tokens" in table ? [table.tokens.length] : []))),
            products: ranks.length > 0 ? { least: Math.min(...ranks), most: Math.max(...ranks) } : null,
          },
  };
}

/** What of it decides launches. */
export const keyOf = (of: RowTablesOfPass | null): string =>
  of ? `${of.embedding !== null} ${of.head?.span.most} ${of.head?.mostTokens} ${of.head?.products?.most}` : "";
