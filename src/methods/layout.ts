// Where an adapter's parameters are: one flat block an adapter, of its own size.
//
// For each layer and each group of linears where it has targets: A [rank, in] and the transposed B [rank, out] of each linear
// that it targets, and the vectors that its method stores; before the layers what it trains of the embedding, after them what
// it trains of the output head. Each begins at a multiple of ALIGN elements. Ranks are not padded,
// and nothing depends on other adapters. This file alone knows offsets.

import * as v from "valibot";
import { invariant } from "../base/errors.ts";
import { type LayerRange, layersIn } from "../base/layers.ts";
import { natural } from "../base/schema.ts";
import { alignUp, maxOf, range, sizeOf, sum } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import {
  GROUP_NAMES,
  GROUPS,
  type Group,
  groupShape,
  isExpertGroup,
  LINEARS,
  type Linear,
  linearShape,
} from "../families/linears.ts";
import { groupsIn, hasLinear } from "../families/parts.ts";
import type { Placed } from "./adapter.ts";
import { MOST_RANK } from "./definition.ts";
import type { Values } from "./optimizers.ts";
import { rankAt, sharingOf } from "./placement.ts";
import { type Factor, factorShape, frozenIn, isLowRank, PEFT_METHODS, type PeftMethod, storedBy, TENSORS } from "./registry.ts";
/** Elements: 256 bytes of bf16, as the GPU's copy engine and vector loads need. Each ALIGN elements are of one tensor. */
import { copiesOf, type ExpertSharing } from "./sharing.ts";
import {
  hasTable,
  isTableKind,
  layerOfTable,
  sharesRows,
  TABLE_KINDS,
  type Table,
  type TableKind,
  type TableTensor,
  tableShape,
  tableTensors,
  tableWidth,
} from "./tables.ts";

export const ALIGN = 128;
/** Elements that kernels read at a time: a vector of ranks counts up to a multiple of it, with zeros. */
const READ = 8;
/** Ranks are padded to a multiple of this in s = A drop(x), and nowhere else: the depth of a tensor core's product. */
export const RANK_TILE = 16;

export { MOST_RANK };

const groups = v.picklist(GROUP_NAMES);
/** Where an adapter's rows have an s: at a group of linears, or at a table. */
export type LowKey = Group | TableKind;
export const LOW_KEYS: readonly LowKey[] = [...GROUP_NAMES, ...TABLE_KINDS];
/** What the adapters of a run need of a pass. */
export const adapterSizes = v.strictObject({
  /** Elements of s = A drop(x), at most, in each group and table that any of them targets. */
  low: v.record(v.picklist(LOW_KEYS), natural),
  /** Where the whole product of a group is kept for them, by their methods. */
  products: v.record(v.picklist(PEFT_METHODS), v.array(groups)),
});

/** What decides a layout. */
export type Shape = Placed & { readonly method?: PeftMethod | undefined };

/** A matrix; `offset` in elements from the beginning of the block. */
export type Place = { readonly offset: number; readonly rows: number; readonly columns: number };

/** The tensors of one group in one layer. */
export type SiteLayout = {
  readonly layer: number;
  readonly group: Group;
  /** Of the group's linears; 0 where one is no target. */
  readonly ranks: readonly number[];
  /**
   * A [rank, in] and the transposed B [rank, out] of each linear, null where it is no target: in the block, or in the
   * adapter's scratch where its method stores other tensors.
   */
  readonly products: readonly ({ readonly A: Place; readonly B: Place } | null)[];
  /** Elements from one expert's A, and B, to the next one's; 0 where there is but one. */
  readonly strides: readonly (readonly [A: number, B: number])[];
  /**
   * Of each other tensor that the method stores, where a linear's part begins. A vector along the output is one for the
   * whole group, a vector of ranks one for each target; null where there is none.
   */
  readonly vectors: Readonly<Partial<Record<Factor, readonly (number | null)[]>>>;
  /** Output features of the layout's sites before this one: where those of a derived vector begin. */
  readonly firstOutput: number;
};

