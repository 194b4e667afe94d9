// The cuda device: compiled Triton kernels on one GPU, through the driver API. One stream, in the order of the calls.
//
// Nothing is allocated after the arenas and the scratch: launches take what the plan has reserved. The host is never far ahead
// without need: `idle` and `read` wait by asking, so that timers, signals and messages come through meanwhile.

import {
  attribute,
  cudaSharing,
  MEMHOSTALLOC_DEVICEMAP,
  MEMHOSTALLOC_PORTABLE,
  MEMHOSTREGISTER_PORTABLE,
  result,
  STREAM_NON_BLOCKING,
} from "../../ffi/cuda.ts";
import { fixedBytes } from "../../ffi/memory.ts";
import { base, openNative } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { usableCores } from "../base/machine.ts";
import type { WeightFormat } from "../base/precision.ts";
import { sizeOf } from "../base/shape.ts";
import { bringAside, sendAside } from "./cuda/aside-copies.ts";
import { check, type Driver, OutParam, openDriver, openExtra } from "./cuda/driver.ts";
import { traitsOf } from "./cuda/gpus.ts";
import { Graphs } from "./cuda/graphs.ts";
import type { Argument, Grid } from "./cuda/kernel.ts";
import { KernelSet } from "./cuda/kernels.ts";
import type { Launcher } from "./cuda/launcher.ts";
import { readManifest } from "./cuda/manifest.ts";
import { noDeviceMemory, noPinnedMemory } from "./cuda/memory-errors.ts";
import { type OverlappingLaunch, openOverlappingLaunch } from "./cuda/overlap.ts";
import { openSharing } from "./cuda/sharing.ts";
import { SideWork } from "./cuda/side-work.ts";
import { Peeks, Snapshots } from "./cuda/snapshots.ts";
import { Staging } from "./cuda/staging.ts";
import { type SideStream, sideStreams, until } from "./cuda/streams.ts";
import { Timeline } from "./cuda/timeline.ts";
import { type Choice, Variant, VariantSet } from "./cuda/variants.ts";
import type { Device, HostMemory, Sharing, Snapshot, Span, Tensor } from "./device.ts";
import { fillHost } from "./host-fill.ts";
import { HostAllocations, noHostMemory } from "./host-memory.ts";
import type { Kernel } from "./kernel.ts";
import { CUDA_ROW_TILE } from "./tile.ts";

export class CudaDevice implements Device, Launcher {
  readonly kind = "cuda";
  readonly isConcurrent = true;
  readonly rowTile = CUDA_ROW_TILE;
  readonly hasFewRows: boolean = true;
  readonly threads = 0;
  readonly formats: readonly WeightFormat[];
  readonly name: string;
  readonly multiprocessors: number;
  readonly #driver: Driver = openDriver();
  readonly #out = new OutParam();
  readonly #blocks = new Map<number, number>(); // address to bytes
  readonly #hostBlocks = new Map<number, number>(); // the same of the machine's memory
  #handle = 0;
  #stream = 0;
  readonly #variants: VariantSet;
  readonly #kernels: KernelSet;
  readonly #overlapping: OverlappingLaunch | null;
  #scratch = { ptr: 0, bytes: 0 };
  #timeline: Timeline | null = null;
  #staging: Staging | null = null;
  #snapshots: Snapshots | null = null;
  #peeks: Peeks | null = null;
  #sharing: Sharing | null = null;
  #sides: ReturnType<typeof sideStreams> | null = null;
  #movers: ReturnType<typeof sideStreams> | null = null;
  #asides: ReturnType<typeof sideStreams> | null = null;
  readonly #hostMemory = new HostAllocations();
  /** Where kernels are launched. */
  #sideWork: SideWork | null = null;
  #graphs: Graphs | null = null;
  /** The stream whose last work, as far as is known, is a kernel that was launched here; 0: none. */
  #lastLaunch = 0;

