// Ranks and scales as the kernels read them: for each layer of a stage a table [slots, linears of the group], each aligned.

import { alignUp } from "../base/shape.ts";
import { GROUPS, type Group, type Linear } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import type { LayerRange } from "../methods/layout.ts";

/** Bytes: the next layer's begins where the kernels' widest loads may. */
const TABLE_ALIGN = 16;
const MOST_LINEARS = Math.max(...Object.values(GROUPS).map((linears) => linears.length));

/** Bytes of one layer's table, with room for any group's linears. */
export const tableBytes = (slots: number): number => alignUp(slots * MOST_LINEARS * 4, TABLE_ALIGN);

/**
 * Fills `table`, the layers' tables of a group, with a value of each slot's adapter in each linear; 0 where a slot has
 * none.
 */
export function placeTable<T extends Int32Array | Float32Array>(
  table: T,
  layers: LayerRange,
  group: Group,
  adapters: readonly (PoolAdapter | null)[],
  value: (adapter: PoolAdapter, layer: number, linear: Linear) => number,
): T {
  const linears = GROUPS[group];
  for (let layer = layers.from; layer < layers.to; layer++) {
    const first = ((layer - layers.from) * tableBytes(adapters.length)) / 4;
    for (const [slot, adapter] of adapters.entries())
      for (const [g, linear] of linears.entries())
        table[first + slot * linears.length + g] = adapter ? value(adapter, layer, linear) : 0;
  }
  return table;
}