/** What an adapter trains of a table: B by token [vocab, rank] of the embedding, transposed [rank, tableRows] of the head. */
export type TableLayout = { readonly table: Table; readonly places: Readonly<Partial<Record<TableTensor, Place>>> };

export type AdapterLayout = {
  readonly sites: readonly SiteLayout[];
  readonly tables: Readonly<Partial<Record<TableKind, TableLayout>>>;
  /** All that is stored, in order. */
  readonly tensors: readonly (Place & { readonly factor: Factor | TableTensor })[];
  /** Elements of the block. */
  readonly size: number;
  /** Elements of the scratch for A and B of one site; 0 where they are stored. */
  readonly scratch: number;
  /** Output features of all sites. */
  readonly outputs: number;
  readonly sharing: ExpertSharing;
};

export function layoutAdapter(spec: ModelSpec, layers: LayerRange, adapter: Shape): AdapterLayout {
  const stored = storedBy(adapter.method);
  const sharing = sharingOf(adapter);
  const isExpanded = !stored.some(isLowRank);
  const sites: SiteLayout[] = [];
  const tensors: (Place & { readonly factor: Factor | TableTensor })[] = [];
  let [size, scratch, outputs] = [0, 0, 0];
  const store = (factor: Factor | TableTensor, rows: number, columns: number): Place => {
    const place = { offset: size, rows, columns };
    tensors.push({ ...place, factor });
    size = alignUp(size + rows * columns, ALIGN);
    return place;
  };
  const tables: Partial<Record<TableKind, TableLayout>> = {};
  const storeTable = (kind: TableKind) => {
    const table = adapter.tables?.[kind];
    if (!table || !hasTable(spec, layers, kind)) return;
    const places = tableTensors(table).map((tensor) => {
      const [rows, columns] = tableShape(spec, table, tensor);
      const isTurned = kind === "head" && tensor === "B";
      return [tensor, isTurned ? store(tensor, columns, tableRows(spec)) : store(tensor, rows, columns)];
    });
    tables[kind] = { table, places: Object.fromEntries(places) };
  };
  storeTable("embedding");
  for (const layer of layersIn(layers))
    for (const group of groupsIn(spec, layers, layer)) {
      const ranks = GROUPS[group].map((linear) => rankAt(adapter, layer, linear));
      if (ranks.every((rank) => rank === 0)) continue;
      const { in: width, firstColumn } = groupShape(spec, group, layer);
      const outOf = (g: number) => firstColumn[g + 1]! - firstColumn[g]!;
      const copies = GROUPS[group].map((linear) => {
        const shape = linearShape(spec, linear, layer);
        return [copiesOf(shape, "A", sharing), copiesOf(shape, "B", sharing)] as const;
      });
      let used = 0;
      const inScratch = (rows: number, columns: number): Place => {
        const place = { offset: used, rows, columns };
        used = alignUp(used + rows * columns, ALIGN);
        return place;
      };
      const products = ranks.map((rank, g) => {
        if (rank === 0) return null;
        const put = isExpanded ? (_: Factor, ...shape: [number, number]) => inScratch(...shape) : store;
        const [ofA, ofB] = copies[g]!;
        return { A: put("A", rank * ofA, width), B: put("B", rank * ofB, outOf(g)) };
      });
      const strides = ranks.map((rank, g) => {
        const [ofA, ofB] = copies[g]!;
        return [ofA > 1 ? rank * width : 0, ofB > 1 ? rank * outOf(g) : 0] as const;
      });
      const vectors = Object.fromEntries(
        stored
          .filter((factor) => !isLowRank(factor))
          .map((factor) => {
            if (TENSORS[factor].axes === "rank")
              return [factor, ranks.map((rank) => (rank === 0 ? null : store(factor, 1, alignUp(rank, READ)).offset))];
            const { offset } = store(factor, 1, firstColumn.at(-1)!);
            return [factor, ranks.map((_, g) => offset + firstColumn[g]!)];
          }),
      );
      sites.push({ layer, group, ranks, products, strides, vectors, firstOutput: outputs });
      outputs += firstColumn.at(-1)!;
      scratch = Math.max(scratch, used);
    }
  storeTable("head");
  return { sites, tables, tensors, size, scratch, outputs, sharing };
}

