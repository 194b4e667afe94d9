// A CUDA driver for tests of order: streams whose work is done late, piece by piece, in a random order that only events hold
// together, as on GPUs. Memory is the host's. Handles of memory and events can be opened by another driver of the same world.

import { hostView } from "../../ffi/memory.ts";
import { Rng } from "../../src/base/rng.ts";
import { bringAside, sendAside } from "../../src/device/cuda/aside-copies.ts";
import type { Driver } from "../../src/device/cuda/driver.ts";
import { openSharing, type SharingDriver } from "../../src/device/cuda/sharing.ts";
import { sideStreams } from "../../src/device/cuda/streams.ts";
import type { Sharing, Tensor } from "../../src/device/device.ts";
import { NullDevice } from "../../src/device/null.ts";
import { createShared, hostBytes, type SharedMemory } from "../../src/device/shared.ts";

const [OK, NOT_READY, INVALID] = [0, 600, 400];

/** Pieces of work for which a stream may be slower than all others, on average. */
const SLOW = 40;

type Event = { recorded: number; done: number };
/** A piece of work; false while it has to wait. */
type Work = () => boolean;

export class World {
  readonly #streams = new Map<number, Work[]>();
  readonly #events = new Map<number, Event>();
  readonly #blocks = new Map<number, SharedMemory>();
  readonly #rng: Rng;
  #next = 1000;
  #slow = -1;

  constructor(seed: number) {
    this.#rng = new Rng(seed);
  }

