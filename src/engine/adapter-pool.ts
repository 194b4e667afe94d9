// The adapters of a run on one device: parameters, gradients and moments, stacked as the kernels read them. There are as
// many slots as adapters train at once; one that leaves makes its slot free for another.
//
// Knows indices, ranks and scales; names, data and steps belong to others. Where things are is pool-memory.ts and
// methods/layout.ts; what a method adds to a linear is methods/NAME.ts.

import { invariant } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { Arena } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { GROUPS, type Group, groupShape, groupsOfModel, type Linear } from "../families/linears.ts";
import { toBf16 } from "../files/convert.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import {
  type AdapterCapacity,
  type AdapterLayout,
  type BlockName,
  type FactorPlace,
  factorPlace,
  factorTable,
  type LayerRange,
} from "../methods/layout.ts";
import { rankAt, scaleAt, trainedAt } from "../methods/placement.ts";
import { type Factor, frozenIn, type PeftMethod } from "../methods/registry.ts";
import { ADAMW_TABLE_WIDTH, adamwStep, gradNorm } from "../ops/adamw.ts";
import type { Extent, MethodSite, Presence } from "./methods/computation.ts";
import { COMPUTATIONS } from "./methods/registry.ts";
import { poolBytes, slotRow, takePool } from "./pool-memory.ts";
import { placeTable } from "./table.ts";
import type { TargetGroup } from "./target-group.ts";

export type { Factor } from "../methods/registry.ts";
/** What there is of each adapter. */
export type Block = BlockName | "grads";

const [FRESH, STALE, BEGINS] = [0, 1, 2];
/** The column of a step's table with the learning rate of all tensors but B. */
const RATE_BUT_OF_B = 1;

export class AdapterPool implements Disposable {
  readonly layout: AdapterLayout;
  readonly #memory: ReturnType<typeof takePool>;
  readonly #sites: ReadonlyMap<string, TargetGroup>;
  readonly #arena: Arena;
  /** Of methods with a refresh: by slot, whether what follows from the adapter's tensors is out of date. */
  readonly #stale: ReadonlyMap<PeftMethod, Int32Array>;
  readonly #layers: LayerRange;
  /** The adapter in each slot; null for none. */
  readonly #adapters: (PoolAdapter | null)[];

  constructor(
    readonly device: Device,
    readonly spec: ModelSpec,
    layers: LayerRange,
    slots: number,
    capacity: AdapterCapacity,
  ) {
    const need = { spec, layers, slots, capacity, compute: device.compute };
    this.#layers = layers;
    this.#adapters = new Array<PoolAdapter | null>(slots).fill(null);
    this.#arena = new Arena(device, poolBytes(need), "adapters");
    this.#memory = takePool((dtype, ...shape) => this.#arena.tensor(dtype, ...shape), need);
    const { layout, blocks, copy, optimizer, methods, sites } = this.#memory;
    this.layout = layout;
    this.#sites = new Map(sites.map((site) => [`${site.layer}.${site.group}`, site]));
    this.#stale = new Map([...methods].flatMap(([method, { stale }]) => (stale ? [[method, new Int32Array(slots)]] : [])));
    const places = layout.tensors.flatMap(({ offset, rows, columns }) => [offset, rows, columns]);
    device.write(optimizer.tensors, Int32Array.from(places));
    device.write(optimizer.factors, factorTable(layout));
    for (const tensor of [...Object.values(blocks), ...(copy ? [copy] : [])]) device.zero(tensor);
    for (let slot = 0; slot < slots; slot++) this.#beginDerived(slot);
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

  /** Gives a slot to an adapter, in the state before anything is written there: all zero. */
  admit(slot: number, adapter: PoolAdapter): void {
    invariant(adapter.rank <= this.layout.rank, `rank ${adapter.rank} in a pool for rank ${this.layout.rank}`);
    const { blocks, copy } = this.#memory;
    this.#adapters[slot] = adapter;
    for (const slots of this.#stale.values()) slots[slot] = FRESH;
    for (const block of Object.values(blocks)) this.device.zero(slotRow(block, slot));
    if (copy) this.device.zero(slotRow(copy, slot));
    this.#writeTables();
    this.#beginDerived(slot);
  }

  /** Makes what follows from tensors and weight what it is before any refresh. */
  #beginDerived(slot: number): void {
    for (const { methods } of this.#sites.values())
      for (const [method, { derived }] of Object.entries(methods))
        for (const [name, value] of Object.entries(COMPUTATIONS[method as PeftMethod].derived ?? {})) {
          const row = slotRow(derived[name]!, slot);
          this.device.write(row, new Float32Array(sizeOf(row.shape)).fill(value));
        }
  }

  /**
   * To be called for a new adapter: whether it needs a refresh before it is read, as some of its values follow from the
   * weight.
   */
  begin(slot: number): boolean {
    const method = this.#adapters[slot]?.method ?? "lora";
    if (!COMPUTATIONS[method].beginsByRefresh) return false;
    this.#stale.get(method)![slot] = BEGINS;
    return true;
  }

  /** Computes what follows from the parameters that have changed since the last refresh; to be called before each pass. */
  refresh(weightOf: (layer: number, group: Group) => MethodSite["weight"]): void {
    for (const method of this.#stale.keys()) {
      const stale = this.takeStale(method);
      const sites = stale ? this.#sitesOf(method).map((of) => ({ ...of, weight: weightOf(of.site.layer, of.site.group) })) : [];
      if (stale) COMPUTATIONS[method].refresh!(this.device, sites, stale);
    }
  }

  /**
   * i32[slots], the slots of a method that a refresh must compute; from here on they count as computed. Null where there is
   * none.
   */
  takeStale(method: PeftMethod): Tensor | null {
    const [slots, table] = [this.#stale.get(method), this.#memory.methods.get(method)?.stale];
    if (!slots || !table || slots.every((is) => is === FRESH)) return null;
    this.device.write(table, slots);
    slots.fill(FRESH);
    return table;
  }

  #sitesOf(method: PeftMethod): Omit<MethodSite, "weight">[] {
    return [...this.#sites.values()].flatMap((site) => {
      const own = site.methods[method];
      return own ? [{ site, own }] : [];
    });
  }

  /** To be called when an adapter's parameters have changed. */
  #changed(slot: number): void {
    const slots = this.#stale.get(this.#adapters[slot]?.method ?? "lora");
    if (slots) slots[slot] = STALE;
  }

