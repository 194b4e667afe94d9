// Tensors read during training: copied to pinned host memory in the order of the main stream, in milliseconds, and from
// there at leisure, in pieces between which the host launches what comes next.

import { EVENT_NO_TIMING } from "../../../ffi/cuda.ts";
import { hostView } from "../../../ffi/memory.ts";
import { bytesOf } from "../../base/dtype.ts";
import { sizeOf, sum } from "../../base/shape.ts";
import type { Snapshot, Tensor } from "../device.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import { until } from "./streams.ts";

/** Copied at a time by the host: a millisecond or two. */
const PIECE = 4 << 20;

const lengthOf = ({ shape, dtype }: Tensor): number => sizeOf(shape) * bytesOf(dtype);

export class Snapshots implements Disposable {
  readonly #out = new OutParam();
  readonly #copied: number;
  #pinned = { ptr: 0, bytes: 0 };
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
  ) {
    check(driver, "cuEventCreate", driver.cuEventCreate(this.#out.ptr, EVENT_NO_TIMING));
    this.#copied = this.#out.number;
  }

  /** One at a time, since the pinned memory is one's: resolves when the copies are enqueued. */
  async take(from: readonly Tensor[]): Promise<Snapshot> {
    await this.#last.catch(() => undefined);
    const { driver, stream } = this;
    this.#reserve(sum(from.map(lengthOf)));
    let to = this.#pinned.ptr;
    for (const tensor of from) {
      check(driver, "a copy from the GPU", driver.cuMemcpyDtoHAsync_v2(to, tensor.ptr, lengthOf(tensor), stream));
      to += lengthOf(tensor);
    }
    check(driver, "cuEventRecord", driver.cuEventRecord(this.#copied, stream));
    const bytes = this.#collect(from);
    bytes.catch(() => undefined); // it may fail before anybody waits for it
    this.#last = bytes;
    return { bytes };
  }

  async #collect(from: readonly Tensor[]): Promise<Uint8Array<ArrayBuffer>[]> {
    const { driver } = this;
    check(driver, "a copy from the GPU", await until(() => (this.#closed ? 0 : driver.cuEventQuery(this.#copied))));
    const all: Uint8Array<ArrayBuffer>[] = [];
    let at = this.#pinned.ptr;
    for (const tensor of from) {
      const into = new Uint8Array(new ArrayBuffer(lengthOf(tensor)));
      for (let done = 0; done < into.length && !this.#closed; done += PIECE) {
        into.set(new Uint8Array(hostView(at + done, Math.min(PIECE, into.length - done))), done);
        await new Promise((resolve) => setImmediate(resolve));
      }
      at += into.length;
      all.push(into);
    }
    return all;
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#pinned.bytes) return;
    this.#release();
    check(this.driver, "cuMemHostAlloc", this.driver.cuMemHostAlloc(this.#out.ptr, bytes, 0));
    this.#pinned = { ptr: this.#out.number, bytes };
  }

  #release(): void {
    if (this.#pinned.ptr !== 0) this.driver.cuMemFreeHost(this.#pinned.ptr);
    this.#pinned = { ptr: 0, bytes: 0 };
  }

  /** What is being collected is not to be used. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    this.driver.cuEventDestroy_v2(this.#copied);
    this.#release();
  }
}
