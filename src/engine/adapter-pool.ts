// The adapters of a run on one device: parameters, gradients and moments, stacked as the kernels read them. There are as many slots
// as adapters train at once; one that leaves makes room for another.
//
// Knows indices, ranks and scales; names, data and steps belong to others. What a kind adds to a linear layer is lora.ts, dora.ts, vera.ts.

import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import { GROUPS, type Group, type Linear, type ModelSpec } from "../base/spec.ts";
import { Arena, arenaBytes } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import type { Factor } from "../methods/definition.ts";
import {
  type AdapterCapacity,
  type AdapterLayout,
  ALIGN,
  type BlockName,
  type FactorPlace,
  factorPlace,
  factorTable,
  groupShape,
  type LayerRange,
  layoutAdapters,
  MOST_RANK,
} from "../methods/layout.ts";
import { rankAt, scaleAt, trainedAt } from "../methods/placement.ts";
import { hasMagnitudes, hasVectors } from "../methods/registry.ts";
import { ADAMW_TABLE_WIDTH, adamwStep, gradNorm } from "../ops/adamw.ts";
import type { DoraPresence } from "./dora.ts";
import { toBf16 } from "./round.ts";
import { placeTable, tableBytes } from "./table.ts";
import type { Magnitudes, TargetGroup } from "./target-group.ts";
import { PROJECTION_WIDTH, projectionRow, settle } from "./vera.ts";

export type { Factor } from "../methods/definition.ts";
/** What there is of each adapter. */
export type Block = BlockName | "grads";

const [FRESH, STALE, BEGINS] = [0, 1, 2];
type Refreshed = "magnitudes" | "vectors";
const GROUP_ORDER = Object.keys(GROUPS);

/** Bytes of a bank, for the plan: f32 parameters, gradients and two moments, and the kernels' copy where they read bf16. */
export function bankBytes(adapters: number, layout: AdapterLayout, compute: "f32" | "bf16", groups: number): number {
  const block = adapters * layout.size;
  const copy = compute === "bf16" ? [block * 2] : [];
  const norms = [layout.tensors.length * 12, adapters * layout.tensors.length * 4];
  const columns = new Map(layout.tensors.map((place) => [place.offset, place.columns]));
  const own = layout.sites.flatMap(({ m }) => (m === null ? [] : Array(2).fill(adapters * columns.get(m)! * 4)));
  const decomposed = new Set(layout.sites.flatMap(({ m, group }) => (m === null ? [] : [group]))).size;
  if (decomposed > 0) own.push(...Array(decomposed + 1).fill(adapters * 4));
  if (layout.sites.some(({ lambdaB }) => lambdaB !== null))
    own.push(adapters * PROJECTION_WIDTH * 4, adapters * 4, adapters * 4);
  const optimizer = [(layout.size / ALIGN) * 4, adapters * ADAMW_TABLE_WIDTH * 4];
  return arenaBytes([
    ...Array(4).fill(block * 4),
    ...copy,
    ...norms,
    ...optimizer,
    ...own,
    ...Array(groups * 2).fill((layout.sites.length / Math.max(1, groups)) * tableBytes(adapters)),
  ]);
}

export class AdapterPool implements Disposable {
  readonly layout: AdapterLayout;
  readonly #sites = new Map<string, TargetGroup>();
  readonly #params: Tensor;
  readonly #grads: Tensor;
  readonly #m: Tensor;
  readonly #v: Tensor;
  readonly #copy: Tensor | null;
  readonly #tensors: Tensor;
  readonly #squares: Tensor;
  readonly #factors: Tensor;
  readonly #table: Tensor;
  readonly #arena: Arena;
  /** Of each slot: whether what follows from its parameters is not theirs, and for DoRA whether its magnitudes begin as the norms. */
  readonly #stale: Readonly<Record<Refreshed, { readonly slots: Int32Array; readonly table: Tensor | null }>>;
  /** For VeRA: what the projections are drawn by, and whose gradients are to be settled. */
  readonly #projection: Tensor | null;
  readonly #settling: Tensor | null;
  /** Of each group: what the kernels read of the adapters' ranks and scales, and whose rows have magnitudes. */
  readonly #tables = new Map<Group, { readonly ranks: Tensor; readonly scale: Tensor; readonly decomposed: Tensor | null }>();
  readonly #layers: LayerRange;
  /** Who has each slot; null for nobody. */
  readonly #adapters: (PoolAdapter | null)[];

