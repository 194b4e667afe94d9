// Where an adapter's parameters are: one flat block an adapter, the same for all adapters of a run.
//
// For each layer and each group of linears in use: A and B of the group; then, where adapters of other methods have
// targets, what those store. Each begins at a multiple of ALIGN elements. An adapter is contiguous, so that one copy takes
// it off a device and back. This file alone knows offsets and strides.

import * as v from "valibot";
import { invariant } from "../base/errors.ts";
import { count, natural, type Output } from "../base/schema.ts";
import { alignUp, range, sizeOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { GROUP_NAMES, GROUPS, type Group, groupShape, groupsOfLayer, LINEARS, type Linear } from "../families/linears.ts";
import type { Placed, StageAdapter } from "./adapter.ts";
import { type Axes, MOST_RANK } from "./definition.ts";
import { rankAt } from "./placement.ts";
import {
  FACTORS,
  type Factor,
  factorShape,
  frozenIn,
  isLowRank,
  isMoreThanLora,
  PEFT_METHODS,
  type PeftMethod,
  storedBy,
  TENSORS,
} from "./registry.ts";

/** Elements: 256 bytes of bf16, as the GPU's copy engine and vector loads need. Each ALIGN elements are of one tensor. */
export const ALIGN = 128;

export { MOST_RANK };

/** Layers from `from` on and below `to`. */
export const layerRange = v.strictObject({ from: count, to: natural });
export type LayerRange = Output<typeof layerRange>;

/**
 * What a stage keeps of an adapter: its part of the parameters and of the two moments (of SGD, m is the momentum's buffer
 * and v is zero), each a flat block.
 */
export const BLOCKS = ["params", "m", "v"] as const;
export type BlockName = (typeof BLOCKS)[number];

/** A matrix within an adapter's block; `offset` in elements from its beginning. */
export type Place = { readonly offset: number; readonly rows: number; readonly columns: number };

/**
 * The tensors of one group in one layer, each of all the group's linears; one that no method of the run stores there is
 * absent.
 */
export type SiteLayout = {
  readonly layer: number;
  readonly group: Group;
  readonly tensors: Readonly<Partial<Record<Factor, Place>>>;
};

export type AdapterLayout = {
  readonly sites: readonly SiteLayout[];
  /** The tensors of each site, in the order of the sites. */
  readonly tensors: readonly Place[];
  readonly rank: number;
  /** Elements of an adapter's block. */
  readonly size: number;
};

/**
 * Of each ALIGN elements of a block, 1 where they are of a B, else 0: the optimizer has a rate for B and one for all
 * others.
 */
export function factorTable({ sites, size }: AdapterLayout): Int32Array<ArrayBuffer> {
  const table = new Int32Array(size / ALIGN);
  for (const { offset, rows, columns } of sites.flatMap(({ tensors }) => tensors.B ?? []))
    table.fill(1, offset / ALIGN, alignUp(offset + rows * columns, ALIGN) / ALIGN);
  return table;
}

/** The groups that hold at least one of the targets. */
export const groupsOf = (targets: Iterable<Linear>): readonly Group[] => {
  const wanted = new Set(targets);
  return GROUP_NAMES.filter((group) => GROUPS[group].some((linear) => wanted.has(linear)));
};

const groups = v.array(v.picklist(GROUP_NAMES));
/** What the adapters of a run have memory for. */
export const adapterCapacity = v.strictObject({
  /** Padded. */
  rank: natural,
  /** Where any adapter has a target. */
  groups,
  /** Of methods that need more than a LoRA: where an adapter of the method has a target. */
  methods: v.record(v.picklist(PEFT_METHODS), groups),
});
export type AdapterCapacity = Output<typeof adapterCapacity>;

type Targeting = Pick<StageAdapter, "targets" | "method">;

/** The groups that adapters need memory in. */
export function roomOf(adapters: readonly Targeting[]): Omit<AdapterCapacity, "rank"> {
  const groups = (of: readonly Targeting[]) => groupsOf(of.flatMap(({ targets }) => targets));
  const having = PEFT_METHODS.filter(isMoreThanLora).map((name) => {
    return [name, groups(adapters.filter(({ method }) => method === name))] as const;
  });
  return { groups: groups(adapters), methods: Object.fromEntries(having.filter(([, of]) => of.length > 0)) };
}

/** The methods that need more than a LoRA in a group. */
export const methodsAt = ({ methods }: Pick<AdapterCapacity, "methods">, group: Group): PeftMethod[] =>
  PEFT_METHODS.filter((method) => methods[method]?.includes(group));

/** How a tensor of a group holds those of its linears. `column` is where the linear begins in the group's output. */
type Packing = {
  readonly group: (of: {
    readonly linears: number;
    readonly in: number;
    readonly out: number;
    readonly rank: number;
  }) => [rows: number, columns: number];
  /** The linear's first element, and the elements from one row to the next. */
  readonly linear: (of: {
    readonly index: number;
    readonly column: number;
    readonly in: number;
    readonly rank: number;
  }) => [offset: number, stride: number | null];
};

/**
 * `rank` is the padded one here. A vector of ranks has as many elements as the largest rank there is, so that its norm is
 * summed alike in any run.
 */
const PACKINGS: Readonly<Record<Axes, Packing>> = {
  "rank in": {
    group: (of) => [of.linears * of.rank, of.in],
    linear: (of) => [of.index * of.rank * of.in, of.in],
  },
  "out rank": { group: (of) => [of.out, of.rank], linear: (of) => [of.column * of.rank, of.rank] },
  out: { group: ({ out }) => [1, out], linear: ({ column }) => [column, null] },
  rank: { group: ({ linears }) => [1, linears * MOST_RANK], linear: ({ index }) => [index * MOST_RANK, null] },
};

export function layoutAdapters(spec: ModelSpec, layers: LayerRange, capacity: AdapterCapacity): AdapterLayout {
  const sites: SiteLayout[] = [];
  let at = 0;
  for (let layer = layers.from; layer < layers.to; layer++)
    for (const group of capacity.groups.filter((group) => groupsOfLayer(spec, layer).includes(group))) {
      const { in: width, firstColumn } = groupShape(spec, group, layer);
      const sizes = { linears: firstColumn.length - 1, in: width, out: firstColumn.at(-1)!, rank: capacity.rank };
      const stored = new Set(methodsAt(capacity, group).flatMap(storedBy));
      const tensors: Partial<Record<Factor, Place>> = {};
      for (const factor of FACTORS.filter((name) => isLowRank(name) || stored.has(name))) {
        const [rows, columns] = PACKINGS[TENSORS[factor].axes].group(sizes);
        tensors[factor] = { offset: at, rows, columns };
        at = alignUp(at + rows * columns, ALIGN);
      }
      sites.push({ layer, group, tensors });
    }
  const tensors = sites.flatMap((site) => FACTORS.flatMap((factor) => site.tensors[factor] ?? []));
  return { sites, tensors, rank: capacity.rank, size: at };
}

/** A factor of a linear within an adapter's block: rows of `columns` elements, `stride` apart; a vector is one row. */
export type FactorPlace = Place & { readonly stride: number };

/** Where a factor of an adapter of this rank is. The layout must have its linear's group. */
export function factorPlace(
  spec: ModelSpec,
  layout: AdapterLayout,
  rank: number,
  layer: number,
  linear: Linear,
  factor: Factor,
): FactorPlace {
  const site = layout.sites.find((at) => at.layer === layer && GROUPS[at.group].includes(linear));
  const tensor = site?.tensors[factor];
  invariant(site && tensor, `no ${factor} for ${linear} of layer ${layer}`);
  const index = GROUPS[site.group].indexOf(linear);
  const { in: width, firstColumn } = groupShape(spec, site.group, layer);
  const within = { index, column: firstColumn[index]!, in: width, rank: layout.rank };
  const [first, stride] = PACKINGS[TENSORS[factor].axes].linear(within);
  const shape = factorShape(spec, linear, factor, rank, layer);
  const [rows, columns] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!];
  return { offset: tensor.offset + first, rows, columns, stride: stride ?? columns };
}

