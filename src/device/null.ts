// The null device: runs nothing, records everything. Order, memory and leaks of a whole step are tested on it in milliseconds.

import { bytesOf } from "../base/dtype.ts";
import { WEIGHT_FORMATS, type WeightFormat } from "../base/precision.ts";
import { sizeOf } from "../base/shape.ts";
import type { Device, HostMemory, Sharing, Span, Tensor } from "./device.ts";
import type { Kernel } from "./kernel.ts";

export class NullDevice implements Device {
  readonly kind = "null";
  readonly isConcurrent = true;
  readonly name = "null";
  readonly sharing: Sharing | null = null;
  readonly formats: readonly WeightFormat[] = WEIGHT_FORMATS;
  readonly threads = 0;
  readonly hasFewRows = true;
  /** Names of kernels in the order of their launches. */
  readonly launched: string[] = [];
  /** Blocks taken and not released: bytes by address. More than none at the end is a leak. */
  readonly live = new Map<number, number>();
  /** Those of them that are memory of the machine. */
  readonly #host = new Set<number>();
  /** Pinned memory of the host, in the same way. */
  readonly pinned = new Map<number, number>();
  allocations = 0;
  #next = 4096;

  constructor(
    readonly compute: "f32" | "bf16" = "f32",
    readonly rowTile = 16,
  ) {}

  get allocated(): number {
    return [...this.live].reduce((all, [ptr, bytes]) => all + (this.#host.has(ptr) ? 0 : bytes), 0);
  }

  memory() {
    return { total: 2 ** 40, free: 2 ** 40 - this.allocated };
  }

  allocate(bytes: number): number {
    const ptr = this.#next;
    this.#next += bytes + 4096;
    this.live.set(ptr, bytes);
    this.allocations++;
    return ptr;
  }

  allocateHost(bytes: number): number {
    const ptr = this.allocate(bytes);
    this.#host.add(ptr);
    return ptr;
  }

  release(ptr: number): void {
    this.live.delete(ptr);
    this.#host.delete(ptr);
  }

  reserveScratch(bytes: number): void {
    if (bytes > 0) this.allocate(bytes);
  }

  write(to: Tensor, data: ArrayBufferView): void {
    this.#check(to, data.byteLength);
  }

  fill(to: Tensor): void {
    this.#check(to, sizeOf(to.shape) * bytesOf(to.dtype));
  }

  read(from: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    this.#check(from, bytes);
    return Promise.resolve(new Uint8Array(bytes));
  }

  async snapshot(from: readonly Tensor[]) {
    return { bytes: Promise.all(from.map((tensor) => this.read(tensor))) };
  }

  peek(from: readonly Tensor[]) {
    return this.snapshot(from);
  }

  zero(tensor: Tensor): void {
    this.#check(tensor, sizeOf(tensor.shape) * bytesOf(tensor.dtype));
  }

  copy(to: Tensor, from: Tensor): void {
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    this.#check(to, bytes);
    this.#check(from, bytes);
  }

  pin(): Disposable {
    return { [Symbol.dispose]: () => undefined };
  }

  async copyOut(_to: number, from: Tensor): Promise<void> {
    this.#check(from, sizeOf(from.shape) * bytesOf(from.dtype));
  }

  async copyIn(to: Tensor): Promise<void> {
    this.#check(to, sizeOf(to.shape) * bytesOf(to.dtype));
  }

  async pinHost(bytes: number): Promise<HostMemory> {
    const address = this.#next;
    this.#next += bytes + 4096;
    this.pinned.set(address, bytes);
    const release = () => void this.pinned.delete(address);
    return { address, size: bytes, view: (_, count) => new Uint8Array(count), [Symbol.dispose]: release };
  }

  get pinnedBytes(): number {
    return [...this.pinned.values()].reduce((a, b) => a + b, 0);
  }

  async offload({ address }: HostMemory, from: Tensor): Promise<void> {
    if (!this.pinned.has(address)) throw new Error(`null device: the host has no memory at ${address}`);
    await this.copyOut(address, from);
  }

  async fetch(to: Tensor, { address }: HostMemory): Promise<void> {
    if (!this.pinned.has(address)) throw new Error(`null device: the host has no memory at ${address}`);
    await this.copyIn(to);
  }

  sendAside(to: number, from: Tensor): () => void {
    this.#checkPinned(to, sizeOf(from.shape) * bytesOf(from.dtype));
    void this.copyOut(to, from);
    return () => undefined;
  }

  bringAside(to: Tensor, from: number): () => void {
    this.#checkPinned(from, sizeOf(to.shape) * bytesOf(to.dtype));
    void this.copyIn(to);
    return () => undefined;
  }

  #checkPinned(address: number, bytes: number): void {
    for (const [start, size] of this.pinned) if (address >= start && address + bytes <= start + size) return;
    throw new Error(`null device: ${bytes} bytes at ${address} of the host are not taken`);
  }

  launch<A extends object>(kernel: Kernel<A>, args: A): void {
    this.launched.push(kernel.name);
    for (const value of Object.values(args))
      if (typeof value === "object" && value !== null && "ptr" in value) this.#check(value as Tensor, 1);
  }

  aside(work: () => void): () => void {
    work();
    return () => undefined;
  }

  replay(_: string, work: () => void): void {
    work();
  }

  idle(): Promise<void> {
    return Promise.resolve();
  }

  startTimeline(): void {}

  endTimeline(): Promise<readonly Span[]> {
    return Promise.resolve([]);
  }

  [Symbol.dispose](): void {
    this.live.clear();
    this.pinned.clear();
  }

  /** Memory that is not allocated is touched only by a bug. */
  #check({ ptr }: Tensor, bytes: number): void {
    for (const [start, size] of this.live) if (ptr >= start && ptr + bytes <= start + size) return;
    throw new Error(`null device: ${bytes} bytes at ${ptr} are not allocated`);
  }
}