  constructor(
    readonly device: Device,
    readonly spec: ModelSpec,
    layers: LayerRange,
    slots: number,
    capacity: AdapterCapacity,
  ) {
    const { groups, magnitudes, vectors } = capacity;
    this.layout = layoutAdapters(spec, layers, capacity);
    this.#layers = layers;
    this.#adapters = new Array<PoolAdapter | null>(slots).fill(null);
    const count = slots;
    const block = [count, this.layout.size] as const;
    this.#arena = new Arena(device, bankBytes(count, this.layout, device.compute, groups.length), "adapters");
    this.#params = this.#arena.tensor("f32", ...block);
    this.#grads = this.#arena.tensor("f32", ...block);
    this.#m = this.#arena.tensor("f32", ...block);
    this.#v = this.#arena.tensor("f32", ...block);
    this.#copy = device.compute === "bf16" ? this.#arena.tensor("bf16", ...block) : null;
    const { tensors } = this.layout;
    this.#tensors = this.#arena.tensor("i32", tensors.length, 3);
    this.#squares = this.#arena.tensor("f32", count, tensors.length);
    device.write(this.#tensors, Int32Array.from(tensors.flatMap(({ offset, rows, columns }) => [offset, rows, columns])));
    this.#factors = this.#arena.tensor("i32", this.layout.size / ALIGN);
    device.write(this.#factors, factorTable(this.layout));
    this.#table = this.#arena.tensor("f32", count, ADAMW_TABLE_WIDTH);
    for (const tensor of [this.#params, this.#grads, this.#m, this.#v]) device.zero(tensor);
    if (this.#copy) device.zero(this.#copy);
    const slotTable = (kinds: readonly Group[], width = 1) =>
      kinds.length > 0 ? this.#arena.tensor("i32", ...(width === 1 ? [count] : [count, width])) : null;
    this.#projection = slotTable(vectors, PROJECTION_WIDTH);
    this.#settling = slotTable(vectors);
    this.#stale = {
      magnitudes: { slots: new Int32Array(count), table: slotTable(magnitudes) },
      vectors: { slots: new Int32Array(count), table: slotTable(vectors) },
    };
    for (const group of groups) this.#addSites(group, magnitudes.includes(group), vectors.includes(group));
    this.#writeTables();
  }

  /** The tensors of a group in a layer, or null where no adapter has a target. */
  site(layer: number, group: Group): TargetGroup | null {
    return this.#sites.get(`${layer}.${group}`) ?? null;
  }

  get sites(): Iterable<TargetGroup> {
    return this.#sites.values();
  }

  /** The adapters in the slots; null where there is none. */
  get adapters(): readonly (PoolAdapter | null)[] {
    return this.#adapters;
  }

  /** Gives a slot to an adapter, as it is before anything is written there: all zero. */
  admit(slot: number, adapter: PoolAdapter): void {
    invariant(adapter.rank <= this.layout.rank, `rank ${adapter.rank} where there is room for ${this.layout.rank}`);
    this.#adapters[slot] = adapter;
    for (const { slots } of Object.values(this.#stale)) slots[slot] = FRESH;
    for (const what of ["params", "grads", "m", "v"] as const) this.device.zero(this.#row(slot, what));
    if (this.#copy) this.device.zero(this.#copyRow(this.#copy, slot));
    this.#writeTables();
    for (const { magnitudes } of this.#sites.values()) if (magnitudes) this.#begin(magnitudes, slot);
  }

  #begin({ gain, inverse }: Magnitudes, slot: number): void {
    const columns = gain.shape[1]!;
    this.device.write({ ...gain, ptr: gain.ptr + slot * columns * 4, shape: [columns] }, new Float32Array(columns).fill(1));
    this.device.zero({ ...inverse, ptr: inverse.ptr + slot * columns * 4, shape: [columns] });
  }

  /** At the next refresh an adapter's magnitudes become the norms of its rows, as DoRA begins. */
  beginMagnitudes(slot: number): void {
    this.#stale.magnitudes.slots[slot] = BEGINS;
  }

  /** i32[L], for whom something has to be computed before the next forward pass; from here on it counts as computed. Null where for nobody. */
  takeStale(kind: Refreshed): Tensor | null {
    const { slots, table } = this.#stale[kind];
    if (slots.every((is) => is === FRESH)) return null;
    this.device.write(table!, slots);
    slots.fill(FRESH);
    return table;
  }

  /** To be called when an adapter's parameters have changed. */
  #changed(slot: number): void {
    const method = this.#adapters[slot]?.method;
    if (hasMagnitudes(method)) this.#stale.magnitudes.slots[slot] = STALE;
    if (hasVectors(method)) this.#stale.vectors.slots[slot] = STALE;
  }

  /** Gradients of factors that follow from vectors become those of the vectors; what is frozen loses its own. */
  #settle(slots: Iterable<number>): void {
    const which = new Int32Array(this.#adapters.length);
    for (const slot of slots) {
      const adapter = this.#adapters[slot];
      which[slot] = Number(hasVectors(adapter?.method));
      if (adapter?.trainedRank !== undefined) this.#freeze(slot, adapter);
    }
    if (!which.includes(1)) return;
    this.device.write(this.#settling!, which);
    settle(this.device, this, this.#settling!);
  }

  /** How many of these adapters have magnitudes in each group. */
  decomposed(adapters: Iterable<number>): DoraPresence["decomposed"] {
    const slots = new Set(adapters);
    const count = (group: Group) => {
      const are = [...slots].map((slot) => isDecomposed(this.#adapters[slot], group));
      return are.every((is) => is) ? "all" : are.some((is) => is) ? "some" : "none";
    };
    return { qkv: count("qkv"), o: count("o"), gateUp: count("gateUp"), down: count("down") };
  }

  /** Zeroes the gradients of the frozen half; an adapter of several ranks freezes half of each. */
  #freeze(slot: number, adapter: PoolAdapter): void {
    const { rank: padded, size } = this.layout;
    const ptr = (offset: number) => this.#grads.ptr + (slot * size + offset) * 4;
    const zeroColumns = (b: number, rows: number, trained: number) =>
      this.device.zero({ ptr: ptr(b + trained), dtype: "f32", shape: [rows, padded - trained], stride: padded });
    for (const { layer, group, a, b } of this.layout.sites) {
      const { in: width, firstColumn } = groupShape(this.spec, group);
      const linears: readonly Linear[] = GROUPS[group];
      const trained = linears.map((linear) => trainedAt(adapter, layer, linear));
      for (const [g, first] of trained.entries())
        this.device.zero({ ptr: ptr(a + (g * padded + first) * width), dtype: "f32", shape: [(padded - first) * width] });
      if (trained.every((first) => first === trained[0])) zeroColumns(b, firstColumn.at(-1)!, trained[0]!);
      else
        for (const [g, first] of trained.entries())
          zeroColumns(b + firstColumn[g]! * padded, firstColumn[g + 1]! - firstColumn[g]!, first);
    }
  }

  #writeTables(): void {
    if (this.#projection)
      this.device.write(
        this.#projection,
        Int32Array.from(this.#adapters.flatMap((adapter) => projectionRow(this.spec, adapter))),
      );
    for (const [group, { ranks, scale, decomposed }] of this.#tables) {
      if (decomposed)
        this.device.write(
          decomposed,
          Int32Array.from(this.#adapters, (adapter) => Number(isDecomposed(adapter, group))),
        );
      this.device.write(ranks, placeTable(new Int32Array(sizeOf(ranks.shape)), this.#layers, group, this.#adapters, rankAt));
      this.device.write(scale, placeTable(new Float32Array(sizeOf(scale.shape)), this.#layers, group, this.#adapters, scaleAt));
    }
  }

  /** Elements before a layer's part of a group's tables. */
  #tableAt(layer: number): number {
    return ((layer - this.#layers.from) * tableBytes(this.#adapters.length)) / 4;
  }

  #addSites(group: Group, decomposes: boolean, hasVectors: boolean): void {
    const { in: width, firstColumn } = groupShape(this.spec, group);
    const linears: readonly Linear[] = GROUPS[group];
    const count = this.#adapters.length;
    const elements = this.#tableAt(this.#layers.to);
    const ranks = this.#arena.tensor("i32", elements);
    const scale = this.#arena.tensor("f32", elements);
    const tableOf = (of: Tensor, layer: number): Tensor => {
      return { ...of, ptr: of.ptr + this.#tableAt(layer) * 4, shape: [count, linears.length] };
    };
    const decomposed = decomposes ? this.#arena.tensor("i32", count) : null;
    this.#tables.set(group, { ranks, scale, decomposed });
    const { rank, size } = this.layout;
    const part = (of: Tensor, offset: number, rows: number, columns: number): Tensor => ({
      ptr: of.ptr + offset * bytesOf(of.dtype),
      dtype: of.dtype,
      shape: [count, rows, columns],
      stride: size,
    });
    const weights = this.#copy ?? this.#params;
    for (const at of this.layout.sites.filter((site) => site.group === group)) {
      const down = [at.a, linears.length * rank, width] as const;
      const columns = firstColumn.at(-1)!;
      const up = [at.b, columns, rank] as const;
      const vector = (of: Tensor, offset: number, width: number): Tensor => {
        return { ptr: of.ptr + offset * 4, dtype: "f32", shape: [count, width], stride: size };
      };
      const magnitudes = decomposed && {
        m: vector(this.#params, at.m!, columns),
        dm: vector(this.#grads, at.m!, columns),
        gain: this.#arena.tensor("f32", count, columns),
        inverse: this.#arena.tensor("f32", count, columns),
        decomposed,
      };
      if (magnitudes) for (let slot = 0; slot < count; slot++) this.#begin(magnitudes, slot);
      this.#sites.set(`${at.layer}.${group}`, {
        a: part(weights, ...down),
        b: part(weights, ...up),
        da: part(this.#grads, ...down),
        db: part(this.#grads, ...up),
        ranks: tableOf(ranks, at.layer),
        scale: tableOf(scale, at.layer),
        firstColumn,
        linears: linears.length,
        rank,
        group,
        module: at.layer * GROUP_ORDER.length + GROUP_ORDER.indexOf(group),
        magnitudes,
        vectors: hasVectors
          ? {
              d: vector(this.#params, at.lambdaD!, linears.length * MOST_RANK),
              b: vector(this.#params, at.lambdaB!, columns),
              dd: vector(this.#grads, at.lambdaD!, linears.length * MOST_RANK),
              db: vector(this.#grads, at.lambdaB!, columns),
              projection: this.#projection!,
            }
          : null,
      });
    }
  }

  /** One optimizer step of the adapters whose row of `table` f32[L, 11] says so (kernels.ts, adamw_step). */
  step(table: Float32Array): void {
    this.device.write(this.#table, table);
    const stepped = [...this.#adapters.keys()].filter((slot) => table[slot * ADAMW_TABLE_WIDTH] !== 0);
    this.#settle(stepped);
    for (const slot of stepped) this.#changed(slot);
    const [params, grads, m, v] = [this.#params, this.#grads, this.#m, this.#v];
    adamwStep(this.device, { params, grads, m, v, copy: this.#copy, factors: this.#factors, table: this.#table });
  }

  /**
   * For each of these adapters, the sums of squares of its gradients, a number for each tensor in the order of the layers. Added up in
   * that order over all stages they give the norm, the same whatever the company and the cut into stages.
   */
  async gradSquares(adapters: readonly number[]): Promise<readonly Float32Array[]> {
    this.#settle(adapters);
    const { size, tensors } = this.layout;
    const count = tensors.length;
    const rowOf = (of: Tensor, adapter: number, width: number): Tensor => ({
      ...of,
      ptr: of.ptr + adapter * width * 4,
      shape: [1, width],
    });
    for (const adapter of adapters)
      gradNorm(this.device, {
        grads: rowOf(this.#grads, adapter, size),
        tensors: this.#tensors,
        squares: rowOf(this.#squares, adapter, count),
      });
    const all = new Float32Array((await this.device.read(this.#squares)).buffer);
    return adapters.map((adapter) => all.slice(adapter * count, (adapter + 1) * count));
  }

  /**
   * An adapter's whole state as it lies on the device: f32 blocks of `layout.size`, as they are now; resolves when they may be changed.
   */
  async snapshot(adapter: number, what: readonly Block[]): Promise<{ readonly values: Promise<Float32Array<ArrayBuffer>[]> }> {
    const { bytes } = await this.device.snapshot(what.map((block) => this.#row(adapter, block)));
    return { values: bytes.then((all) => all.map(({ buffer }) => new Float32Array(buffer))) };
  }

  /** The same of one block, at once. */
  async read(adapter: number, what: Block): Promise<Float32Array<ArrayBuffer>> {
    if (what === "grads") this.#settle([adapter]);
    return new Float32Array((await this.device.read(this.#row(adapter, what))).buffer);
  }

  write(adapter: number, what: BlockName, values: Float32Array): void {
    this.device.write(this.#row(adapter, what), values);
    if (what === "params") this.#changed(adapter);
    if (what === "params" && this.#copy) this.device.write(this.#copyRow(this.#copy, adapter), toBf16(values));
  }

  #copyRow(copy: Tensor, slot: number): Tensor {
    return { ...copy, ptr: copy.ptr + slot * this.layout.size * 2, shape: [this.layout.size] };
  }

  #row(adapter: number, what: Block): Tensor {
    const whole = { params: this.#params, grads: this.#grads, m: this.#m, v: this.#v }[what];
    return { ptr: whole.ptr + adapter * this.layout.size * 4, dtype: "f32", shape: [this.layout.size] };
  }

  /** Where a factor of an adapter's linear lies in its block. */
  place(adapter: number, layer: number, linear: Linear, factor: Factor): FactorPlace {
    const rank = rankAt(this.#adapters[adapter]!, layer, linear);
    return factorPlace(this.spec, this.layout, rank, layer, linear, factor);
  }

  [Symbol.dispose](): void {
    this.#arena[Symbol.dispose]();
  }
}

/**
 * A group where a DoRA adapter has no target is computed for it as for any other adapter: as it is where no such group has low-rank products
 * at all.
 */
const isDecomposed = (adapter: PoolAdapter | null | undefined, group: Group): boolean =>
  adapter != null &&
  hasMagnitudes(adapter.method) &&
  (GROUPS[group] as readonly Linear[]).some((linear) => adapter.targets.includes(linear));
