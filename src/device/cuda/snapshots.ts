// Tensors read during training: copied to pinned host memory in the order of the main stream, in milliseconds, and from
// there at leisure, in pieces between which the host launches what comes next. What is larger than the pinned memory goes
// through it in several parts, and only the last of them is copied on at leisure.

import { EVENT_NO_TIMING } from "../../../ffi/cuda.ts";
import { native } from "../../../ffi/factors.ts";
import { addressOf } from "../../../ffi/memory.ts";
import { bytesOf } from "../../base/dtype.ts";
import { sizeOf, sum } from "../../base/shape.ts";
import type { Snapshot, Tensor } from "../device.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import { until } from "./streams.ts";

/** Copied at a time by the host: a few milliseconds, most of which new pages take. */
const PIECE = 16 << 20;
/** Copied without a pause after it: a few microseconds. */
const SMALL = 64 << 10;
/** Pinned at least: releasing it for more waits for all work. */
const LEAST_PINNED = 256 << 10;
/** Pinned at most: a GB of it takes a second, in which nothing is launched. */
const MOST_PINNED = 256 << 20;

const lengthOf = ({ shape, dtype }: Tensor): number => sizeOf(shape) * bytesOf(dtype);

/** Bytes of a tensor from address `from` on, and the place for them. */
type Part = { readonly from: number; readonly into: Uint8Array };

export class Snapshots implements Disposable {
  readonly #out = new OutParam();
  readonly #copied: number;
  #pinned = { ptr: 0, bytes: 0 };
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
    /** Bytes. */
    private readonly mostPinned = MOST_PINNED,
  ) {
    check(driver, "cuEventCreate", driver.cuEventCreate(this.#out.ptr, EVENT_NO_TIMING));
    this.#copied = this.#out.number;
  }

  /** One at a time, since the pinned memory is one's: resolves when the copies are enqueued. */
  take(from: readonly Tensor[]): Promise<Snapshot> {
    const taken = this.#last.catch(() => undefined).then(() => this.#take(from));
    this.#last = taken.then(({ bytes }) => bytes);
    this.#last.catch(() => undefined); // the caller has the error
    return taken;
  }

  async #take(from: readonly Tensor[]): Promise<Snapshot> {
    const all = from.map((tensor) => new Uint8Array(new ArrayBuffer(lengthOf(tensor))));
    this.#reserve(Math.min(this.mostPinned, sum(from.map(lengthOf))));
    const rounds = roundsOf(from, all, this.mostPinned);
    for (const round of rounds.slice(0, -1)) {
      this.#enqueue(round);
      await this.#collect(round);
    }
    const last = rounds.at(-1) ?? [];
    this.#enqueue(last);
    const bytes = this.#collect(last).then(() => all);
    bytes.catch(() => undefined); // it may fail before anybody waits for it
    return { bytes };
  }

  #enqueue(parts: readonly Part[]): void {
    const { driver, stream } = this;
    let to = this.#pinned.ptr;
    for (const { from, into } of parts) {
      check(driver, "a copy from the GPU", driver.cuMemcpyDtoHAsync_v2(to, from, into.length, stream));
      to += into.length;
    }
    check(driver, "cuEventRecord", driver.cuEventRecord(this.#copied, stream));
  }

  async #collect(parts: readonly Part[]): Promise<void> {
    const { driver } = this;
    const { c, threads } = native();
    check(driver, "a copy from the GPU", await until(() => (this.#closed ? 0 : driver.cuEventQuery(this.#copied))));
    let at = this.#pinned.ptr;
    for (const { into } of parts) {
      for (let done = 0; done < into.length && !this.#closed; done += PIECE) {
        c.factor_copy(threads, at + done, addressOf(into) + done, Math.min(PIECE, into.length - done));
        if (into.length > SMALL) await new Promise((resolve) => setImmediate(resolve));
      }
      at += into.length;
    }
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#pinned.bytes) return;
    this.#release();
    const taken = Math.max(bytes, Math.min(LEAST_PINNED, this.mostPinned));
    check(this.driver, "cuMemHostAlloc", this.driver.cuMemHostAlloc(this.#out.ptr, taken, 0));
    this.#pinned = { ptr: this.#out.number, bytes: taken };
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

/** Readings of small tensors, any number of them under way at once: each has pinned memory of its own. */
export class Peeks implements Disposable {
  readonly #free: Snapshots[] = [];
  readonly #busy = new Set<Snapshots>();

  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
  ) {}

  /** Resolves when the copies are enqueued. */
  async take(from: readonly Tensor[]): Promise<Snapshot> {
    const reader = this.#free.pop() ?? new Snapshots(this.driver, this.stream);
    this.#busy.add(reader);
    const { bytes } = await reader.take(from);
    const done = (): void => {
      this.#busy.delete(reader);
      this.#free.push(reader);
    };
    bytes.then(done, done);
    return { bytes };
  }

  [Symbol.dispose](): void {
    for (const reader of [...this.#free, ...this.#busy]) reader[Symbol.dispose]();
  }
}

/** Cuts tensors into parts of which each round fits into the pinned memory. */
function roundsOf(from: readonly Tensor[], all: readonly Uint8Array[], most: number): Part[][] {
  const rounds: Part[][] = [[]];
  let room = most;
  for (const [i, { ptr }] of from.entries())
    for (let at = 0; at < all[i]!.length; ) {
      if (room === 0) {
        rounds.push([]);
        room = most;
      }
      const bytes = Math.min(room, all[i]!.length - at);
      rounds.at(-1)!.push({ from: ptr + at, into: all[i]!.subarray(at, at + bytes) });
      room -= bytes;
      at += bytes;
    }
  return rounds;
}