/** A factor's values out of a block, padding left out. */
export function takeFactor(block: Float32Array, { offset, rows, columns, stride }: FactorPlace): Float32Array<ArrayBuffer> {
  const values = new Float32Array(rows * columns);
  if (columns === stride) values.set(block.subarray(offset, offset + rows * columns));
  else
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) values[row * columns + column] = block[offset + row * stride + column]!;
  return values;
}

/** Puts a factor's values into a block; what lies between its rows stays. */
export function putFactor(block: Float32Array, { offset, rows, columns, stride }: FactorPlace, values: Float32Array): void {
  for (let row = 0; row < rows; row++) block.set(values.subarray(row * columns, (row + 1) * columns), offset + row * stride);
}

/** Trained parameters of an adapter, padding left out. */
export function countParameters(spec: ModelSpec, layers: number, adapter: Placed, method: PeftMethod = "lora"): number {
  const trained = storedBy(method).filter((factor) => !frozenIn(method).includes(factor));
  const ofLinear = (layer: number, linear: Linear, rank: number) =>
    rank === 0 ? 0 : sum(trained.map((factor) => sizeOf(factorShape(spec, linear, factor, rank, layer))));
  return sum(
    range(layers).flatMap((layer) => adapter.targets.map((linear) => ofLinear(layer, linear, rankAt(adapter, layer, linear)))),
  );
}

/** A factor of an adapter by its place in the model. */
export type FactorTensor = {
  readonly layer: number;
  readonly linear: Linear;
  readonly factor: Factor;
  readonly values: Float32Array;
};

/** The factors of an adapter in a range of layers, in order, without their values. */
export function factorsIn(
  { from, to }: LayerRange,
  targets: readonly Linear[],
  method: PeftMethod = "lora",
  places?: StageAdapter["places"],
): Omit<FactorTensor, "values">[] {
  const of = { rank: 1, targets, places };
  const factors: Omit<FactorTensor, "values">[] = [];
  for (let layer = from; layer < to; layer++)
    for (const linear of LINEARS.filter((linear) => rankAt(of, layer, linear) > 0))
      for (const factor of storedBy(method)) factors.push({ layer, linear, factor });
  return factors;
}
