// What a device is: memory, copies and launches of kernels. Knows bytes and addresses; not adapters, layers or recipes.
//
// Three devices implement it: `cuda` (the product), `cpu` (the readable reference) and `null` (runs nothing, records
// everything). A kernel brings its implementations along (kernel.ts): no device lists kernels.

import type { DType } from "../base/dtype.ts";
import type { WeightFormat } from "../base/precision.ts";
import type { Kernel } from "./kernel.ts";

/** A place in device memory. Rows are contiguous; `stride` is given where the first dimension is strided. */
export type Tensor = {
  readonly ptr: number; // device addresses are below 2^48, so a number is exact
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Elements from one index of the first dimension to the next, where that is not the product of the others. */
  readonly stride?: number;
};

/** One kernel's time on the device, from the begin of the timeline. */
export type Span = { readonly kernel: string; readonly startMs: number; readonly ms: number };

/** What a GPU shares with GPUs of other processes. Handles are plain bytes, to be given to the other process. */
export interface Sharing {
  /** Which GPU it is. */
  readonly uuid: string;
  /** Those whose memory it can copy to. */
  readonly reaches: readonly string[];
  /** NCCL's version, as 22803 is 2.28.3; null where there is none, with the reason. */
  readonly nccl: { readonly version: number | null; readonly missing: string | null };
  /** Takes memory for `slots` messages of `slotBytes` that a neighbour will fill. */
  openMailbox(slots: number, slotBytes: number): Mailbox;
  /** The same for messages by NCCL; `first` is one of the two ends. */
  openExchange(first: boolean, slots: number, slotBytes: number): Exchange;
}

/** Slots that messages come to by NCCL. Nothing here waits but `connect` and what returns a promise. */
export interface Exchange extends Disposable {
  /** Of the first end: what both connect by. */
  readonly ids: Uint8Array | null;
  /** Waits, with the whole process, until the neighbour has called it too. */
  connect(ids: Uint8Array): void;
  /** Enqueues the sending, after all earlier work; resolves when the tensor may be overwritten. */
  put(from: Tensor): Promise<void>;
  /** Enqueues the arrival of the neighbour's next message in a slot. */
  expect(slot: number, bytes: number): void;
  /** Enqueues the copy out of a slot, before all later work. */
  take(slot: number, into: Tensor): void;
  /** Ends what is under way, also what would never end. */
  stop(): void;
}

/**
 * Slots in this GPU's memory that a neighbour fills, and the neighbour's, which we fill. Nothing here waits but what returns a
 * promise.
 */
export interface Mailbox extends Disposable {
  /** Of our slots: the memory, and for each our event that tells when it is empty. */
  readonly handles: {
    readonly memory: Uint8Array;
    readonly emptied: readonly Uint8Array[];
    /** Events that tell when a tensor that is offered may be filled. */
    readonly ready: readonly Uint8Array[];
  };
  /** Opens the neighbour's slots; gives, for each, our event that tells when it is full. */
  connect(theirs: Mailbox["handles"], slotBytes: number): readonly Uint8Array[];
  /** Takes the events that tell when our slots are full. */
  complete(filled: readonly Uint8Array[]): void;
  /**
   * Lets the neighbour fill a tensor once all earlier work is done, so that nothing need be copied out of a slot; null where
   * too many are offered already. What is returned is for the neighbour's `put`.
   */
  offer(into: Tensor): Offered | null;
  /**
   * Enqueues the copy to a slot of the neighbour's, or to what it has offered, after all earlier work; resolves when the
   * tensor may be overwritten.
   */
  put(slot: number, from: Tensor, to: Offered | null): Promise<void>;
  /**
   * Enqueues the copy out of one of our slots, before all later work; where the neighbour has filled `into` itself, only waits.
   */
  take(slot: number, into: Tensor, filled: boolean): void;
  /** What was offered has been answered: filled, or by a slot. */
  settle(offered: Offered): void;
}

/** A tensor in a process's memory: the block that it lies in, where there, and the event to wait for, by its number. */
export type Offered = { readonly block: Uint8Array; readonly from: number; readonly ready: number };

/** Memory of the host, which copies between it and the device are fast with. */
export interface HostMemory extends Disposable {
  readonly address: number;
  readonly size: number;
  /** A window on `bytes` bytes from `from` on; not to be used after the memory is disposed of. */
  view(from: number, bytes: number): Uint8Array<ArrayBuffer>;
}

/** The bytes of tensors on their way to the host. */
export type Snapshot = { readonly bytes: Promise<readonly Uint8Array<ArrayBuffer>[]> };

/** Bytes that an allocation takes whole multiples of: a page of a CPU, and what the CUDA driver maps at a time. */
export const GRANULARITY = { cpu: 2 ** 12, cuda: 2 ** 21, null: 2 ** 12 } as const;

