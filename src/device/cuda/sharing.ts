// GPU memory and events that processes of one machine share (CUDA IPC): a neighbour's copies go from its memory into ours, on
// the GPUs' own copy engines, ordered by events; no processor touches a byte, and no host waits.
//
// Each event is recorded by the process that made it, and waited for by the other. A wait means the record that was made last
// before it: so the other process may only enqueue it after it was notified, over the link's channel, that the record is there.

import { type cudaSharing, EVENT_INTERPROCESS, EVENT_NO_TIMING, IPC_HANDLE_BYTES, IPC_PEER_ACCESS } from "../../../ffi/cuda.ts";
import { fixedBytes } from "../../../ffi/memory.ts";
import type { Functions } from "../../../ffi/open.ts";
import { bytesOf } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import { alignUp, range, sizeOf } from "../../base/shape.ts";
import type { Mailbox, Offered, Sharing, Tensor } from "../device.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import { NcclExchange, ncclHere } from "./nccl.ts";
import type { SideStream } from "./streams.ts";

export type SharingDriver = Functions<typeof cudaSharing>;
type Sides = { readonly send: SideStream; readonly receive: SideStream };
type Memory = {
  readonly allocate: (bytes: number, why: string) => number;
  readonly release: (ptr: number) => void;
  /** Where the block begins that an address lies in. */
  readonly blockOf: (ptr: number) => number;
};

/** Slots begin at a multiple of this: what copy engines like. */
const ALIGN = 512;
/** Whole pages of a GPU: smaller allocations share one, and would share it with the neighbour. */
const PAGE = 2 ** 21;

/** `device` is the driver's number of this GPU, `main` the stream of its kernels. */
export function openSharing(
  driver: Driver,
  ipc: SharingDriver,
  device: number,
  main: number,
  sides: Sides,
  memory: Memory,
): Sharing {
  const out = new OutParam();
  check(driver, "cuDeviceGetCount", driver.cuDeviceGetCount(out.ptr));
  const reaches = range(out.i32).flatMap((ordinal) => {
    check(driver, "cuDeviceGet", driver.cuDeviceGet(out.ptr, ordinal));
    const other = out.i32;
    if (other === device) return [];
    check(driver, "cuDeviceCanAccessPeer", ipc.cuDeviceCanAccessPeer(out.ptr, device, other));
    return out.i32 === 1 ? [uuidOf(driver, ipc, other)] : [];
  });
  return {
    uuid: uuidOf(driver, ipc, device),
    reaches,
    nccl: ncclHere(),
    openExchange: (first, slots, slotBytes) => new NcclExchange(driver, main, sides.receive, memory, first, slots, slotBytes),
    openMailbox: (slots, slotBytes) => new CudaMailbox(driver, ipc, sides, memory, slots, slotBytes),
  };
}

/** "GPU-" and 32 hexadecimal digits. */
function uuidOf(driver: Driver, ipc: SharingDriver, device: number): string {
  const bytes = fixedBytes(16);
  check(driver, "cuDeviceGetUuid", ipc.cuDeviceGetUuid_v2(bytes, device));
  return `GPU-${bytes.subarray(0, 16).toHex()}`;
}

export class CudaMailbox implements Mailbox {
  readonly handles: Mailbox["handles"];
  readonly #out = new OutParam();
  readonly #mine: { readonly ptr: number; readonly stride: number };
  readonly #emptied: readonly number[]; // of our slots, recorded here
  readonly #ready: readonly number[]; // of what we offer, recorded here
  readonly #unoffered: number[];
  readonly #exported = new Map<number, Uint8Array>(); // our blocks, by where they begin
  readonly #imported = new Map<string, number>(); // blocks of the neighbour's, by their handles
  #filled: readonly number[] = []; // of our slots, recorded by the neighbour
  #theirs: { readonly ptr: number; readonly stride: number } | null = null;
  #theirEmptied: readonly number[] = []; // recorded by the neighbour
  #theirReady: readonly number[] = []; // recorded by the neighbour
  #theirFilled: readonly number[] = []; // recorded here
  #closed = false;