  /** Gradients of factors that follow from other tensors become those of these; what is frozen loses its own. */
  #settle(slots: Iterable<number>): void {
    const settled = [...slots].map((slot) => [slot, this.#adapters[slot]] as const);
    for (const [slot, adapter] of settled) {
      if (adapter?.trainedRank !== undefined) this.#freezeRanks(slot, adapter);
      for (const factor of frozenIn(adapter?.method)) this.#freezeFactor(slot, factor);
    }
    for (const [method, { settling }] of this.#memory.methods) {
      const which = new Int32Array(this.#adapters.length);
      for (const [slot, adapter] of settled) which[slot] = Number(adapter?.method === method);
      if (!settling || !which.includes(1)) continue;
      this.device.write(settling, which);
      COMPUTATIONS[method].settle!(this.device, this.#sitesOf(method), settling);
    }
  }

  /** Of methods that compute rows themselves: how many of these adapters have such rows in each group. */
  presence(adapters: Iterable<number>): Presence {
    const slots = [...new Set(adapters)];
    const extent = (method: PeftMethod, group: Group): Extent => {
      const are = slots.map((slot) => isTargetOf(method, this.#adapters[slot], group));
      return are.every((is) => is) ? "all" : are.some((is) => is) ? "some" : "none";
    };
    const own = [...this.#memory.methods.keys()].filter((method) => COMPUTATIONS[method].rows);
    return Object.fromEntries(
      own.map((method) => [
        method,
        Object.fromEntries(groupsOfModel(this.spec).map((group) => [group, extent(method, group)])),
      ]),
    );
  }

  /** The slot's row of a block, from an element on. */
  #gradients(slot: number, offset: number): number {
    return this.#memory.blocks.grads.ptr + (slot * this.layout.size + offset) * 4;
  }

  #freezeFactor(slot: number, factor: Factor): void {
    for (const { tensors } of this.layout.sites) {
      const place = tensors[factor];
      if (place)
        this.device.zero({ ptr: this.#gradients(slot, place.offset), dtype: "f32", shape: [place.rows * place.columns] });
    }
  }

  /** Zeroes the gradients of the frozen half; an adapter of several ranks freezes half of each. */
  #freezeRanks(slot: number, adapter: PoolAdapter): void {
    const { rank: padded } = this.layout;
    const zeroColumns = (b: number, rows: number, trained: number) =>
      this.device.zero({
        ...{ ptr: this.#gradients(slot, b + trained), dtype: "f32", shape: [rows, padded - trained], stride: padded },
      });
    for (const { layer, group, tensors } of this.layout.sites) {
      const [a, b] = [tensors.A!.offset, tensors.B!.offset];
      const { in: width, firstColumn } = groupShape(this.spec, group, layer);
      const linears = GROUPS[group];
      const trained = linears.map((linear) => trainedAt(adapter, layer, linear));
      for (const [g, first] of trained.entries())
        this.device.zero({
          ...{ ptr: this.#gradients(slot, a + (g * padded + first) * width), dtype: "f32", shape: [(padded - first) * width] },
        });
      if (trained.every((first) => first === trained[0])) zeroColumns(b, firstColumn.at(-1)!, trained[0]!);
      else
        for (const [g, first] of trained.entries())
          zeroColumns(b + firstColumn[g]! * padded, firstColumn[g + 1]! - firstColumn[g]!, first);
    }
  }

  #writeTables(): void {
    const adapters = this.#adapters;
    for (const [method, { own, present }] of this.#memory.methods) {
      const { table } = COMPUTATIONS[method];
      const row = (adapter: PoolAdapter | null): readonly number[] =>
        adapter?.method === method ? table!.row(this.spec, adapter) : Array(table!.width).fill(0);
      if (own) this.device.write(own, Int32Array.from(adapters.flatMap(row)));
      for (const [group, of] of present)
        this.device.write(
          of,
          Int32Array.from(adapters, (adapter) => Number(isTargetOf(method, adapter, group))),
        );
    }
    for (const [group, { ranks, scale }] of this.#memory.groups) {
      this.device.write(ranks, placeTable(new Int32Array(sizeOf(ranks.shape)), this.#layers, group, adapters, rankAt));
      this.device.write(scale, placeTable(new Float32Array(sizeOf(scale.shape)), this.#layers, group, adapters, scaleAt));
    }
  }

  /** One optimizer step of the adapters whose row of `table` f32[slots, 11] says so (ops/adamw.ts, adamwStep). */
  step(table: Float32Array): void {
    const { blocks, copy, optimizer } = this.#memory;
    const stepped = [...this.#adapters.keys()].filter((slot) => table[slot * ADAMW_TABLE_WIDTH] !== 0);
    const rates = Float32Array.from(table);
    // Without a rate weight decay leaves frozen tensors as they are, too.
    for (const slot of stepped)
      if (frozenIn(this.#adapters[slot]?.method).length > 0) rates[slot * ADAMW_TABLE_WIDTH + RATE_BUT_OF_B] = 0;
    this.device.write(optimizer.table, rates);
    this.#settle(stepped);
    for (const slot of stepped) this.#changed(slot);
    adamwStep(this.device, { ...blocks, copy, factors: optimizer.factors, table: optimizer.table });
  }

  /**
   * For each of these adapters, the sums of squares of its gradients, a number for each tensor in the order of the layers.
   * Added up in that order over all stages they give the norm, the same whatever else is trained and however the layers are
   * divided.
   */
  async gradSquares(adapters: readonly number[]): Promise<readonly Float32Array[]> {
    this.#settle(adapters);
    const { blocks, optimizer } = this.#memory;
    const { tensors, squares } = optimizer;
    const rowOf = (of: Tensor, slot: number): Tensor => {
      const { shape, ...row } = slotRow(of, slot);
      return { ...row, shape: [1, ...shape] };
    };
    for (const slot of adapters)
      gradNorm(this.device, { grads: rowOf(blocks.grads, slot), tensors, squares: rowOf(squares, slot) });
    const all = new Float32Array((await this.device.read(squares)).buffer);
    const count = this.layout.tensors.length;
    return adapters.map((slot) => all.slice(slot * count, (slot + 1) * count));
  }

  /** An adapter's whole state on the device now: f32 blocks of `layout.size`; resolves when they may be changed. */
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
    const { copy } = this.#memory;
    this.device.write(this.#row(adapter, what), values);
    if (what === "params") this.#changed(adapter);
    if (what === "params" && copy) this.device.write(slotRow(copy, adapter), toBf16(values));
  }

  #row(adapter: number, what: Block): Tensor {
    return slotRow(this.#memory.blocks[what], adapter);
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
 * A group where an adapter has no target is computed for it as for a LoRA: the same as in a run where the group has no
 * low-rank products.
 */
const isTargetOf = (method: PeftMethod, adapter: PoolAdapter | null | undefined, group: Group): boolean =>
  adapter?.method === method && GROUPS[group].some((linear) => adapter.targets.includes(linear));
