// How evenly the tokens of each adapter go to the experts of a stage's layers.

import type { Device } from "../device/device.ts";
import type { Activations } from "./layers/buffers.ts";

export type Load = { readonly busiest: number; readonly all: number };

export class ExpertLoads {
  /** Of each layer with experts, rows [slots + 1, E]; the last of no adapter. */
  readonly #rows: Float64Array[] = [];
  #experts: readonly number[] = [];
  /** Resolves when the passes added so far are counted. */
  #counted: Promise<void> = Promise.resolve();

  /** Adds what a pass of training has sent where: resolves when its reading is enqueued, and the device continues. */
  async add(device: Device, { layers }: Activations): Promise<void> {
    const tables = layers.flatMap(({ experts }) => [...experts.values()].map(({ routes }) => routes.counts));
    this.#experts = tables.map(({ shape }) => shape[1]!);
    const { bytes } = await device.peek(tables);
    this.#counted = Promise.all([this.#counted, bytes]).then(([, found]) => this.#count(found));
    this.#counted.catch(() => undefined); // `take` rejects, too
  }

  #count(tables: readonly Uint8Array<ArrayBuffer>[]): void {
    for (const [i, table] of tables.entries()) {
      const counts = new Int32Array(table.buffer);
      this.#rows[i] ??= new Float64Array(counts.length);
      const rows = this.#rows[i];
      for (let at = 0; at < counts.length; at++) rows[at]! += counts[at]!;
    }
  }

  /**
   * For each slot the rows of the busiest experts of all layers, and of all experts, of the adapter in it, with all passes
   * added so far; counts anew from here on. No pass of these adapters may be added until it resolves.
   */
  async take(slots: readonly number[]): Promise<Load[]> {
    await this.#counted;
    return slots.map((slot) => this.#take(slot));
  }

  #take(slot: number): Load {
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
