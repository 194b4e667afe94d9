// The cpu device: kernels over our C and OpenBLAS, in f32. It runs where there is no GPU, and it is the readable reference that
// the CUDA kernels are tested against. Launches run at once, in the caller's thread.

import { hostView } from "../../ffi/memory.ts";
import { base } from "../../ffi/native.ts";
import { now } from "../base/clock.ts";
import { bytesOf } from "../base/dtype.ts";
import { RunError } from "../base/errors.ts";
import { memory, processor, usableCores } from "../base/machine.ts";
import type { WeightFormat } from "../base/precision.ts";
import { sizeOf } from "../base/shape.ts";
import { formatBytes } from "../base/units.ts";
import { type Host, openHost } from "./cpu/host.ts";
import type { Device, HostMemory, Span, Tensor } from "./device.ts";
import { fillHost } from "./host-fill.ts";
import { HostAllocations, noHostMemory } from "./host-memory.ts";
import type { Kernel } from "./kernel.ts";

export class CpuDevice implements Device {
  readonly kind = "cpu";
  readonly isConcurrent: boolean = false;
  readonly compute = "f32";
  readonly hasFewRows: boolean = false;
  readonly rowTile: number;
  readonly sharing = null;
  readonly formats: readonly WeightFormat[];
  readonly name: string;
  readonly #host: Host;
  readonly #blocks = new Map<number, number>(); // address to bytes
  readonly #hostMemory = new HostAllocations();
  #scratch = { ptr: 0, bytes: 0 };
  #timeline: { readonly begin: number; readonly spans: Span[] } | null = null;

  /**
   * On all cores that the process may use, or as many threads as `threads` says; with the smallest row tile that its products
   * allow, or a multiple of it.
   */
  constructor(threads = usableCores(), rowTile?: number) {
    this.#host = openHost(threads, (bytes) => this.#scratchOf(bytes), rowTile);
    this.rowTile = this.#host.rowTile;
    this.formats = [
      "dense",
      "bf16",
      "int8",
      "nf4",
      "mxfp4",
      ...(this.#host.multipliesBf16 ? (["bf16-products"] as const) : []),
    ];
    this.name = `${processor().model}, ${this.#host.threads} threads`;
  }

  get threads(): number {
    return this.#host.threads;
  }

  memory() {
    const { totalBytes: total, availableBytes: free } = memory();
    return { total, free };
  }

  /** Bytes held, scratch included: what the tests compare with the plan. */
  get allocated(): number {
    return [...this.#blocks.values()].reduce((a, b) => a + b, 0);
  }

  allocate(bytes: number, why: string): number {
    const ptr = base.native_allocate(bytes);
    if (!ptr) throw new RunError("device.memory", `no memory on the cpu: ${formatBytes(bytes)} for ${why}`);
    this.#blocks.set(ptr, bytes);
    return ptr;
  }

  allocateHost(bytes: number, why: string): number {
    return this.allocate(bytes, why);
  }

  release(ptr: number): void {
    if (this.#blocks.delete(ptr)) base.native_release(ptr);
  }

  reserveScratch(bytes: number): void {
    if (bytes <= this.#scratch.bytes) return;
    this.release(this.#scratch.ptr);
    this.#scratch = { ptr: this.allocate(bytes, "scratch of the kernels"), bytes };
  }

  write(to: Tensor, data: ArrayBufferView): void {
    base.native_copy(to.ptr, data, data.byteLength);
  }

  fill(to: Tensor, read: (into: Uint8Array, from: number) => void): void {
    fillHost(to.ptr, sizeOf(to.shape) * bytesOf(to.dtype), read);
  }

  read(from: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    return Promise.resolve(new Uint8Array(hostView(from.ptr, sizeOf(from.shape) * bytesOf(from.dtype)).slice(0)));
  }

  async snapshot(from: readonly Tensor[]) {
    const bytes = await Promise.all(from.map((tensor) => this.read(tensor)));
    return { bytes: Promise.resolve(bytes) };
  }

  peek(from: readonly Tensor[]) {
    return this.snapshot(from);
  }

  zero(tensor: Tensor): void {
    const { ptr, dtype, shape, stride } = tensor;
    const [rows, width] = stride === undefined ? [1, sizeOf(shape)] : [shape[0]!, shape[1]!];
    for (let row = 0; row < rows; row++) base.native_zero(ptr + row * (stride ?? 0) * bytesOf(dtype), width * bytesOf(dtype));
  }

  copy(to: Tensor, from: Tensor): void {
    base.native_copy(to.ptr, from.ptr, sizeOf(from.shape) * bytesOf(from.dtype));
  }

  pin(): Disposable {
    return { [Symbol.dispose]: () => undefined }; // all of it is as fast as it gets
  }

  async copyOut(to: number, from: Tensor): Promise<void> {
    base.native_copy(to, from.ptr, sizeOf(from.shape) * bytesOf(from.dtype));
  }

  async copyIn(to: Tensor, from: number): Promise<void> {
    base.native_copy(to.ptr, from, sizeOf(to.shape) * bytesOf(to.dtype));
  }

  async pinHost(bytes: number, why: string): Promise<HostMemory> {
    const ptr = base.native_allocate(bytes);
    if (!ptr) throw noHostMemory(bytes, why);
    return this.#hostMemory.add(ptr, bytes, () => base.native_release(ptr));
  }

  get pinnedBytes(): number {
    return this.#hostMemory.bytes;
  }

  offload(to: HostMemory, from: Tensor): Promise<void> {
    return this.copyOut(to.address, from);
  }

  fetch(to: Tensor, from: HostMemory): Promise<void> {
    return this.copyIn(to, from.address);
  }

  sendAside(to: number, from: Tensor): () => void {
    base.native_copy(to, from.ptr, sizeOf(from.shape) * bytesOf(from.dtype));
    return () => undefined;
  }

  bringAside(to: Tensor, from: number): () => void {
    base.native_copy(to.ptr, from, sizeOf(to.shape) * bytesOf(to.dtype));
    return () => undefined;
  }

  launch<A extends object>(kernel: Kernel<A>, args: A): void {
    const begin = now();
    kernel.cpu(args, this.#host);
    this.#timeline?.spans.push({ kernel: kernel.name, startMs: begin - this.#timeline.begin, ms: now() - begin });
  }

  aside(work: () => void): () => void {
    work();
    return () => undefined;
  }

  startTimeline(): void {
    this.#timeline ??= { begin: now(), spans: [] };
  }

  endTimeline(): Promise<readonly Span[]> {
    const spans = this.#timeline?.spans ?? [];
    this.#timeline = null;
    return Promise.resolve(spans);
  }

  replay(_: string, work: () => void): void {
    work();
  }

  /** Lets timers and signals in: the launches themselves have ended. */
  idle(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  [Symbol.dispose](): void {
    for (const ptr of [...this.#blocks.keys()]) this.release(ptr);
    this.#hostMemory.clear();
    this.#scratch = { ptr: 0, bytes: 0 };
  }

  #scratchOf(bytes: number): number {
    this.reserveScratch(bytes);
    return this.#scratch.ptr;
  }
}
