// Pinned host memory on the way to the GPU: while one buffer is copied, the next is filled, so that a file is read and sent at
// once.

import { EVENT_NO_TIMING } from "../../../ffi/cuda.ts";
import { hostView } from "../../../ffi/memory.ts";
import { check, type Driver, OutParam } from "./driver.ts";

const BYTES = 32 << 20;

type Buffer = { readonly ptr: number; readonly view: Uint8Array; readonly copied: number };

export class Staging implements Disposable {
  readonly #buffers: Buffer[] = [];
  #next = 0;

  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
  ) {
    const out = new OutParam();
    for (let i = 0; i < 2; i++) {
      check(driver, "cuMemHostAlloc", driver.cuMemHostAlloc(out.ptr, BYTES, 0));
      const ptr = out.number;
      check(driver, "cuEventCreate", driver.cuEventCreate(out.ptr, EVENT_NO_TIMING));
      this.#buffers.push({ ptr, view: new Uint8Array(hostView(ptr, BYTES)), copied: out.number });
    }
  }

  /** Copies `bytes` bytes to a device address; `read` puts those from `from` on into what it is given. */
  fill(to: number, bytes: number, read: (into: Uint8Array, from: number) => void): void {
    const { driver, stream } = this;
    for (let from = 0; from < bytes; from += BYTES) {
      const buffer = this.#buffers[this.#next]!;
      this.#next = 1 - this.#next;
      const size = Math.min(BYTES, bytes - from);
      check(driver, "cuEventSynchronize", driver.cuEventSynchronize(buffer.copied)); // an event never recorded is done
      read(buffer.view.subarray(0, size), from);
      check(driver, "a copy to the GPU", driver.cuMemcpyHtoDAsync_v2(to + from, buffer.ptr, size, stream));
      check(driver, "cuEventRecord", driver.cuEventRecord(buffer.copied, stream));
    }
  }

  [Symbol.dispose](): void {
    for (const { ptr, copied } of this.#buffers.splice(0)) {
      this.driver.cuEventDestroy_v2(copied);
      this.driver.cuMemFreeHost(ptr);
    }
  }
}
