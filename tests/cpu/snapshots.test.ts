// Reading from a GPU through little pinned memory, with a driver that copies when it is asked whether it is done.

import { expect, test } from "bun:test";
import { result } from "../../ffi/cuda.ts";
import { addressOf, fixedBytes, hostView } from "../../ffi/memory.ts";
import { Rng } from "../../src/base/rng.ts";
import type { Driver } from "../../src/device/cuda/driver.ts";
import { Snapshots } from "../../src/device/cuda/snapshots.ts";

/** Copies enqueued are carried out by the third question after their event. */
function lateDriver() {
  const kept: Uint8Array[] = [];
  let pending: (() => void)[] = [];
  let [asked, pinned] = [0, 0];
  const set = (out: unknown, value: number) => new DataView(hostView(out as number, 8)).setBigUint64(0, BigInt(value), true);
  const driver = {
    cuEventCreate: (out: unknown) => {
      set(out, 77);
      return result.SUCCESS;
    },
    cuEventDestroy_v2: () => result.SUCCESS,
    cuEventRecord: () => {
      asked = 0;
      return result.SUCCESS;
    },
    cuEventQuery: () => {
      if (++asked < 3) return result.NOT_READY;
      for (const copy of pending) copy();
      pending = [];
      return result.SUCCESS;
    },
    cuMemHostAlloc: (out: unknown, bytes: number) => {
      const memory = fixedBytes(bytes);
      kept.push(memory);
      pinned = Math.max(pinned, bytes);
      set(out, addressOf(memory));
      return result.SUCCESS;
    },
    cuMemFreeHost: () => result.SUCCESS,
    cuMemcpyDtoHAsync_v2: (to: number, from: number, bytes: number) => {
      pending.push(() => new Uint8Array(hostView(to, bytes)).set(new Uint8Array(hostView(from, bytes))));
      return result.SUCCESS;
    },
  };
  return { driver: driver as unknown as Driver, pinned: () => pinned };
}

test.each([1 << 20, 4096, 1000])("tensors arrive whole, with %i bytes pinned at most", async (most) => {
  const { driver, pinned } = lateDriver();
  using snapshots = new Snapshots(driver, 1, most);
  const random = new Rng(most);
  for (const sizes of [[1], [0, 5, 0], [999, 1, 1000], [4096, 4096, 1], [70_001, 3, 12_345], []]) {
    const contents = sizes.map((size) => {
      const bytes = fixedBytes(size);
      for (let i = 0; i < size; i++) bytes[i] = random.below(256);
      return bytes;
    });
    const tensors = sizes.map((size, i) => ({ ptr: addressOf(contents[i]!), dtype: "u8" as const, shape: [size] }));
    // The second waits for the first, which has the same memory.
    const taken = [tensors, tensors.toReversed()].map((of) => snapshots.take(of));
    for (const [i, snapshot] of taken.entries()) {
      const found = await (await snapshot).bytes;
      const all = i === 0 ? found : found.toReversed();
      expect(all.map((bytes) => bytes.length)).toEqual(sizes);
      for (const [k, bytes] of all.entries()) expect(Buffer.compare(bytes, contents[k]!.subarray(0, sizes[k]))).toBe(0);
    }
  }
  expect(pinned()).toBeLessThanOrEqual(most);
});
