// A factor on its way into an adapter's parameters on a device, and into the copy that kernels read.

import { elementsFrom } from "../../device/arena.ts";
import type { Device } from "../../device/device.ts";
import { toBf16 } from "../../files/convert.ts";
import { putFactor } from "../../files/factors.ts";
import type { FactorPlace } from "../../methods/layout.ts";
import type { AdapterMemory } from "./pool-memory.ts";

export class FactorWriter {
  /** Memory that is used again: new pages take longer than what is done with them. */
  #rounded = new Uint16Array();

  constructor(private readonly device: Device) {}

  /** Replaces a factor by f32[rows, columns], as files have it. */
  write({ blocks, copy }: AdapterMemory, place: FactorPlace, values: Float32Array): void {
    const { device } = this;
    const { offset, rows, columns, isTransposed, pitch = rows } = place;
    const held = isTransposed ? new Float32Array(pitch * columns) : values;
    if (isTransposed) putFactor(held, { ...place, offset: 0 }, values);
    device.write(elementsFrom(blocks.params, offset, held.length), held);
    if (!copy) return;
    if (this.#rounded.length < held.length) this.#rounded = new Uint16Array(held.length);
    device.write(elementsFrom(copy, offset, held.length), toBf16(held, this.#rounded));
  }
}