/** Of each tensor of a block where it begins, in units of ALIGN elements, its rows and its columns. */
export const tensorTable = ({ tensors }: AdapterLayout): Int32Array<ArrayBuffer> =>
  Int32Array.from(tensors.flatMap(({ offset, rows, columns }) => [offset / ALIGN, rows, columns]));

/**
 * Of each ALIGN elements of a block, 1 where they are of a B, else 0: the optimizer has a rate for B and one for all
 * others.
 */
export function factorTable({ tensors, size }: AdapterLayout): Int32Array<ArrayBuffer> {
  const table = new Int32Array(size / ALIGN);
  for (const { factor, offset, rows, columns } of tensors)
    if (factor === "B") table.fill(1, offset / ALIGN, alignUp(offset + rows * columns, ALIGN) / ALIGN);
  return table;
}

/** Whether all experts share the outer factor of an adapter in a group (sharing.ts). */
export const sharesOuter = ({ sharing }: Pick<AdapterLayout, "sharing">, group: Group): boolean =>
  sharing === "shared-outer" && isExpertGroup(group);

/** Columns of s = A drop(x) for linears of these ranks. */
export function paddedWidth(ranks: Iterable<number>): number {
  let width = 0;
  for (const rank of ranks) width += alignUp(rank, RANK_TILE);
  return width;
}

/**
 * Columns of an adapter's rows of s in a group: as many as in the layer of these that has most. Of a table as many as ranks, or
 * as tokens of the head.
 */
export const widthIn = (adapter: Placed, layers: LayerRange, group: LowKey): number =>
  isTableKind(group)
    ? widthAt(adapter, group)
    : adapter.places === undefined
      ? paddedWidth(GROUPS[group].map((linear) => rankAt(adapter, layersIn(layers)[0]!, linear)))
      : maxOf(layersIn(layers).map((layer) => paddedWidth(GROUPS[group].map((linear) => rankAt(adapter, layer, linear)))));

const widthAt = ({ tables }: Placed, kind: TableKind): number => {
  const table = tables?.[kind];
  return table ? paddedWidth([kind === "embedding" && "tokens" in table ? 1 : tableWidth(table)]) : 0;
};

/**
 * A factor of a linear within an adapter's block: [rows, columns], or a vector as one row. `isTransposed`: the block has it
 * as [columns, pitch], of which the first `rows` of each are it.
 */
export type FactorPlace = Place & { readonly isTransposed: boolean; readonly pitch?: number };

/**
 * The same in an array that has one element for each `per` elements of the block: as one row, and those that the factor
 * shares with its neighbours too.
 */
export function placeAmong(place: FactorPlace, per: number): FactorPlace {
  if (per === 1) return place;
  const first = Math.floor(place.offset / per);
  const columns = Math.ceil((place.offset + (place.pitch ?? place.rows) * place.columns) / per) - first;
  return { offset: first, rows: 1, columns, isTransposed: false };
}

/** Where a factor of an adapter is. The adapter must target the linear. */
export function factorPlace(
  spec: ModelSpec,
  layout: AdapterLayout,
  layer: number,
  linear: Linear | TableKind,
  factor: Factor | TableTensor,
): FactorPlace {
  if (isTableKind(linear)) return placeInTable(spec, layout, linear, factor as TableTensor);
  const site = layout.sites.find((at) => at.layer === layer && GROUPS[at.group].includes(linear));
  invariant(site, `no ${factor} for ${linear} of layer ${layer}`);
  const g = GROUPS[site.group].indexOf(linear);
  const offset = isLowRank(factor as Factor)
    ? site.products[g]?.[factor as "A" | "B"].offset
    : site.vectors[factor as Factor]?.[g];
  invariant(typeof offset === "number", `no ${factor} for ${linear} of layer ${layer}`);
  const shape = factorShape(spec, linear, factor as Factor, site.ranks[g]!, layer, layout.sharing);
  const [rows, columns] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!];
  return { offset, rows, columns, isTransposed: TENSORS[factor as Factor].axes === "out rank" };
}

