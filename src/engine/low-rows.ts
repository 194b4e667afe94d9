// Where the rows of s = A drop(x) of each adapter lie in a pass (ops/linear/low-rank.ts).

import type { Group, groupsOfModel } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { type AdapterLayout, type LayerRange, RANK_TILE, widthIn } from "../methods/layout.ts";
import type { RankSpan } from "../ops/linear/low-rank.ts";

/** Columns of an adapter's rows of s in a group that it targets, and its ranks there. */
type GroupRanks = { readonly width: number; readonly span: RankSpan };
export type AdapterRanks = ReadonlyMap<Group, GroupRanks>;

/** Where the rows of s of each tile begin in a group, in units of 16 elements, elements of all, and the ranks there. */
export type LowRows = { readonly starts: Int32Array<ArrayBuffer>; readonly elements: number; readonly span: RankSpan };

export function ranksOf(adapter: PoolAdapter, { sites }: AdapterLayout, layers: LayerRange): AdapterRanks {
  const found = new Map<Group, GroupRanks>();
  for (const [group, of] of Map.groupBy(sites, (site) => site.group)) {
    const ranks = of.flatMap((site) => site.ranks.filter((rank) => rank > 0));
    const span = { least: Math.min(...ranks), most: Math.max(...ranks) };
    found.set(group, { width: widthIn(adapter, layers, group), span });
  }
  return found;
}

/** By the groups that the adapters target. `tiles` i32[T] are their slots, -1 for none. */
export function lowRowsOf(
  tiles: Int32Array,
  groups: ReturnType<typeof groupsOfModel>,
  rowTile: number,
  ranksIn: (slot: number) => AdapterRanks,
): ReadonlyMap<Group, LowRows> {
  const found = new Map<Group, LowRows>();
  for (const group of groups) {
    const starts = new Int32Array(tiles.length);
    let [units, least, most] = [0, Number.POSITIVE_INFINITY, 0];
    for (const [tile, slot] of tiles.entries()) {
      starts[tile] = units;
      const low = slot < 0 ? undefined : ranksIn(slot).get(group);
      if (!low) continue;
      units += (low.width / RANK_TILE) * rowTile;
      [least, most] = [Math.min(least, low.span.least), Math.max(most, low.span.most)];
    }
    if (units > 0) found.set(group, { starts, elements: units * RANK_TILE, span: { least, most } });
  }
  return found;
}