  /** Handles that were made and not destroyed. */
  get open() {
    return { streams: this.#streams.size, events: this.#events.size };
  }

  stream(): number {
    this.#streams.set(++this.#next, []);
    return this.#next;
  }

  enqueue(stream: number, work: Work): void {
    this.#streams.get(stream)!.push(work);
  }

  /** Does some of what could be done, here and there. */
  async(pieces: number): void {
    for (let i = 0; i < pieces; i++) {
      if (this.#rng.below(SLOW) === 0) this.#slow = this.#rng.below(this.#streams.size); // this one does nothing for a while
      const busy = [...this.#streams.values()].filter((queue, at) => queue.length > 0 && at !== this.#slow);
      const queue = busy[this.#rng.below(Math.max(1, busy.length))];
      if (queue?.[0]?.()) queue.shift();
    }
  }

  /** Does all that is enqueued. */
  finish(): void {
    for (let i = 0; [...this.#streams.values()].some((queue) => queue.length > 0); i++) {
      this.async(50);
      if (i > 1e5) throw new Error("streams that wait for ever");
    }
  }

  allocate(bytes: number): number {
    const memory = createShared(bytes);
    this.#blocks.set(memory.address, memory);
    return memory.address;
  }

  blockOf(address: number): number {
    for (const [base, { bytes }] of this.#blocks) if (address >= base && address < base + bytes) return base;
    throw new Error("an address that nobody has allocated");
  }

  release(address: number): void {
    this.#blocks.get(address)?.[Symbol.dispose]();
    this.#blocks.delete(address);
  }

  [Symbol.dispose](): void {
    for (const address of [...this.#blocks.keys()]) this.release(address);
  }

  /** What our code calls of the driver. */
  driver(uuid: number): Driver & SharingDriver {
    const put = (out: unknown, value: number) => {
      new BigUint64Array(hostView(out as number, 8))[0] = BigInt(value);
      return OK;
    };
    const handle = (out: unknown, value: number) => {
      new DataView((out as Uint8Array).buffer).setBigUint64(0, BigInt(value), true);
      return OK;
    };
    const drain = (stream: number) => {
      for (let i = 0; this.#streams.get(stream)!.length > 0; i++) {
        this.async(1);
        if (i > 1e6) throw new Error("a stream that waits for ever");
      }
      return OK;
    };
    const copy = (to: number, from: number, bytes: number, stream: number) => {
      let at = 0;
      this.enqueue(stream, () => {
        const size = Math.min(bytes - at, Math.ceil(bytes / 3)); // in pieces, so that others come in between
        hostBytes(to + at, size).set(hostBytes(from + at, size));
        at += size;
        return at === bytes;
      });
      return OK;
    };
    const driver = {
      cuGetErrorName: () => INVALID,
      cuDeviceGetCount: (out: unknown) => put(out, 1),
      cuDeviceGet: (out: unknown) => put(out, 0),
      cuDeviceGetUuid_v2: (out: unknown) => handle(out, uuid),
      cuStreamCreate: (out: unknown) => put(out, this.stream()),
      cuStreamDestroy_v2: (stream: number) => (this.#streams.delete(stream) ? OK : INVALID),
      cuStreamSynchronize: drain,
      cuEventCreate: (out: unknown) => {
        this.#events.set(++this.#next, { recorded: 0, done: 0 });
        return put(out, this.#next);
      },
      cuEventDestroy_v2: (event: number) => (this.#events.delete(event) ? OK : OK), // an opened one is the same
      cuEventRecord: (id: number, stream: number) => {
        const event = this.#events.get(id)!;
        const turn = ++event.recorded;
        this.enqueue(stream, () => {
          event.done = Math.max(event.done, turn);
          return true;
        });
        return OK;
      },
      cuStreamWaitEvent: (stream: number, id: number) => {
        const event = this.#events.get(id)!;
        const turn = event.recorded;
        this.enqueue(stream, () => event.done >= turn);
        return OK;
      },
      cuEventQuery: (id: number) => {
        this.async(1 + this.#rng.below(4));
        const event = this.#events.get(id)!;
        return event.done >= event.recorded ? OK : NOT_READY;
      },
      cuMemcpyDtoDAsync_v2: copy,
      cuMemcpyDtoHAsync_v2: copy,
      cuMemcpyHtoDAsync_v2: copy,
      cuIpcGetMemHandle: handle,
      cuIpcOpenMemHandle_v2: (out: unknown, ...words: unknown[]) => put(out, Number(words[5])),
      cuIpcCloseMemHandle: () => OK,
      cuIpcGetEventHandle: handle,
      cuIpcOpenEventHandle: (out: unknown, ...words: unknown[]) => put(out, Number(words[5])),
    };
    return driver as unknown as Driver & SharingDriver;
  }
}

/** A device that shares its memory as a GPU does; `kernel` enqueues work on its main stream. */
export class FakeGpu extends NullDevice {
  override readonly sharing: Sharing;
  readonly #main: number;
  readonly #sides: ReturnType<typeof sideStreams>;
  readonly #asides: ReturnType<typeof sideStreams>;
  readonly #driver: Driver;

  constructor(
    private readonly world: World,
    uuid: number,
  ) {
    super("bf16");
    const driver = world.driver(uuid);
    this.#driver = driver;
    this.#main = world.stream();
    this.#sides = sideStreams(driver, this.#main);
    this.#asides = sideStreams(driver, this.#main);
    const memory = {
      allocate: (bytes: number) => world.allocate(bytes),
      release: (ptr: number) => world.release(ptr),
      blockOf: (ptr: number) => world.blockOf(ptr),
    };
    this.sharing = openSharing(driver, driver, 0, this.#main, this.#sides, memory);
  }

  /** A tensor of bytes in its memory, somewhere within a block. */
  tensor(bytes: number): (size: number) => Tensor {
    const ptr = this.world.allocate(bytes + 1000) + 512;
    return (size) => ({ ptr, dtype: "u8", shape: [size] });
  }

  override sendAside(to: number, from: Tensor): () => void {
    return sendAside(this.#driver, this.#asides.send, to, from);
  }

  override bringAside(to: Tensor, from: number): () => void {
    return bringAside(this.#driver, this.#asides.receive, to, from);
  }

  kernel(work: () => void): void {
    this.world.enqueue(this.#main, () => {
      work();
      return true;
    });
  }
}