function placeInTable(spec: ModelSpec, { tables }: AdapterLayout, kind: TableKind, tensor: TableTensor): FactorPlace {
  const { table, places } = tables[kind] ?? {};
  const place = places?.[tensor];
  invariant(table && place, `no ${tensor} for the ${kind}`);
  const [rows, columns] = tableShape(spec, table, tensor);
  const isTransposed = kind === "head" && tensor === "B";
  return { offset: place.offset, rows, columns, isTransposed, ...(isTransposed ? { pitch: place.columns } : {}) };
}

/** Trained parameters of an adapter. */
export function countParameters(spec: ModelSpec, layers: number, adapter: Placed, method: PeftMethod = "lora"): number {
  const trained = storedBy(method).filter((factor) => !frozenIn(method).includes(factor));
  const ofLinear = (layer: number, linear: Linear, rank: number) =>
    rank === 0 ? 0 : sum(trained.map((factor) => sizeOf(factorShape(spec, linear, factor, rank, layer, sharingOf(adapter)))));
  const inLayers = range(layers).flatMap((layer) =>
    adapter.targets.map((linear) => ofLinear(layer, linear, rankAt(adapter, layer, linear))),
  );
  const inTables = TABLE_KINDS.flatMap((kind) => {
    const table = adapter.tables?.[kind];
    if (!table || (kind === "head" && sharesRows(spec, adapter.tables))) return [];
    return tableTensors(table).map((tensor) => sizeOf(tableShape(spec, table, tensor)));
  });
  return sum([...inLayers, ...inTables]);
}

/** A factor of an adapter by its place in the model; those of tables go with the first and the last layer. */
export type FactorTensor<V extends Values = Float32Array> = LinearFactor<V> | TableFactor<V>;
export type LinearFactor<V extends Values = Float32Array> = {
  readonly layer: number;
  readonly linear: Linear;
  readonly factor: Factor;
  readonly values: V;
};
export type TableFactor<V extends Values = Float32Array> = {
  readonly layer: number;
  readonly linear: TableKind;
  readonly factor: TableTensor;
  readonly values: V;
};
/** Without its values. */
export type FactorAt = At<FactorTensor>;
type At<T> = T extends unknown ? Omit<T, "values"> : never;
export const isOfTable = <T extends { readonly linear: Linear | TableKind }>(
  at: T,
): at is Extract<T, { readonly linear: TableKind }> => isTableKind(at.linear);
export const isOfLinear = <T extends { readonly linear: Linear | TableKind }>(
  at: T,
): at is Extract<T, { readonly linear: Linear }> => !isTableKind(at.linear);

/** All tensors of an adapter in a range of layers, in the order of its block but for groups, without their values. */
export function tensorsIn(spec: ModelSpec, layers: LayerRange, adapter: Shape): FactorAt[] {
  const ofTable = (kind: TableKind): At<TableFactor>[] => {
    const [layer, table] = [layerOfTable(spec, kind), adapter.tables?.[kind]];
    if (!table || !hasTable(spec, layers, kind)) return [];
    return tableTensors(table).map((factor) => ({ layer, linear: kind, factor }));
  };
  const inLayers = factorsIn(layers, adapter.targets, adapter.method, adapter.places).filter(({ layer, linear }) =>
    hasLinear(spec, layers, layer, linear),
  );
  return [...ofTable("embedding"), ...inLayers, ...ofTable("head")];
}

/** The factors of an adapter's linears in whole layers, in order, without their values. */
export function factorsIn(
  layers: LayerRange,
  targets: readonly Linear[],
  method: PeftMethod = "lora",
  places?: Placed["places"],
): At<LinearFactor>[] {
  const of = { rank: 1, targets, places };
  const factors: At<LinearFactor>[] = [];
  for (const layer of layersIn(layers))
    for (const linear of LINEARS.filter((linear) => rankAt(of, layer, linear) > 0))
      for (const factor of storedBy(method)) factors.push({ layer, linear, factor });
  return factors;
}
