// All that the adapters of a run take of a device: tables of all slots, buffers for the gradients of those in a step
// (gradient-buffers.ts), and for each adapter one allocation of its own size, taken when it joins and released when it leaves.
// A plan counts by this what a pool takes.
//
// An allocation is rounded up to the device's granularity, and none is ever moved: so an adapter costs less than one granule
// more than it needs, whatever joined and left before it.

import { bytesOf, type DType } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import { type LayerRange, layersIn } from "../../base/layers.ts";
import { alignUp } from "../../base/shape.ts";
import { type ModelSpec, tableRows } from "../../base/spec.ts";
import { type Device, GRANULARITY, type Tensor } from "../../device/device.ts";
import { GROUPS, type Group, groupShape, groupsOfModel } from "../../families/linears.ts";
import { groupsIn } from "../../families/parts.ts";
import type { PlacedAdapter } from "../../methods/adapter.ts";
import { type AdapterLayout, ALIGN, layoutAdapter, type Shape, sharesOuter, type TableLayout } from "../../methods/layout.ts";
import { type BlockName, isQuantised, type OptimizerName, type StateArray, stateOf } from "../../methods/optimizers.ts";
import { scaleAt } from "../../methods/placement.ts";
import { isLowRank, PEFT_METHODS, type PeftMethod, storedBy } from "../../methods/registry.ts";
import { TABLE_KINDS, type TableKind, tableWidth } from "../../methods/tables.ts";
import { ADAMW_TABLE_WIDTH } from "../../ops/adamw.ts";
import type { TableSite, TargetGroup } from "../adapted/target-group.ts";
import { countBytes } from "../layers/buffers.ts";
import { COMPUTATIONS } from "../methods/registry.ts";

type Take = (dtype: DType, ...shape: number[]) => Tensor;

/** Addresses in a linear's row of `factors` and of `vectors`. */
const ADDRESSES = 4;
const MOST_LINEARS = Math.max(...Object.values(GROUPS).map((linears) => linears.length));
/** Where the parts of a slot's row for a target group begin, in bytes. */
const VECTORS = MOST_LINEARS * ADDRESSES * 8;
const RANKS = 2 * VECTORS;
const SCALE = alignUp(RANKS + MOST_LINEARS * 4, 16); // as kernels take pointers to be
const PRESENT = alignUp(SCALE + MOST_LINEARS * 4, 16);
/** Methods that compute rows themselves: each has a number of the row. */
const ROW_METHODS = PEFT_METHODS.filter((method) => COMPUTATIONS[method].rows);
const STRIDES = alignUp(PRESENT + ROW_METHODS.length * 4, 16);
const SHARED_RANKS = alignUp(STRIDES + 2 * MOST_LINEARS * 4, 16);
const OWN_RANKS = alignUp(SHARED_RANKS + MOST_LINEARS * 4, 16);
const SITE_BYTES = alignUp(OWN_RANKS + MOST_LINEARS * 4, 256);

/** What decides the tables of a pool. */
export type PoolNeed = { readonly spec: ModelSpec; readonly layers: LayerRange; readonly slots: number };

const rowBytes = ({ spec, layers }: Omit<PoolNeed, "slots">): number =>
  (layersIn(layers).length * groupsOfModel(spec).length + TABLE_KINDS.length) * SITE_BYTES;

/** Where the row of a slot has a target group, in bytes. */
const siteOffset = ({ spec, layers }: Omit<PoolNeed, "slots">, layer: number, group: Group): number =>
  ((layer - layersIn(layers)[0]!) * groupsOfModel(spec).length + groupsOfModel(spec).indexOf(group)) * SITE_BYTES;

/** The same of a table: after all layers. */
const tableOffset = (need: Omit<PoolNeed, "slots">, kind: TableKind): number =>
  rowBytes(need) - (TABLE_KINDS.length - TABLE_KINDS.indexOf(kind)) * SITE_BYTES;

/** Bytes of the tables, for the plan. */
export const tableBytes = (need: PoolNeed): number => countBytes((take) => takeTables(take, need));

