// One allocation, carved in order: what lives as long as the run. Nothing is freed alone; the arena goes as a whole.

import { bytesOf, type DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { alignUp, sizeOf } from "../base/shape.ts";
import type { Device, Tensor } from "./device.ts";

/** Kernels load 16 bytes at a time and tensor descriptors want 128; one rule for all. */
const ALIGN = 256;

/** Bytes that an arena needs for tensors of these sizes. */
export const arenaBytes = (sizes: Iterable<number>): number => {
  let total = 0;
  for (const bytes of sizes) total += alignUp(bytes, ALIGN);
  return total;
};

/** Tensors one after the other from an address on, each at a multiple of the alignment of an arena. */
export function carve(base: number): (dtype: DType, ...shape: readonly number[]) => Tensor {
  let used = 0;
  return (dtype, ...shape) => {
    const ptr = base + used;
    used += alignUp(sizeOf(shape) * bytesOf(dtype), ALIGN);
    return { ptr, dtype, shape };
  };
}

export class Arena implements Disposable {
  readonly #device: Device;
  readonly #base: number;
  readonly #bytes: number;
  #used = 0;
  #open = true;

  /** Takes `bytes` at once, of the device's memory or its machine's; `why` names them in an error. */
  constructor(
    device: Device,
    bytes: number,
    readonly why: string,
    place: "device" | "host" = "device",
  ) {
    this.#device = device;
    this.#bytes = alignUp(Math.max(bytes, ALIGN), ALIGN);
    this.#base = place === "host" ? device.allocateHost(this.#bytes, why) : device.allocate(this.#bytes, why);
  }

  get used(): number {
    return this.#used;
  }

  /** The next tensor; asking for more than was planned is our bug. */
  tensor(dtype: DType, ...shape: readonly number[]): Tensor {
    const bytes = alignUp(sizeOf(shape) * bytesOf(dtype), ALIGN);
    invariant(
      this.#used + bytes <= this.#bytes,
      `${this.why}: ${bytes} bytes more than the ${this.#bytes} planned, ${this.#used} in use`,
    );
    const ptr = this.#base + this.#used;
    this.#used += bytes;
    return { ptr, dtype, shape };
  }

  [Symbol.dispose](): void {
    if (this.#open) this.#device.release(this.#base);
    this.#open = false;
  }
}

/** The first `rows` rows of a tensor, which has as many; more are another tensor's, and our bug. */
export function firstRows(t: Tensor, rows: number): Tensor {
  const has = t.shape[0]!;
  invariant(rows >= 0 && rows <= has, `the first ${rows} rows of a tensor that has ${has}`);
  return t.shape[0] === rows ? t : { ...t, shape: t.shape.with(0, rows) };
}

/** `rows` rows of a tensor from row `row`. */
export const rowsFrom = (t: Tensor, row: number, rows: number): Tensor => ({
  ...t,
  ptr: t.ptr + row * sizeOf(t.shape.slice(1)) * bytesOf(t.dtype),
  shape: [rows, ...t.shape.slice(1)],
});

/** `count` columns of a matrix from column `column`: its rows are strided. */
export const columnsFrom = (t: Tensor, column: number, count: number): Tensor => ({
  ptr: t.ptr + column * bytesOf(t.dtype),
  dtype: t.dtype,
  shape: [t.shape[0]!, count],
  stride: t.stride ?? t.shape[1]!,
});

/** `count` elements of a tensor from element `from`, as a vector. */
export const elementsFrom = ({ ptr, dtype }: Tensor, from: number, count: number): Tensor => ({
  ptr: ptr + from * bytesOf(dtype),
  dtype,
  shape: [count],
});
