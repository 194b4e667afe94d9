// What of one packed batch is in host memory while other layers run: streams between layers, copied there after the layer that
// makes them, and brought back one layer ahead of the backward pass that reads them; and of some layers the input of attention.
// Copies run next to kernels, and are of bytes.
//
// Streams have three places on the device, in turn. While a layer runs forward its input is on its way to the host, and the
// place that it writes is that of two layers before, whose copy has had those two layers' time. In the backward pass a layer
// has its input and its output in two places, and the input of the layer before comes to the third. So the last two inputs
// never leave. Inputs of attention have one place, which the layer after next may need: it waits for the copy.

import { bytesOf, type DType } from "../../base/dtype.ts";
import { sizeOf } from "../../base/shape.ts";
import { firstRows } from "../../device/arena.ts";
import type { Device, HostMemory, Tensor } from "../../device/device.ts";
import { type Activations, type HostStreams, type LayerActivations, OFFLOADED_RING } from "./buffers.ts";

/** Streams of a packed batch that go to the host, of `layers` layers or halves of them. */
export const offloadedCount = (layers: number): number => Math.max(0, layers + 1 - OFFLOADED_RING);

/** Bytes of host memory for them: `rows` of a stream of `hidden` features. */
export const offloadedBytes = (layers: number, rows: number, hidden: number, compute: DType): number =>
  offloadedCount(layers) * rows * hidden * bytesOf(compute);

type Wait = () => void;

/** A part of a layer's region: of a value as many rows as a pass has, of all else all. */
type Part = { readonly tensor: Tensor; readonly at: number; readonly isCut: boolean };

/** What of a layer lies in a region. */
function partsOf({ values, saved, low, products }: LayerActivations, { ptr, shape }: Tensor): Part[] {
  const inside = (of: Iterable<Tensor>, isCut: boolean): Part[] =>
    [...new Set(of)].flatMap((tensor) => {
      const at = tensor.ptr - ptr;
      return at >= 0 && at < shape[0]! && sizeOf(tensor.shape) > 0 ? [{ tensor, at, isCut }] : [];
    });
  const whole = [...products.values()].flatMap((of) => Object.values(of));
  return [...inside([...values.values(), ...whole], true), ...inside([...saved.values(), ...low.values()], false)];
}

export class OffloadedStreams implements HostStreams {
  readonly #count: number;
  readonly #bytes: number;
  /** Of each stream on its way: makes later work wait until it is there. */
  readonly #leaving: Wait[] = [];
  readonly #coming: Wait[] = [];
  /** Of each layer whose attention's input is kept: the parts of it, and where they lie in host memory. */
  readonly #kept: readonly { readonly layer: number; readonly parts: readonly Part[]; readonly place: number }[];
  #leavingInput: readonly Wait[] = [];
  #comingInput: readonly Wait[] = [];

  /** `kept`: layers whose attention's input is kept, in their order. */
  constructor(
    private readonly device: Device,
    private readonly host: HostMemory,
    private readonly acts: Pick<Activations, "inputs" | "layers" | "region">,
    kept: ReadonlySet<number>,
  ) {
    const { inputs, layers, region } = acts;
    this.#count = offloadedCount(inputs.length - 1);
    const { shape, dtype } = inputs[0]!;
    this.#bytes = sizeOf(shape) * bytesOf(dtype);
    this.#kept = [...kept].map((layer, n) => {
      const place = host.address + this.#count * this.#bytes + n * region!.shape[0]!;
      return { layer, parts: partsOf(layers[layer]!, region!), place };
    });
  }

  #place(i: number): number {
    return this.host.address + i * this.#bytes;
  }

  beforeForward(i: number, rows: number): void {
    const { inputs } = this.acts;
    if (i < this.#count) this.#leaving[i] = this.device.sendAside(this.#place(i), firstRows(inputs[i]!, rows));
    const overwritten = i + 1 - OFFLOADED_RING;
    if (overwritten >= 0) this.#leaving[overwritten]!();
    if (!this.#kept.some(({ layer }) => layer === i)) return;
    for (const wait of this.#leavingInput) wait();
    this.#leavingInput = [];
  }

  /** It leaves while attention reads it. The last input stays where it is: the backward pass begins with it. */
  afterInput(i: number, rows: number): void {
    const own = this.#kept.findIndex(({ layer }) => layer === i);
    if (own < 0 || own === this.#kept.length - 1) return;
    const { parts, place } = this.#kept[own]!;
    this.#leavingInput = parts.map(({ tensor, at, isCut }) =>
      this.device.sendAside(place + at, isCut ? firstRows(tensor, rows) : tensor),
    );
  }

  beforeBackward(i: number, rows: number): void {
    const { inputs } = this.acts;
    if (i < this.#count) this.#coming[i]!();
    const next = i - 1;
    if (next >= 0 && next < this.#count)
      this.#coming[next] = this.device.bringAside(firstRows(inputs[next]!, rows), this.#place(next));
    if (!this.#kept.some(({ layer }) => layer === i)) return;
    for (const wait of this.#comingInput) wait();
    this.#comingInput = [];
  }

  afterBackward(i: number, rows: number): void {
    const next = this.#kept.findIndex(({ layer }) => layer === i) - 1;
    if (next < 0) return;
    const { parts, place } = this.#kept[next]!;
    this.#comingInput = parts.map(({ tensor, at, isCut }) =>
      this.device.bringAside(isCut ? firstRows(tensor, rows) : tensor, place + at),
    );
  }
}

/**
 * Gives each pass the host memory, `bytes` of it, that its streams and the inputs of `kept` layers wait in; none where that is
 * 0. `held` is to be disposed of when nothing runs.
 */
export async function withHostStreams<P extends { readonly acts: Activations }>(
  device: Device,
  passes: readonly P[],
  bytes: number,
  kept: ReadonlySet<number>,
) {
  const held: HostMemory[] = [];
  if (bytes > 0) for (const _ of passes) held.push(await device.pinHost(bytes, "streams between layers"));
  const offloaded = passes.map((pass, i): P => {
    const host = held[i];
    return host ? { ...pass, acts: { ...pass.acts, hostStreams: new OffloadedStreams(device, host, pass.acts, kept) } } : pass;
  });
  return { passes: offloaded, held };
}
