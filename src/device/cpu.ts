// The cpu device: the kernels of kernels.ts over OpenBLAS and our C, in f32. It runs where there is no GPU, and it is the
// readable reference that the CUDA kernels are tested against. Launches run at once, in the caller's thread.

import { hostView } from "../../ffi/memory.ts";
import { now } from "../base/clock.ts";
import { bytesOf } from "../base/dtype.ts";
import { RunError } from "../base/errors.ts";
import { memory, processor, usableCores } from "../base/machine.ts";
import { sizeOf } from "../base/shape.ts";
import { formatBytes } from "../base/units.ts";
import { dim, floats, type Host, ints, openHost } from "./cpu/host.ts";
import { doraKernels, linearKernels, ROW_TILE, veraKernels } from "./cpu/linear.ts";
import { packedKernels } from "./cpu/packed.ts";
import { type Device, GRANULARITY, type Span, type Tensor } from "./device.ts";
import type { KernelName, Kernels } from "./kernels.ts";

type Implementations = { readonly [K in KernelName]: (args: Kernels[K]) => void };

export class CpuDevice implements Device {
  readonly kind = "cpu";
  readonly compute = "f32";
  readonly rowTile = ROW_TILE;
  readonly sharing = null;
  readonly granularity = GRANULARITY.cpu;
  readonly formats = ["dense", "bf16", "int8", "nf4"] as const;
  readonly name: string;
  readonly #host: Host;
  readonly #kernels: Implementations;
  readonly #blocks = new Map<number, number>(); // address to bytes
  #scratch = { ptr: 0, bytes: 0 };
  #timeline: { readonly begin: number; readonly spans: Span[] } | null = null;

