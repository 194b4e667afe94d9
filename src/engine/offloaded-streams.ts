// The streams between layers of one packed batch, in host memory while other layers run: copied there after the layer that
// makes them, and brought back one layer ahead of the backward pass that reads them. Copies run next to kernels, and are of
// bytes.
//
// On the device are three places in turn. While a layer runs forward its input is on its way to the host, and the place that
// it writes is that of two layers before, whose copy has had those two layers' time. In the backward pass a layer has its input
// and its output in two places, and the input of the layer before comes to the third. So the last two inputs never leave.

import { bytesOf, type DType } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, HostMemory, Tensor } from "../device/device.ts";
import { type Activations, type HostStreams, OFFLOADED_RING } from "./buffers.ts";

/** Streams of a packed batch that go to the host, of `layers` layers or halves of them. */
export const offloadedCount = (layers: number): number => Math.max(0, layers + 1 - OFFLOADED_RING);

/** Bytes of host memory for them: `rows` of a stream of `hidden` features. */
export const offloadedBytes = (layers: number, rows: number, hidden: number, compute: DType): number =>
  offloadedCount(layers) * rows * hidden * bytesOf(compute);

export class OffloadedStreams implements HostStreams {
  readonly #count: number;
  readonly #bytes: number;
  /** Of each stream on its way: makes later work wait until it is there. */
  readonly #leaving: (() => void)[] = [];
  readonly #coming: (() => void)[] = [];

  /** `inputs`: of each layer, and the stream after the last, in places that take turns. */
  constructor(
    private readonly device: Device,
    private readonly host: HostMemory,
    private readonly inputs: readonly Tensor[],
  ) {
    this.#count = offloadedCount(inputs.length - 1);
    const { shape, dtype } = inputs[0]!;
    this.#bytes = sizeOf(shape) * bytesOf(dtype);
  }

  #place(i: number): number {
    return this.host.address + i * this.#bytes;
  }

  beforeForward(i: number, rows: number): void {
    if (i < this.#count) this.#leaving[i] = this.device.sendAside(this.#place(i), firstRows(this.inputs[i]!, rows));
    const overwritten = i + 1 - OFFLOADED_RING;
    if (overwritten >= 0) this.#leaving[overwritten]!();
  }

  beforeBackward(i: number, rows: number): void {
    if (i < this.#count) this.#coming[i]!();
    const next = i - 1;
    if (next >= 0 && next < this.#count)
      this.#coming[next] = this.device.bringAside(firstRows(this.inputs[next]!, rows), this.#place(next));
  }
}

/**
 * Gives each pass the host memory, `bytes` of it, that its streams wait in; none where that is 0. `held` is to be disposed of
 * when nothing runs.
 */
export async function withHostStreams<P extends { readonly acts: Activations }>(
  device: Device,
  passes: readonly P[],
  bytes: number,
) {
  const held: HostMemory[] = [];
  if (bytes > 0) for (const _ of passes) held.push(await device.pinHost(bytes, "streams between layers"));
  const offloaded = passes.map((pass, i): P => {
    const host = held[i];
    return host ? { ...pass, acts: { ...pass.acts, hostStreams: new OffloadedStreams(device, host, pass.acts.inputs) } } : pass;
  });
  return { passes: offloaded, held };
}
