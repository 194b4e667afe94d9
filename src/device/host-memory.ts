// Host memory that a device has taken: its address, windows on it, and its release.

import { hostView } from "../../ffi/memory.ts";
import { invariant, RunError } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";
import type { HostMemory } from "./device.ts";

export const noHostMemory = (bytes: number, why: string): RunError =>
  new RunError("host.memory", `the host has no ${formatBytes(bytes)} of memory for ${why}`, "lower run.slots");

/** What one device has taken of the host. */
export class HostAllocations {
  readonly #taken = new Map<number, HostMemory>();

  get bytes(): number {
    let total = 0;
    for (const { size } of this.#taken.values()) total += size;
    return total;
  }

  /** Counts memory at `address`, which `release` gives back once. */
  add(address: number, size: number, release: () => void): HostMemory {
    const memory: HostMemory = {
      address,
      size,
      view: (from, bytes) => {
        invariant(this.#taken.has(address) && from + bytes <= size, `${bytes} bytes from ${from} on of ${size} of the host`);
        return new Uint8Array(hostView(address + from, bytes));
      },
      [Symbol.dispose]: () => {
        if (this.#taken.delete(address)) release();
      },
    };
    this.#taken.set(address, memory);
    return memory;
  }

  /** Gives all back. */
  clear(): void {
    for (const memory of [...this.#taken.values()]) memory[Symbol.dispose]();
  }
}