  /** On all cores that the process may use, or as many threads as `threads` says. */
  constructor(threads = usableCores()) {
    this.#host = openHost(threads);
    this.name = `${processor().model}, ${this.#host.threads} threads`;
    const scratch = (bytes: number) => this.#scratchOf(bytes);
    this.#kernels = {
      ...rowKernels(this.#host),
      ...doraKernels(this.#host, scratch),
      ...veraKernels(this.#host),
      ...linearKernels(this.#host, scratch),
      ...packedKernels(this.#host),
    };
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
    const ptr = this.#host.kernels.native_allocate(bytes);
    if (!ptr) throw new RunError("device.memory", `no memory on the cpu: ${formatBytes(bytes)} for ${why}`);
    this.#blocks.set(ptr, bytes);
    return ptr;
  }

  release(ptr: number): void {
    if (this.#blocks.delete(ptr)) this.#host.kernels.native_release(ptr);
  }

  reserveScratch(bytes: number): void {
    if (bytes <= this.#scratch.bytes) return;
    this.release(this.#scratch.ptr);
    this.#scratch = { ptr: this.allocate(bytes, "scratch of the kernels"), bytes };
  }

  write(to: Tensor, data: ArrayBufferView): void {
    this.#host.kernels.native_copy(to.ptr, data, data.byteLength);
  }

  fill(to: Tensor, read: (into: Uint8Array, from: number) => void): void {
    read(new Uint8Array(hostView(to.ptr, sizeOf(to.shape) * bytesOf(to.dtype))), 0);
  }

  read(from: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    return Promise.resolve(new Uint8Array(hostView(from.ptr, sizeOf(from.shape) * bytesOf(from.dtype)).slice(0)));
  }

  async snapshot(from: readonly Tensor[]) {
    const bytes = await Promise.all(from.map((tensor) => this.read(tensor)));
    return { bytes: Promise.resolve(bytes) };
  }

  zero(tensor: Tensor): void {
    const { ptr, dtype, shape, stride } = tensor;
    const [rows, width] = stride === undefined ? [1, sizeOf(shape)] : [shape[0]!, shape[1]!];
    for (let row = 0; row < rows; row++)
      this.#host.kernels.native_zero(ptr + row * (stride ?? 0) * bytesOf(dtype), width * bytesOf(dtype));
  }

  copy(to: Tensor, from: Tensor): void {
    this.#host.kernels.native_copy(to.ptr, from.ptr, sizeOf(from.shape) * bytesOf(from.dtype));
  }

  pin(): Disposable {
    return { [Symbol.dispose]: () => undefined }; // all of it is as fast as it gets
  }

  async copyOut(to: number, from: Tensor): Promise<void> {
    this.#host.kernels.native_copy(to, from.ptr, sizeOf(from.shape) * bytesOf(from.dtype));
  }

  async copyIn(to: Tensor, from: number): Promise<void> {
    this.#host.kernels.native_copy(to.ptr, from, sizeOf(to.shape) * bytesOf(to.dtype));
  }

  launch<K extends KernelName>(kernel: K, args: Kernels[K]): void {
    const begin = now();
    this.#kernels[kernel](args);
    this.#timeline?.spans.push({ kernel, startMs: begin - this.#timeline.begin, ms: now() - begin });
  }

  startTimeline(): void {
    this.#timeline ??= { begin: now(), spans: [] };
  }

  endTimeline(): Promise<readonly Span[]> {
    const spans = this.#timeline?.spans ?? [];
    this.#timeline = null;
    return Promise.resolve(spans);
  }

  /** Lets timers and signals in: the launches themselves have ended. */
  idle(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  [Symbol.dispose](): void {
    for (const ptr of [...this.#blocks.keys()]) this.release(ptr);
    this.#scratch = { ptr: 0, bytes: 0 };
  }

  #scratchOf(bytes: number): number {
    this.reserveScratch(bytes);
    return this.#scratch.ptr;
  }
}

/** First row and length of each sequence, from the bounds of the rows. */
function sequencesOf(bounds: Tensor): { readonly table: Int32Array; readonly count: number; readonly longest: number } {
  const values = ints(bounds);
  const table = new Int32Array(new ArrayBuffer(values.byteLength));
  let [count, longest] = [0, 0];
  for (let row = 0; row < dim(bounds, 0); ) {
    const length = values[2 * row + 1]! - values[2 * row]!;
    if (length > 0) {
      table[2 * count] = row;
      table[2 * count++ + 1] = length;
      longest = Math.max(longest, length);
    }
    row += Math.max(1, length);
  }
  return { table, count, longest };
}

function rowKernels(host: Host) {
  const c = host.kernels;
  const ptrOf = (t: Tensor | null) => t?.ptr ?? null;
  const clear = (t: Tensor) => c.native_zero(t.ptr, sizeOf(t.shape) * bytesOf(t.dtype));
  const gather = (x: Tensor, rows: Tensor, y: Tensor) => c.rows_gather(x.ptr, rows.ptr, y.ptr, dim(y, 0), dim(y, 1));
  return {
    embed_forward: ({ ids, table, x }: Kernels["embed_forward"]) => gather(table, ids, x),
    rows_gather: ({ x, rows, y }: Kernels["rows_gather"]) => gather(x, rows, y),
    rows_scatter: ({ dy, rows, dx }: Kernels["rows_scatter"]) =>
      c.rows_scatter(dy.ptr, rows.ptr, dx.ptr, dim(dy, 0), dim(dy, 1)),
    pool_forward: ({ x, bounds, y }: Kernels["pool_forward"]) => c.pool_forward(x.ptr, bounds.ptr, y.ptr, dim(y, 0), dim(y, 1)),
    pool_backward: ({ dy, bounds, dx }: Kernels["pool_backward"]) =>
      c.pool_backward(dy.ptr, bounds.ptr, dx.ptr, dim(dy, 0), dim(dy, 1)),
    rmsnorm_forward: ({ x, weight, y, rstd, eps }: Kernels["rmsnorm_forward"]) =>
      c.rmsnorm_forward(x.ptr, weight.ptr, y.ptr, rstd.ptr, dim(x, 0), dim(x, 1), eps),
    rmsnorm_backward: ({ dy, x, weight, rstd, residual, dx }: Kernels["rmsnorm_backward"]) =>
      c.rmsnorm_backward(dy.ptr, x.ptr, weight.ptr, rstd.ptr, ptrOf(residual), dx.ptr, dim(x, 0), dim(x, 1)),
    rope_forward: (a: Kernels["rope_forward"]) =>
      c.rope_forward(
        a.qkv.ptr,
        a.positions.ptr,
        a.cos.ptr,
        a.sin.ptr,
        ptrOf(a.qWeight),
        ptrOf(a.kWeight),
        a.out.ptr,
        dim(a.qkv, 0),
        a.heads,
        a.kvHeads,
        a.headDim,
        a.eps,
      ),
    rope_backward: (a: Kernels["rope_backward"]) =>
      c.rope_backward(
        a.dqkv.ptr,
        a.positions.ptr,
        a.cos.ptr,
        a.sin.ptr,
        ptrOf(a.qkv),
        ptrOf(a.qWeight),
        ptrOf(a.kWeight),
        dim(a.dqkv, 0),
        a.heads,
        a.kvHeads,
        a.headDim,
        a.eps,
      ),
    attention_forward: ({ qkv, bounds, out, lse, heads, kvHeads, headDim, scale, window }: Kernels["attention_forward"]) => {
      const { table, count, longest } = sequencesOf(bounds);
      const rows = dim(qkv, 0);
      clear(out); // padding rows belong to no sequence
      c.attention_forward(
        host.sgemmPtr,
        qkv.ptr,
        table,
        count,
        longest,
        out.ptr,
        lse.ptr,
        rows,
        heads,
        kvHeads,
        headDim,
        scale,
        window,
      );
    },
    attention_backward: (a: Kernels["attention_backward"]) => {
      const { table, count, longest } = sequencesOf(a.bounds);
      clear(a.dqkv);
      c.attention_backward(
        host.sgemmPtr,
        a.qkv.ptr,
        table,
        count,
        longest,
        a.out.ptr,
        a.lse.ptr,
        a.dout.ptr,
        a.delta.ptr,
        a.dqkv.ptr,
        dim(a.qkv, 0),
        a.heads,
        a.kvHeads,
        a.headDim,
        a.scale,
        a.window,
      );
    },
    cache_write: ({ qkv, places, cache, heads, kvHeads, headDim }: Kernels["cache_write"]) =>
      c.cache_write(qkv.ptr, places.ptr, cache.ptr, dim(qkv, 0), heads, kvHeads, headDim),
    attention_decode: ({ qkv, cache, bounds, out, heads, kvHeads, headDim, scale, window }: Kernels["attention_decode"]) =>
      c.attention_decode(qkv.ptr, cache.ptr, bounds.ptr, out.ptr, dim(qkv, 0), heads, kvHeads, headDim, scale, window),
    swiglu_forward: ({ gateUp, h }: Kernels["swiglu_forward"]) => c.swiglu_forward(gateUp.ptr, h.ptr, dim(h, 0), dim(h, 1)),
    swiglu_backward: ({ dh, gateUp, dgateUp }: Kernels["swiglu_backward"]) =>
      c.swiglu_backward(dh.ptr, gateUp.ptr, dgateUp.ptr, dim(dh, 0), dim(dh, 1)),
    xent: ({ logits, classes, targets, weights, loss, isCorrect, grad }: Kernels["xent"]) =>
      c.xent(logits.ptr, targets.ptr, weights.ptr, loss.ptr, isCorrect.ptr, dim(logits, 0), dim(logits, 1), classes, grad),
    grad_norm: ({ grads, tensors, squares }: Kernels["grad_norm"]) => {
      const [table, sums] = [ints(tensors), floats(squares)];
      for (let i = 0; i < sums.length; i++) {
        const [offset, rows, columns] = table.subarray(i * 3);
        sums[i] = c.grad_norm(grads.ptr + offset! * 4, rows!, columns!);
      }
    },
    adamw_step: ({ params, grads, m, v, factors, table }: Kernels["adamw_step"]) =>
      c.adamw_step(params.ptr, grads.ptr, m.ptr, v.ptr, dim(params, 0), factors.ptr, table.ptr),
    random_fill: ({ out, seed, scale }: Kernels["random_fill"]) => c.random_fill(out.ptr, sizeOf(out.shape), seed >>> 0, scale),
  };
}