  constructor(
    private readonly driver: Driver,
    private readonly ipc: SharingDriver,
    private readonly sides: Sides,
    private readonly memory: Memory,
    slots: number,
    slotBytes: number,
  ) {
    const stride = alignUp(slotBytes, ALIGN);
    const ptr = memory.allocate(alignUp(slots * stride, PAGE), "messages of a neighbour");
    try {
      this.#mine = { ptr, stride };
      this.#emptied = range(slots).map(() => this.#event());
      this.#ready = range(slots).map(() => this.#event());
      this.#unoffered = range(slots);
      const [emptied, ready] = [this.#emptied, this.#ready].map((events) => events.map((event) => this.#handleOf(event)));
      this.handles = { memory: this.#export(ptr), emptied: emptied!, ready: ready! };
    } catch (error) {
      memory.release(ptr);
      throw error;
    }
  }

  connect({ memory, emptied, ready }: Mailbox["handles"], slotBytes: number): readonly Uint8Array[] {
    this.#theirs = { ptr: this.#import(memory), stride: alignUp(slotBytes, ALIGN) };
    this.#theirEmptied = emptied.map((handle) => this.#open(handle));
    this.#theirReady = ready.map((handle) => this.#open(handle));
    this.#theirFilled = emptied.map(() => this.#event());
    return this.#theirFilled.map((event) => this.#handleOf(event));
  }

  complete(filled: readonly Uint8Array[]): void {
    invariant(filled.length === this.#emptied.length, `${filled.length} events for ${this.#emptied.length} slots`);
    this.#filled = filled.map((handle) => this.#open(handle));
  }

  offer(into: Tensor): Offered | null {
    const ready = this.#unoffered.shift();
    if (ready === undefined) return null;
    const base = this.memory.blockOf(into.ptr);
    const block = this.#exported.get(base) ?? this.#export(base);
    this.#exported.set(base, block);
    this.sides.receive.afterMain(); // its earlier contents may still be read
    this.sides.receive.record(this.#ready[ready]!);
    return { block, from: into.ptr - base, ready };
  }

  settle({ ready }: Offered): void {
    this.#unoffered.push(ready);
  }

  put(slot: number, from: Tensor, to: Offered | null): Promise<void> {
    const { send } = this.sides;
    const { ptr, stride } = this.#theirs!;
    send.afterMain();
    if (to) send.wait(this.#theirReady[to.ready]!);
    else send.wait(this.#theirEmptied[slot]!);
    this.#copy(to ? this.#import(to.block) + to.from : ptr + slot * stride, from.ptr, from, send.stream);
    send.record(this.#theirFilled[slot]!);
    return send.settled();
  }

  take(slot: number, into: Tensor, filled: boolean): void {
    const { receive } = this.sides;
    const { ptr, stride } = this.#mine;
    receive.wait(this.#filled[slot]!);
    if (!filled) {
      receive.afterMain(); // its earlier contents may still be read
      this.#copy(into.ptr, ptr + slot * stride, into, receive.stream);
      receive.record(this.#emptied[slot]!);
    }
    receive.beforeMain();
  }

  /**
   * Once connected, our memory and events stay until the device is closed: the neighbour may have copies under way that it
   * enqueued before it heard of the end.
   */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.sides.send.synchronise();
    this.sides.receive.synchronise();
    for (const event of [...this.#filled, ...this.#theirEmptied, ...this.#theirReady]) this.driver.cuEventDestroy_v2(event);
    for (const ptr of this.#imported.values()) this.ipc.cuIpcCloseMemHandle(ptr);
    if (this.#theirs) return;
    for (const event of [...this.#emptied, ...this.#ready]) this.driver.cuEventDestroy_v2(event);
    this.memory.release(this.#mine.ptr);
  }

  #export(block: number): Uint8Array {
    const handle = fixedBytes(IPC_HANDLE_BYTES);
    this.#check("cuIpcGetMemHandle", this.ipc.cuIpcGetMemHandle(handle, block));
    return handle.slice(0, IPC_HANDLE_BYTES);
  }

  /** A process can open another's block once. */
  #import(handle: Uint8Array): number {
    const name = handle.toHex();
    const known = this.#imported.get(name);
    if (known !== undefined) return known;
    const call = this.ipc.cuIpcOpenMemHandle_v2;
    this.#check("cuIpcOpenMemHandle", call(this.#out.ptr, IPC_PEER_ACCESS, 0, 0, 0, 0, ...wordsOf(handle)));
    this.#imported.set(name, this.#out.number);
    return this.#out.number;
  }

  #copy(to: number, from: number, { shape, dtype }: Tensor, stream: number): void {
    const bytes = sizeOf(shape) * bytesOf(dtype);
    if (bytes > 0) this.#check("a copy between stages", this.driver.cuMemcpyDtoDAsync_v2(to, from, bytes, stream));
  }

  #event(): number {
    const flags = EVENT_INTERPROCESS | EVENT_NO_TIMING;
    this.#check("cuEventCreate", this.driver.cuEventCreate(this.#out.ptr, flags));
    return this.#out.number;
  }

  #handleOf(event: number): Uint8Array {
    const handle = fixedBytes(IPC_HANDLE_BYTES);
    this.#check("cuIpcGetEventHandle", this.ipc.cuIpcGetEventHandle(handle, event));
    return handle.slice(0, IPC_HANDLE_BYTES);
  }

  #open(handle: Uint8Array): number {
    this.#check("cuIpcOpenEventHandle", this.ipc.cuIpcOpenEventHandle(this.#out.ptr, 0, 0, 0, 0, 0, ...wordsOf(handle)));
    return this.#out.number;
  }

  #check(call: string, status: number): void {
    check(this.driver, call, status);
  }
}

type Words = [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];

/** A handle as the words in which it is passed. */
function wordsOf(handle: Uint8Array): Words {
  invariant(handle.length === IPC_HANDLE_BYTES, `a handle of ${handle.length} bytes`);
  const view = new DataView(handle.buffer, handle.byteOffset, handle.length);
  return range(IPC_HANDLE_BYTES / 8).map((i) => view.getBigUint64(8 * i, true)) as Words;
}
