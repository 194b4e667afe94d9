// Packed weights as kernels multiply them: taken apart in two buffers by turns, so that the next product's weight is made while
// the last programs of a product leave multiprocessors idle.
//
// What comes next is what came next the last time that a weight was multiplied in the same direction, for passes are alike. A
// wrong guess costs its own work: what is wanted is then made when it is wanted. A product's programs go before those that take
// a weight apart, whose stream has the lowest priority.

import type { SideStream } from "./streams.ts";

export type Direction = "forward" | "backward";

/** How a weight is made as kernels multiply it: in how many bytes, and what is launched to write them from an address on. */
export type Making<W> = { readonly bytes: (weight: W) => number; readonly make: (weight: W, to: number) => void };

type Buffer = {
  readonly ptr: number;
  readonly bytes: number;
  /** Whose values are there, or will be. */
  holds: object | null;
  /** It was written aside, and the main stream has not waited for that. */
  isAside: boolean;
};

export class DenseWeights {
  readonly #buffers: readonly Buffer[];
  #followers: Readonly<Record<Direction, WeakMap<object, object>>> = noFollowers();
  #last: { readonly weight: object; readonly direction: Direction } | null = null;

  /** `launchingOn` has what its work launches go to this stream. */
  constructor(
    buffers: readonly { readonly ptr: number; readonly bytes: number }[],
    private readonly side: Pick<SideStream, "stream" | "afterMain" | "beforeMain">,
    private readonly launchingOn: (stream: number, work: () => void) => void,
  ) {
    this.#buffers = buffers.map((buffer) => ({ ...buffer, holds: null, isAside: false })).sort((a, b) => a.bytes - b.bytes);
  }

  /** Where a weight lies for what is launched until the next call; null where no buffer is large enough. */
  at<W extends object>(weight: W, making: Making<W>): number | null {
    return this.#made(weight, making)?.ptr ?? null;
  }

  /** The same for one product, which `product` launches: what probably follows is made meanwhile. */
  over<W extends object>(weight: W, direction: Direction, making: Making<W>, product: (ptr: number) => void): boolean {
    const buffer = this.#made(weight, making);
    if (!buffer) return false;
    if (this.#last) this.#followers[this.#last.direction].set(this.#last.weight, weight);
    this.#last = { weight, direction };
    const next = this.#followers[direction].get(weight) as W | undefined;
    const other = next && this.#free(making.bytes(next), next, buffer);
    if (!other) {
      product(buffer.ptr);
      return true;
    }
    this.side.afterMain(); // all that reads the other buffer is enqueued by now, this product is not
    product(buffer.ptr);
    other.holds = null; // also where `make` throws
    other.isAside = true;
    this.launchingOn(this.side.stream, () => making.make(next, other.ptr));
    other.holds = next;
    return true;
  }

  /**
   * Waits for what was made aside, and lets go of all that the buffers hold: before and after launches that are recorded, which
   * run again whatever the buffers then hold.
   */
  settle(): void {
    for (const buffer of this.#buffers) {
      if (buffer.isAside) this.side.beforeMain();
      buffer.isAside = false;
      buffer.holds = null;
    }
    this.#last = null;
  }

  /** What the buffers hold, and what was seen to follow what, is not so any more. */
  forget(): void {
    for (const buffer of this.#buffers) buffer.holds = null;
    this.#followers = noFollowers();
    this.#last = null;
  }

  /** The buffer that a weight is in, for what is launched on the main stream from now on. */
  #made<W extends object>(weight: W, { bytes, make }: Making<W>): Buffer | null {
    const size = bytes(weight);
    const held = this.#buffers.find(({ holds }) => holds === weight);
    const buffer = held ?? this.#buffers.find((of) => of.bytes >= size);
    if (!buffer) return null;
    if (buffer.isAside) this.side.beforeMain();
    buffer.isAside = false;
    if (held) return held;
    buffer.holds = null;
    make(weight, buffer.ptr);
    buffer.holds = weight;
    return buffer;
  }

  /** A buffer for a weight other than the one in use; none where the weight is in one. */
  #free(bytes: number, weight: object, used: Buffer): Buffer | undefined {
    if (this.#buffers.some(({ holds }) => holds === weight)) return undefined;
    return this.#buffers.find((buffer) => buffer !== used && buffer.bytes >= bytes);
  }
}

const noFollowers = () => ({ forward: new WeakMap<object, object>(), backward: new WeakMap<object, object>() });