  /** Opens GPU `ordinal`. Throws a RunError where the driver, the GPU or the kernels are missing or will not do. */
  constructor(
    readonly compute: "f32" | "bf16",
    ordinal = 0,
  ) {
    const driver = this.#driver;
    this.#check("cuDeviceGet", driver.cuDeviceGet(this.#out.ptr, ordinal));
    this.#handle = this.#out.i32;
    const name = fixedBytes(256);
    this.#check("cuDeviceGetName", driver.cuDeviceGetName(name, name.length, this.#handle));
    this.name = new TextDecoder().decode(name.subarray(0, name.indexOf(0)));
    const ask = (which: number) => {
      this.#check("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(this.#out.ptr, which, this.#handle));
      return this.#out.i32;
    };
    const [major, minor] = [ask(attribute.COMPUTE_CAPABILITY_MAJOR), ask(attribute.COMPUTE_CAPABILITY_MINOR)];
    this.multiprocessors = ask(attribute.MULTIPROCESSOR_COUNT);
    const { kind, formats } = traitsOf(compute, { major, minor });
    this.formats = formats;
    this.#variants = new VariantSet(readManifest(), kind);
    this.#check("cuDriverGetVersion", driver.cuDriverGetVersion(this.#out.ptr));
    this.#overlapping = openOverlappingLaunch(kind, this.#out.i32);
    this.#kernels = new KernelSet(driver, kind, major);
    this.#check("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(this.#out.ptr, this.#handle));
    try {
      this.#check("cuCtxSetCurrent", driver.cuCtxSetCurrent(this.#out.number));
      this.#check("cuStreamCreate", driver.cuStreamCreate(this.#out.ptr, STREAM_NON_BLOCKING));
      this.#stream = this.#out.number;
      this.#sideWork = new SideWork(driver, this.#stream);
    } catch (error) {
      driver.cuDevicePrimaryCtxRelease_v2(this.#handle);
      throw error;
    }
  }

  memory() {
    const total = new OutParam();
    this.#check("cuMemGetInfo", this.#driver.cuMemGetInfo_v2(this.#out.ptr, total.ptr));
    return { total: total.number, free: this.#out.number };
  }

  /** Bytes held, scratch included: what the tests compare with the plan. */
  get allocated(): number {
    return [...this.#blocks.values()].reduce((a, b) => a + b, 0);
  }

  allocate(bytes: number, why: string): number {
    const status = this.#driver.cuMemAlloc_v2(this.#out.ptr, bytes);
    if (status === result.OUT_OF_MEMORY) throw noDeviceMemory(this.name, bytes, why, this.memory());
    this.#check(`the allocation of ${why}`, status);
    this.#blocks.set(this.#out.number, bytes);
    return this.#out.number;
  }

  /** The driver pins the pages; by unified addressing kernels use the host's own address. */
  allocateHost(bytes: number, why: string): number {
    const status = this.#driver.cuMemHostAlloc(this.#out.ptr, bytes, MEMHOSTALLOC_PORTABLE | MEMHOSTALLOC_DEVICEMAP);
    if (status === result.OUT_OF_MEMORY) throw noPinnedMemory(this.name, bytes, why);
    this.#check(`the allocation of ${why}`, status);
    this.#hostBlocks.set(this.#out.number, bytes);
    return this.#out.number;
  }

  release(ptr: number): void {
    if (this.#hostBlocks.delete(ptr)) this.#check("cuMemFreeHost", this.#driver.cuMemFreeHost(ptr));
    if (this.#blocks.delete(ptr)) this.#check("cuMemFree", this.#driver.cuMemFree_v2(ptr));
  }

  reserveScratch(bytes: number): void {
    if (bytes <= this.#scratch.bytes) return;
    if (this.#scratch.ptr) this.release(this.#scratch.ptr);
    this.#graphs?.clear();
    this.#scratch = { ptr: this.allocate(bytes, "scratch of the kernels"), bytes };
  }

  scratch(bytes: number): number {
    invariant(bytes <= this.#scratch.bytes, `a kernel needs ${bytes} bytes of scratch, ${this.#scratch.bytes} were planned`);
    return this.#scratch.ptr;
  }

  /** From pageable memory the driver copies the bytes away before it returns. */
  write(to: Tensor, data: ArrayBufferView): void {
    this.#lastLaunch = 0;
    invariant(
      data.byteLength <= sizeOf(to.shape) * bytesOf(to.dtype),
      `${data.byteLength} bytes for a tensor of [${to.shape}]`,
    );
    const { cuMemcpyHtoDAsync_v2: copy } = this.#driver;
    if (data.byteLength > 0) this.#check("a copy to the GPU", copy(to.ptr, data, data.byteLength, this.#stream));
  }

  fill(to: Tensor, read: (into: Uint8Array, from: number) => void): void {
    const bytes = sizeOf(to.shape) * bytesOf(to.dtype);
    if (this.#isHost(to.ptr)) fillHost(to.ptr, bytes, read);
    else {
      this.#staging ??= new Staging(this.#driver, this.#stream);
      this.#staging.fill(to.ptr, bytes, read);
    }
  }

  #isHost(ptr: number): boolean {
    for (const [base, bytes] of this.#hostBlocks) if (ptr >= base && ptr < base + bytes) return true;
    return false;
  }

  async read(from: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    await this.idle();
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    const to = new Uint8Array(new ArrayBuffer(bytes));
    if (bytes === 0) return to;
    this.#check("a copy from the GPU", this.#driver.cuMemcpyDtoHAsync_v2(to, from.ptr, bytes, this.#stream));
    this.#check("a copy from the GPU", this.#driver.cuStreamSynchronize(this.#stream));
    return to;
  }

  snapshot(from: readonly Tensor[]): Promise<Snapshot> {
    this.#snapshots ??= new Snapshots(this.#driver, this.#stream);
    return this.#snapshots.take(from);
  }

  peek(from: readonly Tensor[]): Promise<Snapshot> {
    this.#peeks ??= new Peeks(this.#driver, this.#stream);
    return this.#peeks.take(from);
  }

  zero(tensor: Tensor): void {
    this.#lastLaunch = 0;
    const { ptr, shape, stride } = tensor;
    const size = bytesOf(tensor.dtype);
    const bytes = sizeOf(shape) * size;
    if (bytes > 0 && stride !== undefined) {
      const [rows, width] = [shape[0]!, shape[1]! * size];
      this.#check("cuMemsetD2D8", this.#driver.cuMemsetD2D8Async(ptr, stride * size, 0, width, rows, this.#stream));
    } else if (bytes > 0) this.#check("cuMemsetD8", this.#driver.cuMemsetD8Async(tensor.ptr, 0, bytes, this.#stream));
  }

  copy(to: Tensor, from: Tensor): void {
    this.#lastLaunch = 0;
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    this.#check("a copy on the GPU", this.#driver.cuMemcpyDtoDAsync_v2(to.ptr, from.ptr, bytes, this.#stream));
  }

  pin(address: number, bytes: number): Disposable {
    const status = this.#driver.cuMemHostRegister_v2(address, bytes, MEMHOSTREGISTER_PORTABLE);
    if (status !== result.SUCCESS) {
      log(1, () => `${this.name}: cuMemHostRegister gave ${status}; copies to and from the host will be slower`);
      return { [Symbol.dispose]: () => undefined };
    }
    return { [Symbol.dispose]: () => void this.#driver.cuMemHostUnregister(address) };
  }

  async copyOut(to: number, from: Tensor): Promise<void> {
    const { send } = this.sides;
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    if (bytes === 0) return;
    send.afterMain();
    this.#check("a copy from the GPU", this.#driver.cuMemcpyDtoHAsync_v2(to, from.ptr, bytes, send.stream));
    await send.settled();
  }

  async copyIn(to: Tensor, from: number): Promise<void> {
    const { receive } = this.sides;
    const bytes = sizeOf(to.shape) * bytesOf(to.dtype);
    if (bytes === 0) return;
    receive.afterMain(); // its earlier contents may still be read
    this.#check("a copy to the GPU", this.#driver.cuMemcpyHtoDAsync_v2(to.ptr, from, bytes, receive.stream));
    receive.beforeMain();
    await receive.settled();
  }

  /** Threads have the system give the pages, which takes it long, and the driver only pins them. */
  async pinHost(bytes: number, why: string): Promise<HostMemory> {
    openNative();
    const ptr = base.native_allocate(bytes);
    if (!ptr) throw noHostMemory(bytes, why);
    base.native_populate(ptr, bytes, Math.ceil(usableCores() / 2));
    await until(() => (base.native_is_populated(ptr) ? result.SUCCESS : result.NOT_READY));
    const pinned = this.pin(ptr, bytes);
    return this.#hostMemory.add(ptr, bytes, () => {
      pinned[Symbol.dispose]();
      base.native_release(ptr);
    });
  }

  get pinnedBytes(): number {
    return this.#hostMemory.bytes;
  }

  async offload(to: HostMemory, from: Tensor): Promise<void> {
    this.#movers ??= sideStreams(this.#driver, this.#stream);
    const { send } = this.#movers;
    const bytes = sizeOf(from.shape) * bytesOf(from.dtype);
    send.afterMain();
    this.#check("a copy from the GPU", this.#driver.cuMemcpyDtoHAsync_v2(to.address, from.ptr, bytes, send.stream));
    await send.settled();
  }

  async fetch(to: Tensor, from: HostMemory): Promise<void> {
    this.#movers ??= sideStreams(this.#driver, this.#stream);
    const { receive } = this.#movers;
    const bytes = sizeOf(to.shape) * bytesOf(to.dtype);
    this.#check("a copy to the GPU", this.#driver.cuMemcpyHtoDAsync_v2(to.ptr, from.address, bytes, receive.stream));
    await receive.settled();
  }

  sendAside(to: number, from: Tensor): () => void {
    this.#asides ??= sideStreams(this.#driver, this.#stream);
    return sendAside(this.#driver, this.#asides.send, to, from);
  }

  bringAside(to: Tensor, from: number): () => void {
    this.#asides ??= sideStreams(this.#driver, this.#stream);
    return bringAside(this.#driver, this.#asides.receive, to, from);
  }

  get sharing(): Sharing {
    this.#sharing ??= openSharing(this.#driver, openExtra(cudaSharing), this.#handle, this.#stream, this.sides, {
      allocate: (bytes, why) => this.allocate(bytes, why),
      release: (ptr) => this.release(ptr),
      blockOf: (ptr) => {
        for (const [base, bytes] of this.#blocks) if (ptr >= base && ptr < base + bytes) return base;
        throw new Error(`address ${ptr} is in no block of this device`);
      },
    });
    return this.#sharing;
  }

  /** The streams of what leaves and of what arrives, made when first needed. */
  get sides(): { readonly send: SideStream; readonly receive: SideStream } {
    this.#sides ??= sideStreams(this.#driver, this.#stream);
    return this.#sides;
  }

  /** A kernel of the contract, or a compiled one that it consists of. */
  launch<A extends object>(kernel: Kernel<A>, args: A): void;
  launch(kernel: Variant, grid: Grid, args: Readonly<Record<string, Argument>>): void;
  launch(kernel: Kernel<object> | Variant, second: object, third?: Readonly<Record<string, Argument>>): void {
    if (kernel instanceof Variant) {
      const stream = this.#sideWork!.stream;
      const overlap = this.#lastLaunch === stream ? (this.#graphs?.overlap ?? null) : null;
      this.#kernels.of(kernel).launch(stream, second as Grid, third!, overlap);
      this.#lastLaunch = stream;
      return;
    }
    const end = this.#timeline?.begin(kernel.name, this.#sideWork!.stream);
    kernel.cuda(second, this);
    end?.();
  }

  aside(work: () => void): () => void {
    this.#lastLaunch = 0;
    const after = this.#sideWork!.aside(work);
    return () => {
      this.#lastLaunch = 0;
      after();
    };
  }

  concurrently(work: () => void, other: () => void): void {
    this.#lastLaunch = 0;
    this.#sideWork!.concurrently(work, other);
    this.#lastLaunch = 0;
  }

  replay(key: string, work: () => void, overlaps = true): void {
    this.#lastLaunch = 0;
    this.#graphs ??= new Graphs(this.#driver, this.#stream, this.#overlapping);
    if (this.#timeline) work();
    else this.#graphs.replay(key, work, overlaps);
  }

  kernel(name: string, choice?: Choice): Variant {
    return this.#variants.one(name, choice);
  }

  variants(name: string, choice?: Choice): readonly Variant[] {
    return this.#variants.all(name, choice);
  }

  async idle(): Promise<void> {
    this.#check("a kernel launched earlier", await until(() => this.#driver.cuStreamQuery(this.#stream)));
  }

  startTimeline(): void {
    this.#timeline ??= new Timeline(this.#driver, this.#stream);
  }

  async endTimeline(): Promise<readonly Span[]> {
    using timeline = this.#timeline;
    this.#timeline = null;
    await this.idle();
    return timeline?.spans() ?? [];
  }

  [Symbol.dispose](): void {
    if (this.#stream === 0) return;
    this.#driver.cuStreamSynchronize(this.#stream); // whatever it says: what follows must be done
    this.#timeline?.[Symbol.dispose]();
    this.#sides?.[Symbol.dispose]();
    this.#movers?.[Symbol.dispose]();
    this.#asides?.[Symbol.dispose]();
    this.#graphs?.[Symbol.dispose]();
    this.#sideWork?.[Symbol.dispose]();
    this.#staging?.[Symbol.dispose]();
    this.#snapshots?.[Symbol.dispose]();
    this.#peeks?.[Symbol.dispose]();
    this.#kernels[Symbol.dispose]();
    for (const ptr of this.#blocks.keys()) this.#driver.cuMemFree_v2(ptr);
    this.#blocks.clear();
    this.#hostMemory.clear();
    for (const ptr of this.#hostBlocks.keys()) this.#driver.cuMemFreeHost(ptr);
    this.#hostBlocks.clear();
    this.#driver.cuStreamDestroy_v2(this.#stream);
    this.#stream = 0;
    this.#driver.cuDevicePrimaryCtxRelease_v2(this.#handle);
  }

  #check(call: string, status: number): void {
    if (status !== result.SUCCESS) check(this.#driver, `${this.name ?? "the GPU"}: ${call}`, status);
  }
}
