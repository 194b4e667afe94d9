// A device that computes as the cpu device does, but late, as a GPU: launches, writes and copies wait in a stream, of which
// some is done now and then while the host continues. What is read of it goes through the code that reads from GPUs.

import { hostView } from "../../ffi/memory.ts";
import { base } from "../../ffi/native.ts";
import { Rng } from "../../src/base/rng.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Driver } from "../../src/device/cuda/driver.ts";
import { Peeks, Snapshots } from "../../src/device/cuda/snapshots.ts";
import type { HostMemory, Tensor } from "../../src/device/device.ts";
import type { Kernel } from "../../src/device/kernel.ts";

const [OK, NOT_READY] = [0, 600];
/** Pieces of work that are done at a time, and turns of the host in which none is, at most. */
const [BURST, PAUSE] = [150, 4];

export class LateDevice extends CpuDevice {
  override readonly isConcurrent = true;
  readonly #rng: Rng;
  readonly #stream: (() => void)[] = [];
  readonly #driver = this.#driverOf();
  readonly #snapshots = new Snapshots(this.#driver, 0);
  readonly #peeks = new Peeks(this.#driver, 0);
  #isWorking = false;
  #isMoving = false;
  /** Most pieces that ever waited, and most readings under way. */
  late = 0;
  readings = 0;
  #readings = 0;

  constructor(seed: number) {
    super(1);
    this.#rng = new Rng(seed);
  }

  #enqueue(work: () => void): void {
    this.late = Math.max(this.late, this.#stream.push(work));
    if (this.#isMoving) return;
    this.#isMoving = true;
    void this.#move();
  }

  async #move(): Promise<void> {
    while (this.#stream.length > 0) {
      for (let pause = this.#rng.below(PAUSE); pause >= 0; pause--) await new Promise((resolve) => setImmediate(resolve));
      this.#work(1 + this.#rng.below(BURST));
    }
    this.#isMoving = false;
  }

  #work(most: number): void {
    this.#isWorking = true;
    for (let i = 0; i < most && this.#stream.length > 0; i++) this.#stream.shift()!();
    this.#isWorking = false;
  }

  /** A driver waits for all work where it releases memory; kernels take and release scratch as they run. */
  override release(ptr: number): void {
    if (!this.#isWorking) this.#work(Number.POSITIVE_INFINITY);
    super.release(ptr);
  }

  override launch<A extends object>(kernel: Kernel<A>, args: A): void {
    this.#enqueue(() => super.launch(kernel, args));
  }

  override write(to: Tensor, data: ArrayBufferView): void {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
    this.#enqueue(() => super.write(to, bytes));
  }

  override fill(to: Tensor, read: (into: Uint8Array, from: number) => void): void {
    this.#work(Number.POSITIVE_INFINITY);
    super.fill(to, read);
  }

  override zero(tensor: Tensor): void {
    this.#enqueue(() => super.zero(tensor));
  }

  override copy(to: Tensor, from: Tensor): void {
    this.#enqueue(() => super.copy(to, from));
  }

  override async idle(): Promise<void> {
    do await super.idle();
    while (this.#stream.length > 0);
  }

  override async read(from: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    await this.idle();
    return super.read(from);
  }

  override async snapshot(from: readonly Tensor[]) {
    const { bytes } = await this.#snapshots.take(from);
    return { bytes: bytes.then((all) => [...all]) };
  }

  override async peek(from: readonly Tensor[]) {
    this.readings = Math.max(this.readings, ++this.#readings);
    const { bytes } = await this.#peeks.take(from);
    return { bytes: bytes.then((all) => [...all]).finally(() => this.#readings--) };
  }

  override copyOut(to: number, from: Tensor): Promise<void> {
    return new Promise((resolve) => this.#enqueue(() => resolve(super.copyOut(to, from))));
  }

  override copyIn(to: Tensor, from: number): Promise<void> {
    return new Promise((resolve) => this.#enqueue(() => resolve(super.copyIn(to, from))));
  }

  override offload(to: HostMemory, from: Tensor): Promise<void> {
    return this.copyOut(to.address, from);
  }

  /** At once: nothing that is enqueued may use the tensor. */
  override fetch(to: Tensor, from: HostMemory): Promise<void> {
    return super.copyIn(to, from.address);
  }

  override [Symbol.dispose](): void {
    this.#work(Number.POSITIVE_INFINITY);
    this.#snapshots[Symbol.dispose]();
    this.#peeks[Symbol.dispose]();
    super[Symbol.dispose]();
  }

  /** What reading calls of a GPU's driver, with events of this stream. */
  #driverOf(): Driver {
    const events = new Map<number, { recorded: number; done: number }>();
    const put = (out: unknown, value: number): number => {
      new BigUint64Array(hostView(out as number, 8))[0] = BigInt(value);
      return OK;
    };
    const driver = {
      cuEventCreate: (out: unknown) => {
        events.set(events.size + 1, { recorded: 0, done: 0 });
        return put(out, events.size);
      },
      cuEventRecord: (id: number) => {
        const event = events.get(id)!;
        const turn = ++event.recorded;
        this.#enqueue(() => {
          event.done = turn;
        });
        return OK;
      },
      cuEventQuery: (id: number) => (events.get(id)!.done === events.get(id)!.recorded ? OK : NOT_READY),
      cuEventDestroy_v2: () => OK,
      cuMemHostAlloc: (out: unknown, bytes: number) => put(out, base.native_allocate(bytes)!),
      cuMemFreeHost: (ptr: number) => {
        this.#work(Number.POSITIVE_INFINITY);
        base.native_release(ptr);
        return OK;
      },
      cuMemcpyDtoHAsync_v2: (to: number, from: number, bytes: number) => {
        this.#enqueue(() => base.native_copy(to, from, bytes));
        return OK;
      },
    };
    return driver as unknown as Driver;
  }
}
