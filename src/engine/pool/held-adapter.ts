// An adapter with its memory: one block on the device, or the same bytes in host memory while it waits for its turn.
//
// Nothing in a block is an address, so it may come back to any other place: only its row of the tables says where it is.

import { bytesOf, type DType } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import { sizeOf } from "../../base/shape.ts";
import { carve } from "../../device/arena.ts";
import type { Device, HostMemory, Tensor } from "../../device/device.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { type AdapterLayout, layoutAdapter } from "../../methods/layout.ts";
import type { BlockName, Values } from "../../methods/optimizers.ts";
import type { PeftMethod } from "../../methods/registry.ts";
import { type AdapterRanks, ranksOf } from "../adapted/low-rows.ts";
import type { BlockCache } from "./block-cache.ts";
import {
  type AdapterMemory,
  allocationBytes,
  moveRow,
  type PoolNeed,
  type SlotRow,
  slotRow,
  takeAdapter,
} from "./pool-memory.ts";

export type HostBlocks = BlockCache<HostMemory, Promise<HostMemory>>;
export type DeviceBlock = { readonly ptr: number; readonly size: number };

/** Copied at a time by the host, between which other work comes through. */
const PIECE = 4 << 20;

export const methodOf = ({ method = "lora" }: PoolAdapter): PeftMethod => method;

/** Bytes of a block as what they are. */
export const valuesOf = (bytes: Uint8Array<ArrayBuffer>, dtype: DType): Values =>
  dtype === "u8" ? bytes : new Float32Array(bytes.buffer);

export class HeldAdapter implements Disposable {
  readonly layout: AdapterLayout;
  readonly ranks: AdapterRanks;
  /** Its row of the tables, while it is on the device. */
  readonly row: SlotRow;
  /** Null while it is in host memory. */
  memory: AdapterMemory | null;
  /** Resolves when the way that it is on is over. */
  moving: Promise<void> | null = null;
  #block: DeviceBlock | null;
  #host: HostMemory | null = null;
  /** Resolves when nothing reads from `#host`. */
  #reading: Promise<unknown> = Promise.resolve();
  /** Where `row` says that it is. */
  #at: number;

  /** Takes a block of the device, whose contents are undefined. Throws what `Device.allocate` throws. */
  constructor(
    private readonly pool: Omit<PoolNeed, "slots"> & { readonly device: Device },
    readonly adapter: PoolAdapter,
    private readonly trains: boolean,
    private readonly blocks: BlockCache<DeviceBlock>,
    private readonly hostBlocks: HostBlocks,
  ) {
    const { device, spec, layers } = pool;
    this.layout = layoutAdapter(spec, layers, adapter);
    this.ranks = ranksOf(adapter, this.layout, layers);
    this.#block = blocks.take(allocationBytes(this.layout, adapter, device, trains));
    this.#at = this.#block.ptr;
    this.memory = this.#memoryAt(this.#at);
    this.row = slotRow(pool, this.memory, adapter);
  }

  #memoryAt(address: number): AdapterMemory {
    return takeAdapter(carve(address), this.layout, this.adapter, this.pool.device.compute, this.trains);
  }

  /** To host memory; resolves when it is there. Throws what `Device.pinHost` throws. */
  offload(): Promise<void> {
    const block = this.#block;
    invariant(block && !this.moving, "an adapter that is on its way cannot leave the device");
    const taken = this.hostBlocks.take(block.size);
    this.memory = null;
    return this.#move(async () => {
      const host = await taken;
      await this.pool.device.offload(host, bytesOfBlock(block));
      [this.#block, this.#host] = [null, host];
      this.blocks.keep(block);
    });
  }

  /** Back to the device; resolves when it is there. Throws what `Device.allocate` throws. */
  fetch(): Promise<void> {
    const host = this.#host;
    invariant(host && !this.moving, "an adapter that is on its way cannot come to the device");
    const block = this.blocks.take(host.size);
    return this.#move(async () => {
      await Promise.all([this.pool.device.fetch(bytesOfBlock(block), host), this.#reading]);
      [this.#block, this.#host] = [block, null];
      this.hostBlocks.keep(host);
      moveRow(this.row, block.ptr - this.#at);
      this.#at = block.ptr;
      this.memory = this.#memoryAt(block.ptr);
    });
  }

  #move(way: () => Promise<void>): Promise<void> {
    const moving = way().finally(() => {
      this.moving = null;
    });
    this.moving = moving.catch(() => undefined); // the caller of the way has its error
    return moving;
  }

  /** Resolves when it is on no way and nothing reads it. */
  async settled(): Promise<void> {
    await this.moving;
    await this.#reading;
  }

  /** Arrays of an adapter in host memory. */
  readHost(what: readonly BlockName[]): Promise<Values[]> {
    const values = this.#readHost(this.#reading, what);
    this.#reading = values.catch(() => undefined);
    return values;
  }

  async #readHost(before: Promise<unknown>, what: readonly BlockName[]): Promise<Values[]> {
    await before;
    const host = this.#host;
    invariant(host, "an adapter that is not in host memory");
    const { blocks } = this.#memoryAt(0);
    const all: Values[] = [];
    for (const name of what) {
      const place = blocks[name];
      invariant(place, `an adapter without ${name}`);
      const size = sizeOf(place.shape) * bytesOf(place.dtype);
      const into = new Uint8Array(new ArrayBuffer(size));
      for (let done = 0; done < size; done += PIECE) {
        into.set(host.view(place.ptr + done, Math.min(PIECE, size - done)), done);
        if (done > 0) await new Promise((resolve) => setImmediate(resolve));
      }
      all.push(valuesOf(into, place.dtype));
    }
    return all;
  }

  /** Gives back its memory; nothing of it may be under way. */
  [Symbol.dispose](): void {
    if (this.#block) this.blocks.drop(this.#block);
    if (this.#host) this.hostBlocks.keep(this.#host);
    [this.#block, this.#host, this.memory] = [null, null, null];
  }
}

const bytesOfBlock = ({ ptr, size }: DeviceBlock): Tensor => ({ ptr, dtype: "u8", shape: [size] });
