// Where an adapter's parameters lie: one flat block an adapter, the same for all adapters of a run.
//
// For each layer and each group of linears in use: A of the group [G * R, K], then B [N, R]; where DoRA adapters have targets the magnitudes
// of the rows, M [N]; where VeRA adapters have them their vectors, d [G * 256] and b [N]. Each begins at a multiple of ALIGN elements. G linears
// share the input K; R is the padded rank, N the sum of their outputs. An adapter is contiguous, so that it can leave a device and come
// back as one copy.

import * as v from "valibot";
import { invariant } from "../base/errors.ts";
import { count, natural, type Output } from "../base/schema.ts";
import { alignUp, range, sizeOf, sum } from "../base/shape.ts";
import { GROUP_NAMES, GROUPS, type Group, LINEARS, type Linear, linearShape, type ModelSpec } from "../base/spec.ts";
import type { Placed, StageAdapter } from "./adapter.ts";
import type { Factor } from "./definition.ts";
import { rankAt } from "./placement.ts";
import { DEFINITIONS, factorShape, hasMagnitudes, hasVectors, type PeftMethod } from "./registry.ts";

/** Elements: 256 bytes of bf16, what the GPU's copy engine and vector loads want. So many lie in one tensor, or in none. */
export const ALIGN = 128;

/** The largest rank there is. VeRA's d has room for it whatever the padded rank is, so that its norm is summed alike in any company. */
export const MOST_RANK = 256;

/** Layers from `from` on and below `to`. */
export const layerRange = v.strictObject({ from: count, to: natural });
export type LayerRange = Output<typeof layerRange>;

/**
 * What a stage keeps of an adapter: its part of the parameters and of the two moments (of SGD, m is the momentum's buffer and v is zero),
 * each a flat block.
 */
export const BLOCKS = ["params", "m", "v"] as const;
export type BlockName = (typeof BLOCKS)[number];

/** Where the tensors of one group in one layer begin, in elements from the adapter's block; null where there are none. */
export type SiteLayout = {
  readonly layer: number;
  readonly group: Group;
  readonly a: number;
  readonly b: number;
  readonly m: number | null;
  readonly lambdaD: number | null;
  readonly lambdaB: number | null;
};

/** A matrix within an adapter's block. */
export type Place = { readonly offset: number; readonly rows: number; readonly columns: number };

export type AdapterLayout = {
  readonly sites: readonly SiteLayout[];
  /** The tensors of each site, in the order of the sites. */
  readonly tensors: readonly Place[];
  readonly rank: number;
  /** Elements of an adapter's block. */
  readonly size: number;
};

/** Input width, and where each linear of the group begins in the output (and where the last ends). */
export function groupShape(spec: ModelSpec, group: Group): { readonly in: number; readonly firstColumn: readonly number[] } {
  const linears: readonly Linear[] = GROUPS[group];
  const firstColumn = [0];
  for (const linear of linears) firstColumn.push(firstColumn.at(-1)! + linearShape(spec, linear).out);
  return { in: linearShape(spec, linears[0]!).in, firstColumn };
}

/** Of each ALIGN elements of a block, 1 where they are of a B, else 0: what the optimizer tells A and B apart by. */
export function factorTable({ sites, tensors, size }: AdapterLayout): Int32Array<ArrayBuffer> {
  const table = new Int32Array(size / ALIGN);
  const ups = new Set(sites.map(({ b }) => b));
  for (const { offset, rows, columns } of tensors)
    if (ups.has(offset)) table.fill(1, offset / ALIGN, alignUp(offset + rows * columns, ALIGN) / ALIGN);
  return table;
}

/** The groups that hold at least one of the targets. */
export const groupsOf = (targets: Iterable<Linear>): readonly Group[] => {
  const wanted = new Set(targets);
  return GROUP_NAMES.filter((group) => GROUPS[group].some((linear) => wanted.has(linear)));
};