export function takeTables(take: Take, need: PoolNeed) {
  const { spec, layers, slots } = need;
  const ofModel = groupsOfModel(spec);
  const rows = take("u8", slots, rowBytes(need));
  const step = take("f32", slots, ADAMW_TABLE_WIDTH);
  const noDropout = take("i32", slots, 4);
  const methods = new Map(
    PEFT_METHODS.map((method) => {
      const { refresh, table } = COMPUTATIONS[method];
      /** i32[slots]: which of them a refresh computes. */
      const stale = refresh ? take("i32", slots) : null;
      return [method, { stale, own: table ? take("i32", slots, table.width) : null }];
    }),
  );
  const partsAt =
    (offset: number, linears: number) =>
    (dtype: DType, from: number, ...shape: number[]): Tensor => {
      const ptr = rows.ptr + offset + from;
      return { ptr, dtype, shape: [slots, linears, ...shape], stride: rowBytes(need) / bytesOf(dtype) };
    };
  const tableSite = (kind: TableKind): TableSite => {
    const part = partsAt(tableOffset(need, kind), 1);
    return {
      factors: part("i64", 0, ADDRESSES),
      tokens: part("i64", VECTORS, ADDRESSES),
      ranks: part("i32", RANKS),
      scale: part("f32", SCALE),
      upRanks: part("i32", PRESENT),
      firstColumn: [0, kind === "embedding" ? spec.hidden : tableRows(spec)],
      module: spec.layers * ofModel.length + TABLE_KINDS.indexOf(kind),
    };
  };
  const sites = layersIn(layers).flatMap((layer) =>
    groupsIn(spec, layers, layer).map((group): TargetGroup => {
      const part = partsAt(siteOffset(need, layer, group), GROUPS[group].length);
      return {
        factors: part("i64", 0, ADDRESSES),
        vectors: part("i64", VECTORS, ADDRESSES),
        ranks: part("i32", RANKS),
        scale: part("f32", SCALE),
        strides: part("i32", STRIDES, 2),
        sharedRanks: part("i32", SHARED_RANKS),
        ownRanks: part("i32", OWN_RANKS),
        noDropout,
        width: groupShape(spec, group, layer).in,
        firstColumn: groupShape(spec, group, layer).firstColumn,
        layer,
        group,
        module: layer * ofModel.length + ofModel.indexOf(group),
        present: Object.fromEntries(
          ROW_METHODS.map((method, i) => [method, { ...part("i32", PRESENT + 4 * i), shape: [slots] }]),
        ),
      };
    }),
  );
  return { rows, step, noDropout, methods, sites, tableSites: { embedding: tableSite("embedding"), head: tableSite("head") } };
}

/** What decides which tensors an adapter has, next to its layout. */
type Stored = { readonly method?: PeftMethod | undefined; readonly optimizer?: OptimizerName | undefined };

/** What an adapter has on a device. P elements of its block, S of its tensors. */
export type AdapterMemory = ReturnType<typeof takeAdapter>;

/** Bytes of an adapter's allocation, for the plan; without `trains` of one that only generates. */
export const adapterBytes = (
  spec: ModelSpec,
  layers: LayerRange,
  adapter: Shape & Stored,
  device: Pick<Device, "kind" | "compute">,
  trains = true,
): number => allocationBytes(layoutAdapter(spec, layers, adapter), adapter, device, trains);

export function allocationBytes(
  layout: AdapterLayout,
  adapter: Stored,
  { kind, compute }: Pick<Device, "kind" | "compute">,
  trains: boolean,
): number {
  const bytes = countBytes((take) => takeAdapter(take, layout, adapter, compute, trains));
  return alignUp(Math.max(1, bytes), GRANULARITY[kind]);
}

/** Without `trains` moments have no memory. */
export function takeAdapter(
  take: Take,
  layout: AdapterLayout,
  { method = "lora", optimizer }: Stored,
  compute: Device["compute"],
  trains: boolean,
) {
  const { size, scratch, outputs, tensors } = layout;
  const ofTraining = (elements: number) => take("f32", trains ? elements : 0);
  const params = take("f32", size);
  const ofOptimizer = (Object.entries(stateOf(optimizer)) as [BlockName, StateArray][])
    .filter(([what]) => what !== "params")
    .map(([what, { dtype, per }]) => [what, take(dtype, trains ? size / per : 0)] as const);
  return {
    layout,
    /** What is kept of it, by name. */
    blocks: { ...(Object.fromEntries(ofOptimizer) as { readonly [B in BlockName]?: Tensor }), params },
    /** Of the parameters, where kernels read bf16. */
    copy: compute === "bf16" && scratch === 0 ? take("bf16", size) : null,
    /** A and B of one target group with their gradients, where the method does not store them. */
    scratch: scratch > 0 ? { values: take(compute, scratch), grads: ofTraining(scratch) } : null,
    /** f32[outputs] each. */
    derived: Object.keys(COMPUTATIONS[method].derived ?? {}).map((name) => ({ name, tensor: take("f32", outputs) })),
    factors: take("i32", size / ALIGN),
    /** What the codes of its moments stand for (ops/adamw8.ts). */
    codes: trains && isQuantised(optimizer) ? take("f32", 4, 256) : null,
    tensors: take("i32", tensors.length, 3),
    squares: take("f32", tensors.length),
    /** Whose rows of the head are trained. */
    tokens: take("i32", tokensOf(layout.tables.head).length),
  };
}

export const tokensOf = (of: TableLayout | undefined): readonly number[] => (of && "tokens" in of.table ? of.table.tokens : []);

/** The row of an adapter's slot in the tables. */
export type SlotRow = {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Which of its i64 are addresses in the adapter's own memory. */
  readonly own: readonly number[];
  /** Which of its i64 are addresses in the adapter's gradients, and of which element. */
  readonly gradients: readonly { readonly index: number; readonly element: number }[];
};

