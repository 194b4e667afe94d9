// Memory for the gradients of adapters that are in a step: a few buffers in one allocation, each lent to one adapter at a time.
//
// A buffer that is not in a step holds zeros, as the optimizer leaves them. It stays with its last adapter until another needs
// it, so where all have one nothing is ever lent anew. Whether there is room for one more is known before its mini-batch begins
// (schedule/gradients.ts); here a small adapter makes way where it has a buffer that a large one needs.

import { invariant } from "../../base/errors.ts";
import { alignUp, sizeOf } from "../../base/shape.ts";
import { Arena } from "../../device/arena.ts";
import { type Device, GRANULARITY, type Tensor } from "../../device/device.ts";
import { countBytes } from "../layers/buffers.ts";

type Buffer = {
  /** f32, of its full size. */
  readonly memory: Tensor;
  /** The slot that it is lent to; null for none. */
  slot: number | null;
  /** Whether that adapter is in a step, so that the buffer may hold gradients. */
  isInStep: boolean;
};

/** Bytes of buffers of these numbers of elements, for the plan; some, where no adapter has an element on the stage. */
export const gradientBytes = (elements: readonly number[], kind: Device["kind"]): number =>
  elements.length === 0
    ? 0
    : alignUp(
        Math.max(
          1,
          countBytes((take) => elements.map((count) => take("f32", count))),
        ),
        GRANULARITY[kind],
      );

export class GradientBuffers implements Disposable {
  readonly #arena: Arena | null;
  /** The smallest first. */
  readonly #buffers: readonly Buffer[];
  /** By slot. */
  readonly #of = new Map<number, Buffer>();

  /** `elements`: of each buffer. */
  constructor(
    private readonly device: Device,
    elements: readonly number[],
    /** Called with a slot whose gradients lie elsewhere from now on. */
    private readonly onMove: (slot: number, gradients: Tensor) => void,
  ) {
    const bytes = gradientBytes(elements, device.kind);
    this.#arena = bytes > 0 ? new Arena(device, bytes, "gradients of the adapters") : null;
    const memory = elements.toSorted((a, b) => a - b).map((count) => this.#arena!.tensor("f32", count));
    this.#buffers = memory.map((of) => ({ memory: of, slot: null, isInStep: false }));
    for (const of of memory) device.zero(of);
  }

  /** An adapter's gradients f32[elements], which is in a step from now on. */
  take(slot: number, elements: number): Tensor {
    const buffer = this.#of.get(slot) ?? this.#lend(slot, elements);
    buffer.isInStep = true;
    return firstOf(buffer, elements);
  }

  /** The same of an adapter that may be in no step; null where it has no buffer, and its gradients are zero. */
  find(slot: number, elements: number): Tensor | null {
    const buffer = this.#of.get(slot);
    return buffer ? firstOf(buffer, elements) : null;
  }

  /** The adapter has made its step, which has left zeros. */
  stepped(slot: number): void {
    const buffer = this.#of.get(slot);
    if (buffer) buffer.isInStep = false;
  }

  /** The adapter makes no step with what it has. */
  drop(slot: number): void {
    const buffer = this.#of.get(slot);
    if (!buffer?.isInStep) return;
    this.device.zero(buffer.memory);
    buffer.isInStep = false;
  }

  /** The slot is another's from now on. */
  release(slot: number): void {
    this.drop(slot);
    const buffer = this.#of.get(slot);
    if (buffer) buffer.slot = null;
    this.#of.delete(slot);
  }

  /** The smallest that is large enough and in no step, one of no adapter before others; else that of the smallest adapter. */
  #lend(slot: number, elements: number): Buffer {
    const fitting = this.#buffers.filter(({ memory }) => sizeOf(memory.shape) >= elements);
    const idle = fitting.filter(({ isInStep }) => !isInStep);
    const smallest = idle.filter(({ memory }) => sizeOf(memory.shape) === sizeOf(idle[0]!.memory.shape));
    const free = smallest.find((of) => of.slot === null) ?? smallest[0];
    if (free) {
      if (free.slot !== null) this.#of.delete(free.slot);
      return this.#give(free, slot, elements);
    }
    const size = ({ slot }: Buffer) => this.#sizes.get(slot!)!;
    const least = fitting.reduce((a, b) => (size(b) < size(a) ? b : a), fitting[0]!);
    invariant(least && size(least) < elements, `no buffer for ${elements} gradients of slot ${slot}`);
    const [moved, count] = [least.slot!, size(least)];
    const from = firstOf(least, count);
    const to = this.#lend(moved, count);
    to.isInStep = true;
    this.device.copy(firstOf(to, count), from);
    this.device.zero(from);
    least.isInStep = false;
    return this.#give(least, slot, elements);
  }

  /** Elements of the adapter in each slot that has a buffer. */
  readonly #sizes = new Map<number, number>();

  #give(buffer: Buffer, slot: number, elements: number): Buffer {
    buffer.slot = slot;
    this.#of.set(slot, buffer);
    this.#sizes.set(slot, elements);
    this.onMove(slot, firstOf(buffer, elements));
    return buffer;
  }

  [Symbol.dispose](): void {
    this.#arena?.[Symbol.dispose]();
  }
}

const firstOf = ({ memory }: Buffer, elements: number): Tensor => ({ ...memory, shape: [elements] });
