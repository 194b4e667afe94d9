// Where the rows of s of each adapter lie in a pass, at a group of linears or at a table.

import type { LayerRange } from "../../base/layers.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { type AdapterLayout, type LowKey, RANK_TILE, sharesOuter, widthIn } from "../../methods/layout.ts";
import { TABLE_KINDS, tableWidth } from "../../methods/tables.ts";
import type { RankSpan } from "../../ops/linear/low-rank.ts";

/**
 * Columns of an adapter's rows of s in a group or table that it targets, its ranks there, and whether all experts share its
 * outer factor.
 */
export type GroupRanks = { readonly width: number; readonly span: RankSpan; readonly isShared: boolean };
export type AdapterRanks = ReadonlyMap<LowKey, GroupRanks>;

/** Of adapters in experts: whether some have an outer factor that all experts share, and some one for each. */
export type OuterFactors = { readonly shared: boolean; readonly own: boolean };

/** Where the rows of s of each tile begin in a group, in units of 16 elements, elements of all, and the ranks there. */
export type LowRows = {
  readonly starts: Int32Array<ArrayBuffer>;
  readonly elements: number;
  readonly span: RankSpan;
  readonly outer: OuterFactors;
};

/** Of an adapter. Rows of single tokens of the embedding have no s. */
export function ranksOf(adapter: PoolAdapter, layout: AdapterLayout, layers: LayerRange): AdapterRanks {
  const { sites, tables } = layout;
  const found = new Map<LowKey, GroupRanks>();
  for (const kind of TABLE_KINDS) {
    const table = tables[kind]?.table;
    if (!table || (kind === "embedding" && "tokens" in table)) continue;
    const rank = tableWidth(table);
    found.set(kind, { width: widthIn(adapter, layers, kind), span: { least: rank, most: rank }, isShared: false });
  }
  for (const [group, of] of Map.groupBy(sites, (site) => site.group)) {
    const ranks = of.flatMap((site) => site.ranks.filter((rank) => rank > 0));
    const span = { least: Math.min(...ranks), most: Math.max(...ranks) };
    found.set(group, { width: widthIn(adapter, layers, group), span, isShared: sharesOuter(layout, group) });
  }
  return found;
}

/** Of a pass whose tiles i32[T] are of these slots, -1 for none. */
export function lowRowsOf(tiles: Int32Array, rowTile: number, ranksIn: (slot: number) => GroupRanks | undefined): LowRows {
  const starts = new Int32Array(tiles.length);
  let [units, least, most] = [0, Number.POSITIVE_INFINITY, 0];
  const outer = { shared: false, own: false };
  for (const [tile, slot] of tiles.entries()) {
    starts[tile] = units;
    const low = slot < 0 ? undefined : ranksIn(slot);
    if (!low) continue;
    units += (low.width / RANK_TILE) * rowTile;
    [least, most] = [Math.min(least, low.span.least), Math.max(most, low.span.most)];
    outer[low.isShared ? "shared" : "own"] = true;
  }
  return { starts, elements: units * RANK_TILE, span: { least, most }, outer };
}