/** Puts the addresses of the adapter's gradients into its row. */
export function setGradients({ bytes, gradients }: SlotRow, { ptr }: Tensor): void {
  const addresses = new BigInt64Array(bytes.buffer);
  for (const { index, element } of gradients) addresses[index] = BigInt(ptr + 4 * element);
}

/** The addresses of an adapter that lies `bytes` bytes further on than before. */
export function moveRow({ bytes, own }: SlotRow, by: number): void {
  const addresses = new BigInt64Array(bytes.buffer);
  for (const index of own) addresses[index]! += BigInt(by);
}

/** The row of a slot without an adapter on the device. */
export const emptyRow = (need: Omit<PoolNeed, "slots">): Uint8Array<ArrayBuffer> => new Uint8Array(rowBytes(need));

/** Without addresses of gradients. */
export function slotRow(need: Omit<PoolNeed, "slots">, memory: AdapterMemory, adapter: PlacedAdapter & Shape): SlotRow {
  const row = emptyRow(need);
  const gradients: { index: number; element: number }[] = [];
  const own: number[] = [];
  const { layout, blocks, copy, scratch, derived, tokens } = memory;
  const values = scratch?.values ?? copy ?? blocks.params;
  const at = (of: Tensor, element: number): number => of.ptr + element * bytesOf(of.dtype);
  for (const { layer, group, ranks, products, strides, vectors, firstOutput } of layout.sites) {
    const from = siteOffset(need, layer, group);
    const addresses = new BigInt64Array(row.buffer, from, RANKS / 8);
    const { firstColumn } = groupShape(need.spec, group, layer);
    new Int32Array(row.buffer, from + RANKS, ranks.length).set(ranks);
    const scales = GROUPS[group].map((linear) => scaleAt(adapter, layer, linear));
    new Float32Array(row.buffer, from + SCALE, scales.length).set(scales);
    new Int32Array(row.buffer, from + PRESENT, ROW_METHODS.length).set(
      ROW_METHODS.map((method) => Number((adapter.method ?? "lora") === method)),
    );
    new Int32Array(row.buffer, from + STRIDES, 2 * strides.length).set(strides.flat());
    const ofSharing = sharesOuter(layout, group) ? SHARED_RANKS : OWN_RANKS;
    new Int32Array(row.buffer, from + ofSharing, ranks.length).set(ranks);
    for (const [g, product] of products.entries()) {
      const { A, B } = product ?? {};
      const begin = from / 8;
      if (A && B) {
        const first = g * ADDRESSES;
        addresses.set([at(values, A.offset), at(values, B.offset)].map(BigInt), first);
        if (scratch)
          addresses.set(
            [A, B].map(({ offset }) => BigInt(at(scratch.grads, offset))),
            first + 2,
          );
        else gradients.push(...[A, B].map(({ offset }, i) => ({ index: begin + first + 2 + i, element: offset })));
      }
      const first = VECTORS / 8 + g * ADDRESSES;
      const places: number[] = [];
      for (const factor of storedBy(adapter.method)) {
        const offset = isLowRank(factor) ? undefined : vectors[factor]?.[g];
        if (offset === undefined) continue;
        if (offset !== null) gradients.push({ index: begin + first + places.length + 1, element: offset });
        places.push(offset === null ? 0 : at(blocks.params, offset), 0);
      }
      places.push(...derived.map(({ tensor }) => at(tensor, firstOutput + firstColumn[g]!)));
      invariant(places.length <= ADDRESSES, `a method has ${places.length} addresses for a linear, the tables ${ADDRESSES}`);
      addresses.set(places.map(BigInt), first);
    }
    for (const [i, address] of addresses.entries()) if (address !== 0n) own.push(from / 8 + i);
  }
  for (const kind of TABLE_KINDS) {
    const of = layout.tables[kind];
    if (!of) continue;
    const { table, places } = of;
    const from = tableOffset(need, kind);
    const addresses = new BigInt64Array(row.buffer, from, RANKS / 8);
    if (kind === "head" && "tokens" in table) addresses[VECTORS / 8] = BigInt(tokens.ptr);
    // Of the embedding B is looked up, and A is what the product of rows is multiplied by.
    const [down, up] = kind === "embedding" ? [places.B, places.A] : [places.A, places.B];
    for (const [i, place] of [places.rows ?? down, up].entries()) {
      if (!place) continue;
      addresses[i] = BigInt(at(values, place.offset));
      gradients.push({ index: from / 8 + i + 2, element: place.offset });
    }
    for (const [i, address] of addresses.entries()) if (address !== 0n) own.push(from / 8 + i);
    const rank = "tokens" in table ? 0 : table.rank;
    new Int32Array(row.buffer, from + RANKS, 1)[0] = kind === "head" ? tableWidth(table) : rank;
    new Int32Array(row.buffer, from + PRESENT, 1)[0] = rank;
    new Float32Array(row.buffer, from + SCALE, 1)[0] = "tokens" in table ? 0 : table.scale;
  }
  return { bytes: row, own, gradients };
}