export interface Device extends Disposable {
  readonly kind: "cpu" | "cuda" | "null";
  /** Whether it computes while the host continues; else in the thread that calls it. */
  readonly isConcurrent: boolean;
  /** For people: "NVIDIA H100 80GB HBM3", "AMD EPYC, 2 threads". */
  readonly name: string;
  /** Element type of activations and frozen weights. Adapters, gradients and moments are always f32. */
  readonly compute: "f32" | "bf16";
  /** An adapter's rows begin at a multiple of this, so that a tile of rows belongs to one adapter or to none. */
  readonly rowTile: number;
  /** Whether it has products over few rows with an adapter each (ops/fewrows.ts) that are faster than those of whole tiles. */
  readonly hasFewRows: boolean;
  /** How it can hold the base's linear weights. */
  readonly formats: readonly WeightFormat[];
  /** Threads that share the work, each with scratch of its own; 0 where it is not so. */
  readonly threads: number;
  memory(): { readonly total: number; readonly free: number };
  /** Bytes that were allocated here and not released, scratch included. */
  readonly allocated: number;
  /** Takes memory; `why` is for the error when there is not enough. Contents are undefined. */
  allocate(bytes: number, why: string): number;
  /**
   * Takes memory of the machine that kernels reach in place, over a GPU's bus; `fill` writes to it, `release` gives it back.
   * `allocated` counts it only where the device's memory is the machine's. Contents are undefined.
   */
  allocateHost(bytes: number, why: string): number;
  release(ptr: number): void;
  /** Makes sure of this much memory for what a kernel needs only while it runs (scratch.ts says how much). */
  reserveScratch(bytes: number): void;
  /** Copies host data to the start of a tensor; the data may be reused on return. */
  write(to: Tensor, data: ArrayBufferView): void;
  /**
   * Fills a tensor with what `read` puts into the buffers that it is given, one after the other from byte `from` on: for large
   * files.
   */
  fill(to: Tensor, read: (into: Uint8Array, from: number) => void): void;
  /** Waits for all earlier work, then copies the tensor's bytes to the host. */
  read(from: Tensor): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Reads tensors as all earlier work leaves them, concurrently with later work: resolves when that may be enqueued. One such
   * reading is under way at a time; the next waits for its bytes.
   */
  snapshot(from: readonly Tensor[]): Promise<Snapshot>;
  /** The same of small tensors, any number of such readings at once. */
  peek(from: readonly Tensor[]): Promise<Snapshot>;
  zero(tensor: Tensor): void;
  /** Device to device; same bytes. */
  copy(to: Tensor, from: Tensor): void;
  /** Makes copies between the device and this host memory fast, until disposed of; the memory is anyone's. */
  pin(address: number, bytes: number): Disposable;
  /**
   * Copies a tensor to host memory, concurrently with later work; resolves when the bytes are there and the tensor may be
   * overwritten.
   */
  copyOut(to: number, from: Tensor): Promise<void>;
  /** Fills a tensor from host memory, before all later work; resolves when the host memory may be overwritten. */
  copyIn(to: Tensor, from: number): Promise<void>;
  /** Takes host memory for copies alone; `why` is for the error when there is not enough. */
  pinHost(bytes: number, why: string): Promise<HostMemory>;
  /** Bytes of host memory that were taken here and not disposed of. */
  readonly pinnedBytes: number;
  /**
   * Copies a tensor to the start of host memory as all earlier work leaves it, concurrently with later work and with what links
   * send; resolves when the bytes are there and the tensor may be overwritten.
   */
  offload(to: HostMemory, from: Tensor): Promise<void>;
  /**
   * The way back, concurrently with earlier and later work, none of which may use the tensor; resolves when the bytes are there
   * for what is enqueued from then on.
   */
  fetch(to: Tensor, from: HostMemory): Promise<void>;
  /**
   * Copies a tensor to host memory as all earlier work leaves it, concurrently with later work. What is enqueued after a call
   * of the function returned comes after the copy.
   */
  sendAside(to: number, from: Tensor): () => void;
  /** The way back, after all earlier work: fills a tensor from host memory, likewise. */
  bringAside(to: Tensor, from: number): () => void;
  /** Null on a device whose memory no other process can reach. */
  readonly sharing: Sharing | null;
  /** Enqueues a kernel. Launches, writes and copies happen in the order of the calls. Shapes have been checked by `ops`. */
  launch<A extends object>(kernel: Kernel<A>, args: A): void;
  /**
   * Enqueues what `work` launches after all earlier work and concurrently with later work. What is enqueued after a call of the
   * function returned comes after it. One such work is under way at a time.
   */
  aside(work: () => void): () => void;
  /**
   * Enqueues what `work` launches. For a key that must be the same launches of the same arguments each time, as a device may
   * record them and repeat the record without calling `work`; what they read is read anew. `work` neither reads nor writes
   * memory of the host. `overlaps` (true where it is left out): no launch writes parameters, tables or weights that another
   * one reads, so that a kernel may read these before those ahead of it have ended.
   */
  replay(key: string, work: () => void, overlaps?: boolean): void;
  /** Waits until all that was enqueued is done; throws what went wrong since the last wait. */
  idle(): Promise<void>;
  /** From now on the time of every launch is taken; it costs a little of it. */
  startTimeline(): void;
  /** Waits, then gives the launches since `startTimeline` in their order, and stops taking times. */
  endTimeline(): Promise<readonly Span[]>;
}
