// One compiled kernel on the device: its code, loaded, and its arguments, packed as its PTX entry needs them.
//
// The parameters of an entry are what the manifest says, in that order, then Triton's hidden pointers, which are null. They are
// written into one buffer at fixed offsets; the driver copies them at the launch, so the buffer is used again for the next.

import { L2_PROMOTION_128B } from "../../../ffi/cuda.ts";
import { addressOf, fixedBytes } from "../../../ffi/memory.ts";
import { bytesOf } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import { alignUp } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import { check, type Driver } from "./driver.ts";
import type { KernelEntry, Param } from "./manifest.ts";
import type { OverlappingLaunch } from "./overlap.ts";

/** A tensor, a number, or null for what the variant does not read. */
export type Argument = Tensor | number | null;
export type Grid = readonly [number, number?, number?];

/** Encodes tensor maps; only a driver for CUDA 12 has it. */
export type EncodeTensorMap = (
  out: number,
  elem: number,
  rank: number,
  address: number,
  sizes: ArrayBufferView,
  strides: ArrayBufferView,
  box: ArrayBufferView,
  steps: ArrayBufferView,
  interleave: number,
  swizzle: number,
  promotion: number,
  fill: number,
) => number;

const MAP_BYTES = 128;
const SIZE: Readonly<Record<Exclude<Param["type"], "desc">, number>> = { ptr: 8, i32: 4, i64: 8, f32: 4 };

export class Kernel {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #pointers: BigUint64Array<ArrayBuffer>;
  readonly #pointersAt: number;
  readonly #offsets: readonly number[]; // of each parameter's first part
  readonly #base: number;
  // What the encoder of tensor maps reads: up to five dimensions, innermost first.
  readonly #sizes = new BigUint64Array(fixedBytes(40).buffer, 0, 5);
  readonly #strides = new BigUint64Array(fixedBytes(40).buffer, 0, 5);
  readonly #box = new Uint32Array(fixedBytes(20).buffer, 0, 5);
  readonly #steps = new Uint32Array(fixedBytes(20).buffer, 0, 5).fill(1);

  /** Whether it waits by itself until the launches before it have ended (kernels/triton/overlap.py). */
  readonly #waits: boolean;
  #function = 0;

  /** `load` is called at the first launch and returns the function's handle. */
  constructor(
    readonly entry: KernelEntry,
    private readonly driver: Driver,
    private readonly load: () => number,
    private readonly encode: EncodeTensorMap | null,
  ) {
    const { parts, firsts, bytes } = layOut(entry);
    this.#bytes = fixedBytes(bytes + 64);
    this.#base = alignUp(addressOf(this.#bytes), 64);
    this.#view = new DataView(this.#bytes.buffer, this.#base - addressOf(this.#bytes));
    this.#offsets = firsts;
    this.#pointers = new BigUint64Array(fixedBytes(parts.length * 8).buffer);
    this.#pointers.set(parts.map((offset) => BigInt(this.#base + offset)));
    this.#pointersAt = addressOf(this.#pointers);
    this.#waits = entry.constants["OVERLAPS"] === 1;
  }