const groups = v.array(v.picklist(GROUP_NAMES));
/** What the adapters of a run have room for. */
export const adapterCapacity = v.strictObject({
  /** Padded. */
  rank: natural,
  /** Groups where any adapter has a target, where a DoRA has one, and where a VeRA has one. */
  groups,
  magnitudes: groups,
  vectors: groups,
});
export type AdapterCapacity = Output<typeof adapterCapacity>;

type Targeting = Pick<StageAdapter, "targets" | "method">;

/** The groups that adapters need room in. */
export function roomOf(adapters: readonly Targeting[]): Omit<AdapterCapacity, "rank"> {
  const of = (has: (method?: PeftMethod) => boolean) =>
    groupsOf(adapters.flatMap(({ method, targets }) => (has(method) ? targets : [])));
  return { groups: of(() => true), magnitudes: of(hasMagnitudes), vectors: of(hasVectors) };
}

export function layoutAdapters(
  spec: ModelSpec,
  layers: LayerRange,
  { groups, rank, magnitudes, vectors }: AdapterCapacity,
): AdapterLayout {
  const sites: SiteLayout[] = [];
  const tensors: Place[] = [];
  let at = 0;
  const take = (rows: number, columns: number): number => {
    const offset = at;
    tensors.push({ offset, rows, columns });
    at = alignUp(at + rows * columns, ALIGN);
    return offset;
  };
  for (let layer = layers.from; layer < layers.to; layer++)
    for (const group of groups) {
      const { in: width, firstColumn } = groupShape(spec, group);
      const a = take((firstColumn.length - 1) * rank, width);
      const b = take(firstColumn.at(-1)!, rank);
      const m = magnitudes.includes(group) ? take(1, firstColumn.at(-1)!) : null;
      const lambdaD = vectors.includes(group) ? take(1, (firstColumn.length - 1) * MOST_RANK) : null;
      const lambdaB = vectors.includes(group) ? take(1, firstColumn.at(-1)!) : null;
      sites.push({ layer, group, a, b, m, lambdaD, lambdaB });
    }
  return { sites, tensors, rank, size: at };
}

/** A factor of a linear within an adapter's block: rows of `columns` elements, `stride` apart; the others are one row. */
export type FactorPlace = Place & { readonly stride: number };

/** Where a factor of an adapter of this rank lies. Its linear's group must be in the layout. */
export function factorPlace(
  spec: ModelSpec,
  layout: AdapterLayout,
  rank: number,
  layer: number,
  linear: Linear,
  factor: Factor,
): FactorPlace {
  const site = layout.sites.find((at) => at.layer === layer && (GROUPS[at.group] as readonly Linear[]).includes(linear));
  invariant(site, `no factors for ${linear} of layer ${layer}`);
  const index = (GROUPS[site.group] as readonly Linear[]).indexOf(linear);
  const { in: width, out } = linearShape(spec, linear);
  if (factor === "A") return { offset: site.a + index * layout.rank * width, rows: rank, columns: width, stride: width };
  const { firstColumn } = groupShape(spec, site.group);
  if (factor === "lambda_d") {
    invariant(site.lambdaD !== null, `no vectors for ${linear} of layer ${layer}`);
    return { offset: site.lambdaD + index * MOST_RANK, rows: 1, columns: rank, stride: rank };
  }
  if (factor !== "B") {
    const at = factor === "M" ? site.m : site.lambdaB;
    invariant(at !== null, `no ${factor} for ${linear} of layer ${layer}`);
    return { offset: at + firstColumn[index]!, rows: 1, columns: out, stride: out };
  }
  return { offset: site.b + firstColumn[index]! * layout.rank, rows: out, columns: rank, stride: layout.rank };
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
  const ofLinear = (linear: Linear, rank: number) =>
    rank === 0 ? 0 : sum(DEFINITIONS[method].trained.map((factor) => sizeOf(factorShape(spec, linear, factor, rank))));
  return sum(
    range(layers).flatMap((layer) => adapter.targets.map((linear) => ofLinear(linear, rankAt(adapter, layer, linear)))),
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
      for (const factor of DEFINITIONS[method].trained) factors.push({ layer, linear, factor });
  return factors;
}
