// The adapters of a run on one device: parameters and moments, each adapter's in memory of its own, gradients of those in a
// step, and the tables by which kernels find them. There are as many slots as adapters train at once; those that wait for their
// turn may be in host memory.
//
// Knows indices, ranks and scales; names, data and steps belong to others. Where things are is pool-memory.ts and
// methods/layout.ts; what a method adds to a linear is methods/NAME.ts.

import { bytesOf } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import type { LayerRange } from "../../base/layers.ts";
import { sizeOf } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { Arena, rowsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { GROUPS, type Group, groupsOfModel, type Linear } from "../../families/linears.ts";
import { toBf16 } from "../../files/convert.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import type { AdapterLayout, FactorPlace, LowKey } from "../../methods/layout.ts";
import { factorPlace, factorTable, tensorTable } from "../../methods/layout.ts";
import type { BlockName, Values } from "../../methods/optimizers.ts";
import { rankAt } from "../../methods/placement.ts";
import { type Factor, frozenIn, PEFT_METHODS, type PeftMethod } from "../../methods/registry.ts";
import type { TableKind, TableTensor } from "../../methods/tables.ts";
import { ADAMW_TABLE_WIDTH, adamwStep, gradNorm } from "../../ops/adamw.ts";
import { adamw8Step, codeTable } from "../../ops/adamw8.ts";
import { type LowRows, lowRowsOf } from "../adapted/low-rows.ts";
import { siteKey, type TableSite, type TargetGroup } from "../adapted/target-group.ts";
import type { Presence, WeightedSite } from "../methods/computation.ts";
import { COMPUTATIONS } from "../methods/registry.ts";
import { BlockCache } from "./block-cache.ts";
import { FactorWriter } from "./factor-writer.ts";
import { clearFrozen } from "./frozen.ts";
import { GradientBuffers } from "./gradient-buffers.ts";
import { type DeviceBlock, HeldAdapter, type HostBlocks, methodOf, valuesOf } from "./held-adapter.ts";
import { type AdapterMemory, emptyRow, setGradients, tableBytes, takeTables, tokensOf } from "./pool-memory.ts";
import { expandingOf, presenceOf } from "./presence.ts";
import { exchangeShared, gatherShared, sharedRows, spreadShared } from "./shared-rows.ts";

/** What there is of each adapter. */
export type Block = BlockName | "grads";

const [FRESH, STALE, BEGINS] = [0, 1, 2];
/** The column of a step's table with the learning rate of all tensors but B. */
const RATE_BUT_OF_B = 1;

export class AdapterPool implements Disposable {
  readonly #tables: ReturnType<typeof takeTables>;
  /** By layer. */
  readonly #sites: ReadonlyMap<number, readonly TargetGroup[]>;
  readonly #arena: Arena;
  readonly #gradients: GradientBuffers;
  /** Of methods with a refresh: by slot, whether what follows from the adapter's tensors is out of date. */
  readonly #stale: ReadonlyMap<PeftMethod, Int32Array>;
  readonly #factors: FactorWriter;
  /** The adapter in each slot; null for none. */
  readonly #held: (HeldAdapter | null)[];
  readonly #blocks: BlockCache<DeviceBlock>;
  readonly #hostBlocks: HostBlocks;

  constructor(
    readonly device: Device,
    readonly spec: ModelSpec,
    readonly layers: LayerRange,
    readonly slots: number,
    /** Elements of each buffer for the gradients of an adapter; null where no adapter is trained. */
    private readonly gradients: readonly number[] | null,
    /** Bytes that adapters take here and in host memory, at most. */
    room: { readonly blockBytes: number; readonly hostBytes: number } = { blockBytes: 0, hostBytes: 0 },
  ) {
    this.#held = new Array<HeldAdapter | null>(slots).fill(null);
    this.#factors = new FactorWriter(device);
    const take = (size: number) => ({ ptr: device.allocate(size, "an adapter"), size });
    this.#blocks = new BlockCache(room.blockBytes, take, ({ ptr }) => device.release(ptr));
    const takeHost = (size: number) => device.pinHost(size, "an adapter");
    this.#hostBlocks = new BlockCache(room.hostBytes, takeHost, (block) => block[Symbol.dispose]());
    this.#arena = new Arena(device, tableBytes(this), "tables of the adapters");
    this.#tables = takeTables((dtype, ...shape) => this.#arena.tensor(dtype, ...shape), this);
    this.#sites = Map.groupBy(this.#tables.sites, ({ layer }) => layer);
    const refreshed = PEFT_METHODS.filter((method) => COMPUTATIONS[method].refresh);
    this.#stale = new Map(refreshed.map((method) => [method, new Int32Array(slots)]));
    device.zero(this.#tables.noDropout);
    for (let slot = 0; slot < slots; slot++) this.#writeTables(slot);
    this.#gradients = new GradientBuffers(device, gradients ?? [], (slot, at) => {
      setGradients(this.#in(slot).row, at);
      this.#writeRow(slot);
    });
  }

  /** The tables of the embedding or of the head. */
  tableSite(kind: TableKind): TableSite {
    return this.#tables.tableSites[kind];
  }

  /** The tables of a group in a layer. */
  site(layer: number, group: Group): TargetGroup {
    return this.#sites.get(layer)!.find((site) => site.group === group)!;
  }

  /** The adapter in a slot; null where there is none. */
  adapter(slot: number): PoolAdapter | null {
    return this.#held[slot]?.adapter ?? null;
  }

  layout(slot: number): AdapterLayout {
    return this.#in(slot).layout;
  }

  #in(slot: number): HeldAdapter {
    const held = this.#held[slot];
    invariant(held, `no adapter in slot ${slot}`);
    return held;
  }

  #memory(slot: number): AdapterMemory {
    const { memory } = this.#in(slot);
    invariant(memory, `the adapter in slot ${slot} is in host memory`);
    return memory;
  }

  /**
   * Gives a slot to an adapter, in the state before anything is written there: all zero. Takes its memory, and releases that
   * of the adapter that was there. Throws what `Device.allocate` throws; then the slot is empty.
   */
  admit(slot: number, adapter: PoolAdapter): void {
    this.release(slot);
    const { device } = this;
    const held = new HeldAdapter(this, adapter, this.gradients !== null, this.#blocks, this.#hostBlocks);
    const { blocks, copy, scratch, derived, factors, codes, tensors, tokens, layout } = held.memory!;
    for (const tensor of [...Object.values(blocks), copy, scratch?.values, scratch?.grads]) if (tensor) device.zero(tensor);
    for (const { name, tensor } of derived)
      device.write(tensor, new Float32Array(sizeOf(tensor.shape)).fill(COMPUTATIONS[methodOf(adapter)].derived![name]!));
    device.write(factors, factorTable(layout));
    const ids = tokensOf(layout.tables.head);
    if (ids.length > 0) device.write(tokens, Int32Array.from(ids));
    if (codes) device.write(codes, codeTable());
    device.write(tensors, tensorTable(layout));
    this.#held[slot] = held;
    this.#writeTables(slot);
  }

  /** Releases the memory of the adapter in a slot, if there is one; nothing else is moved. */
  release(slot: number): void {
    const held = this.#held[slot];
    if (!held) return;
    this.#gradients.release(slot);
    this.#held[slot] = null;
    for (const slots of this.#stale.values()) slots[slot] = FRESH;
    this.#writeTables(slot);
    held[Symbol.dispose]();
  }

  /**
   * Moves all that an adapter has to host memory, concurrently with later work, none of which may be its own; resolves when it
   * is there.
   */
  async offload(slot: number): Promise<void> {
    const held = this.#in(slot);
    this.#gradients.release(slot);
    this.device.write(rowsFrom(this.#tables.rows, slot, 1), emptyRow(this));
    await held.offload();
  }

  /** The way back, which may lead to another place on the device: every number is what it was. */
  async fetch(slot: number): Promise<void> {
    await this.#in(slot).fetch();
    this.#writeRow(slot);
  }

  /** Resolves when an adapter is on no way between the device and the host, and may be released. */
  async settled(slot: number): Promise<void> {
    await this.#held[slot]?.settled();
  }

  /**
   * To be called for a new adapter: whether it needs a refresh before it is read, as some of its values follow from the
   * weight.
   */
  begin(slot: number): boolean {
    const method = this.adapter(slot)?.method ?? "lora";
    if (!COMPUTATIONS[method].beginsByRefresh) return false;
    this.#stale.get(method)![slot] = BEGINS;
    return true;
  }

  /** Computes what follows from the parameters that have changed since the last refresh; to be called before each pass. */
  refresh(weightOf: (layer: number, group: Group) => WeightedSite["weight"]): void {
    for (const [method, slots] of this.#stale) {
      const changed = this.#held.filter((of, slot) => slots[slot] !== FRESH && of?.memory);
      const stale = this.takeStale(method);
      if (!stale) continue;
      const targeted = new Set(changed.flatMap((of) => (of ? of.layout.sites : [])).map(siteKey));
      const sites = this.#tables.sites.filter((site) => targeted.has(siteKey(site)));
      const weighted = sites.map((site) => {
        const ranks = changed.flatMap((of) =>
          GROUPS[site.group].map((linear) => (of ? rankAt(of.adapter, site.layer, linear) : 0)),
        );
        return { site, weight: weightOf(site.layer, site.group), most: Math.max(...ranks) };
      });
      COMPUTATIONS[method].refresh!(this.device, weighted, stale);
    }
  }

  /**
   * i32[slots], the slots of a method that a refresh must compute; from here on they count as computed. Null where there is
   * none on the device.
   */
  takeStale(method: PeftMethod): Tensor | null {
    const [slots, stale] = [this.#stale.get(method), this.#tables.methods.get(method)?.stale];
    if (!slots || !stale) return null;
    const here = slots.map((is, slot) => (this.#held[slot]?.memory ? is : FRESH));
    if (here.every((is) => is === FRESH)) return null;
    this.device.write(stale, here);
    for (const [slot, is] of here.entries()) if (is !== FRESH) slots[slot] = FRESH;
    return stale;
  }

  /** To be called when an adapter's parameters have changed. */
  #changed(slot: number): void {
    const slots = this.#stale.get(this.adapter(slot)?.method ?? "lora");
    if (slots) slots[slot] = STALE;
  }

  /** The gradient of shared rows where embedding and head are on different stages, as bus/messages.ts says. */
  shareGradient(slot: number, what: "take" | "add" | "put", values?: Float32Array): Promise<Float32Array> {
    const grads = this.#gradients.take(slot, this.layout(slot).size);
    return exchangeShared(this.device, sharedRows(this.spec, this.#in(slot), grads), what, values);
  }

  /** Shared rows have one gradient, and what is frozen has none. */
  #settle(slot: number, grads: Tensor): void {
    gatherShared(this.device, sharedRows(this.spec, this.#in(slot), grads));
    clearFrozen(this.device, this.#in(slot), grads);
  }

  /** Makes room for the gradients of these adapters, from a mini-batch's first backward pass to its step. */
  beginSteps(adapters: Iterable<number>): void {
    for (const slot of adapters) this.#gradients.take(slot, this.layout(slot).size);
  }

  /** Lets go of the gradients of an adapter that makes no step with them. */
  dropGradients(slot: number): void {
    this.#gradients.drop(slot);
  }

  /** The gradients of an adapter in a step. */
  #gradientsOf(slot: number): Tensor {
    const grads = this.#gradients.take(slot, this.layout(slot).size);
    this.#settle(slot, grads);
    return grads;
  }

  /** Of methods that compute rows themselves: how many of these adapters have such rows at each target group. */
  presence(adapters: Iterable<number>): Presence {
    return presenceOf([...new Set(adapters)].map((slot) => this.#held[slot] ?? null));
  }

  /** A method's own table (engine/methods/computation.ts). */
  tableOf(method: PeftMethod): Tensor | null {
    return this.#tables.methods.get(method)?.own ?? null;
  }

  /** Of methods that store neither A nor B: i32[slots], 1 for those of these adapters that have it. Absent where none has. */
  expanding(adapters: Iterable<number>): ReadonlyMap<PeftMethod, Int32Array<ArrayBuffer>> {
    return expandingOf(adapters, this.#held);
  }

  /** The rows of s of a pass at each group that its adapters target. `tiles` i32[T] are their slots, -1 for none. */
  lowRows(tiles: Int32Array): ReadonlyMap<Group, LowRows> {
    const found = groupsOfModel(this.spec).map((group) => [group, this.lowRowsIn(group, tiles)] as const);
    return new Map(found.filter(([, { elements }]) => elements > 0));
  }

  /** The same at one group or table; without any adapter that targets it no elements. */
  lowRowsIn(key: LowKey, tiles: Int32Array): LowRows {
    return lowRowsOf(tiles, this.device.rowTile, (slot) => this.#in(slot).ranks.get(key));
  }

  /** Columns of an adapter's rows of s there; 0 where it has none. */
  lowWidth(slot: number, key: LowKey): number {
    return this.#in(slot).ranks.get(key)?.width ?? 0;
  }

  #writeRow(slot: number): void {
    const bytes = this.#held[slot]?.row.bytes ?? emptyRow(this);
    this.device.write(rowsFrom(this.#tables.rows, slot, 1), bytes);
  }

  #writeTables(slot: number): void {
    const { device } = this;
    const adapter = this.#held[slot]?.adapter;
    this.#writeRow(slot);
    for (const [method, { own }] of this.#tables.methods) {
      const { table } = COMPUTATIONS[method];
      if (!own || !table) continue;
      const isOf = adapter?.method === method;
      const row = isOf ? table.row(this.spec, adapter) : new Array<number>(table.width).fill(0);
      device.write(rowsFrom(own, slot, 1), Int32Array.from(row));
    }
  }

  /** One optimizer step of the adapters whose row of `table` f32[slots, 11] says so (ops/adamw.ts, adamwStep). */
  step(table: Float32Array): void {
    const { step } = this.#tables;
    const stepped = [...this.#held.keys()].filter((slot) => table[slot * ADAMW_TABLE_WIDTH] !== 0);
    const rates = Float32Array.from(table);
    // Without a rate weight decay leaves frozen tensors as they are, too.
    for (const slot of stepped)
      if (frozenIn(this.adapter(slot)?.method).length > 0) rates[slot * ADAMW_TABLE_WIDTH + RATE_BUT_OF_B] = 0;
    this.device.write(step, rates);
    for (const slot of stepped) {
      const { blocks, copy, factors, codes } = this.#memory(slot);
      const { params, m, v, mAbsmax, vAbsmax } = blocks;
      const grads = this.#gradientsOf(slot);
      spreadShared(this.device, sharedRows(this.spec, this.#in(slot), grads));
      this.#changed(slot);
      const row = { ...rowsFrom(step, slot, 1), shape: [ADAMW_TABLE_WIDTH] };
      const all = { params, grads, m: m!, v: v!, copy, factors, table: row };
      if (codes) adamw8Step(this.device, { ...all, mAbsmax: mAbsmax!, vAbsmax: vAbsmax!, codes });
      else adamwStep(this.device, all);
      this.#gradients.stepped(slot);
    }
  }

  /**
   * For each of these adapters, the sums of squares of its gradients, a number for each tensor in the order of the layers.
   * Added up in that order over all stages they give the norm, however the layers are divided.
   */
  async gradSquares(adapters: readonly number[]): Promise<readonly Float32Array[]> {
    return await (await this.enqueueSquares(adapters)).found;
  }

  /** The same, when it is enqueued. */
  async enqueueSquares(adapters: readonly number[]): Promise<{ readonly found: Promise<readonly Float32Array[]> }> {
    for (const slot of adapters) {
      const { tensors, squares } = this.#memory(slot);
      gradNorm(this.device, { grads: this.#gradientsOf(slot), tensors, squares });
    }
    const { bytes } = await this.device.peek(adapters.map((slot) => this.#memory(slot).squares));
    return { found: bytes.then((all) => all.map((of) => new Float32Array(of.buffer as ArrayBuffer))) };
  }

  /** An adapter's whole state now, wherever it is: arrays along its block; resolves when they may be changed. */
  async snapshot(slot: number, what: readonly Block[]): Promise<{ readonly values: Promise<Values[]> }> {
    const held = this.#in(slot);
    await held.moving;
    if (!held.memory) return { values: held.readHost(what.filter((name) => name !== "grads")) };
    const blocks = what.map((name) => this.#arrayOf(slot, name));
    const { bytes } = await this.device.snapshot(blocks);
    return { values: bytes.then((all) => all.map((of, i) => valuesOf(of, blocks[i]!.dtype))) };
  }

  /** The same of one that is f32, at once. */
  async read(slot: number, what: Block): Promise<Float32Array<ArrayBuffer>> {
    const of = what === "grads" ? this.#gradients.find(slot, this.layout(slot).size) : this.#blockOf(slot, what);
    if (what === "grads" && of) this.#settle(slot, of);
    invariant(!of || of.dtype === "f32", `${what} is ${of?.dtype}`);
    return of ? new Float32Array((await this.device.read(of)).buffer) : new Float32Array(this.layout(slot).size);
  }

  write(slot: number, what: Block, values: Values): void {
    const to = this.#arrayOf(slot, what);
    const { copy } = this.#memory(slot);
    invariant(values.byteLength === sizeOf(to.shape) * bytesOf(to.dtype), `${values.byteLength} bytes for ${what}`);
    this.device.write(to, values);
    if (what !== "params") return;
    this.#changed(slot);
    if (copy) this.device.write(copy, toBf16(values as Float32Array));
  }

  /** Replaces a factor: f32[rows, columns] of its place, as files have it. */
  writeFactor(slot: number, place: FactorPlace, values: Float32Array): void {
    this.#factors.write(this.#memory(slot), place, values);
    this.#changed(slot);
  }

  #arrayOf(slot: number, what: Block): Tensor {
    // As they are: an adapter that is set aside between two calls adds up further on as it would have.
    return what === "grads" ? this.#gradients.take(slot, this.layout(slot).size) : this.#blockOf(slot, what);
  }

  #blockOf(slot: number, what: BlockName): Tensor {
    const block = this.#memory(slot).blocks[what];
    invariant(block, `the adapter in slot ${slot} has no ${what}`);
    return block;
  }

  /** Where a factor of an adapter's linear lies in its block. */
  place(slot: number, layer: number, linear: Linear | TableKind, factor: Factor | TableTensor): FactorPlace {
    return factorPlace(this.spec, this.layout(slot), layer, linear, factor);
  }

  [Symbol.dispose](): void {
    for (const held of this.#held) held?.[Symbol.dispose]();
    this.#held.fill(null);
    this.#blocks[Symbol.dispose]();
    this.#hostBlocks[Symbol.dispose]();
    this.#gradients[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
  }
}
