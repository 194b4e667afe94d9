// How evenly the tokens of each adapter go to the experts of a stage's layers.

import type { Device } from "../device/device.ts";
import type { Activations } from "./buffers.ts";

export type Load = { readonly busiest: number; readonly all: number };

export class ExpertLoads {
  /** Of each layer with experts, rows [slots + 1, E]; the last of no adapter. */
  readonly #rows: Float64Array[] = [];
  #experts: readonly number[] = [];

  /** Adds what a pass of training has sent where. Waits for the pass. */
  async add(device: Device, { layers }: Activations): Promise<void> {
    const tables = layers.flatMap(({ experts }) => [...experts.values()].map(({ routes }) => routes.counts));
    this.#experts = tables.map(({ shape }) => shape[1]!);
    for (const [i, table] of tables.entries()) {
      const counts = new Int32Array((await device.read(table)).buffer);
      this.#rows[i] ??= new Float64Array(counts.length);
      const rows = this.#rows[i];
      for (let at = 0; at < counts.length; at++) rows[at]! += counts[at]!;
    }
  }

  /** The rows of the busiest experts of all layers, and of all experts, of the adapter in a slot; counts anew from here on. */
  take(slot: number): Load {
    const load = { busiest: 0, all: 0 };
    for (const [i, rows] of this.#rows.entries()) {
      const own = rows.subarray(slot * this.#experts[i]!, (slot + 1) * this.#experts[i]!);
      load.busiest += Math.max(...own);
      load.all += own.reduce((a, b) => a + b, 0);
      own.fill(0);
    }
    return load;
  }
}