  /**
   * Enqueues the kernel; each parameter of the entry must be among `args` by its name. An empty grid computes nothing, as of an
   * adapter without a tensor on this stage; the driver would refuse it. `overlap`: how it is launched after another kernel that
   * still runs, if it waits for that by itself.
   */
  launch(stream: number, grid: Grid, args: Readonly<Record<string, Argument>>, overlap: OverlappingLaunch | null = null): void {
    const [x, y = 1, z = 1] = grid;
    if (x === 0 || y === 0 || z === 0) return;
    this.entry.params.forEach((param, i) => {
      const value = args[param.name];
      if (value === undefined) throw new Error(`${this.entry.name}: no argument '${param.name}'`); // no text where there is one
      this.#pack(param, this.#offsets[i]!, value);
    });
    if (this.#function === 0) this.#function = this.load();
    const { threads, shared, name } = this.entry;
    const status =
      overlap && this.#waits
        ? overlap(this.#function, { grid: [x, y, z], threads, shared, stream }, this.#pointersAt)
        : this.driver.cuLaunchKernel(this.#function, x, y, z, threads, 1, 1, shared, stream, this.#pointersAt, null);
    if (status !== 0) check(this.driver, `the launch of ${name} on a grid of ${x} x ${y} x ${z}`, status);
  }

  #pack(param: Param, at: number, value: Argument): void {
    const view = this.#view;
    if (param.type === "desc") {
      if (value !== null) this.#descriptor(param, at, value as Tensor);
    } else if (param.type === "ptr") {
      const address = value === null ? 0 : typeof value === "number" ? value : value.ptr;
      view.setUint32(at, address % 0x1_0000_0000, true);
      view.setUint32(at + 4, Math.floor(address / 0x1_0000_0000), true);
    } else {
      if (typeof value !== "number" || Number.isNaN(value))
        throw new Error(`${this.entry.name}: '${param.name}' is not a number`);
      if (param.type === "f32") view.setFloat32(at, value, true);
      else if (param.type === "i64") view.setBigInt64(at, BigInt(value), true);
      else {
        if (!Number.isInteger(value) || Math.abs(value) >= 2 ** 31)
          throw new Error(`${this.entry.name}: '${param.name}' is ${value}`);
        view.setInt32(at, value, true);
      }
    }
  }

  /** A matrix [rows, columns], or a stack of them, `stride` elements apart. */
  #descriptor(param: Extract<Param, { type: "desc" }>, at: number, tensor: Tensor): void {
    const { shape, stride } = tensor;
    const rank = param.block.length;
    invariant(
      shape.length === rank && this.encode,
      `${this.entry.name}: '${param.name}' has ${shape.length} dimensions, not ${rank}`,
    );
    const strides: number[] = [];
    let step = 1;
    for (let i = rank - 1; i >= 0; i--) {
      strides[i] = i === 0 && stride !== undefined ? stride : step;
      step *= shape[i]!;
    }
    const width = bytesOf(tensor.dtype);
    for (let i = 0; i < rank; i++) {
      const outer = rank - 1 - i; // the encoder counts from the innermost dimension
      this.#sizes[i] = BigInt(shape[outer]!);
      this.#box[i] = param.block[outer]!;
      if (i > 0) this.#strides[i - 1] = BigInt(strides[outer]! * width);
    }
    const status = this.encode(
      this.#base + at,
      param.elem,
      rank,
      tensor.ptr,
      this.#sizes,
      this.#strides,
      this.#box,
      this.#steps,
      0,
      param.swizzle,
      L2_PROMOTION_128B,
      0,
    );
    if (status !== 0)
      check(
        this.driver,
        `the tensor map of ${this.entry.name}'s ${param.name} [${shape}] stride ${stride} at ${tensor.ptr}`,
        status,
      );
    let offset = at + MAP_BYTES;
    for (const size of shape) {
      this.#view.setInt32(offset, size, true);
      offset += 4;
    }
    offset = alignUp(offset, 8);
    for (const size of strides) {
      this.#view.setBigInt64(offset, BigInt(size), true);
      offset += 8;
    }
  }
}

/** Where each parameter of the PTX entry lies: the parts that a descriptor becomes are parameters of their own. */
function layOut({ params, hidden }: KernelEntry) {
  const parts: number[] = [];
  const firsts: number[] = [];
  let at = 0;
  const place = (bytes: number, alignment = bytes): number => {
    at = alignUp(at, alignment);
    parts.push(at);
    at += bytes;
    return parts.at(-1)!;
  };
  for (const param of params)
    if (param.type === "desc") {
      firsts.push(place(MAP_BYTES, 64));
      for (const _ of param.block) place(4);
      for (const _ of param.block) place(8);
    } else firsts.push(place(SIZE[param.type]));
  for (const _ of hidden) place(8);
  return { parts, firsts, bytes: at };
}
