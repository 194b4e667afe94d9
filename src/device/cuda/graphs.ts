// Work that is the same each time, recorded as a CUDA graph: hundreds of launches become one call of the driver.
//
// On Hopper kernels that wait by themselves (kernels/triton/overlap.py) begin while the launch before them still runs. Before they
// wait they read parameters and tables: nothing that is launched in a record may write these.

import { CAPTURE_RELAXED } from "../../../ffi/cuda.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import type { OverlappingLaunch } from "./overlap.ts";

/** Graphs that are kept; when there are more, all are made again. */
const MOST = 64;

export class Graphs implements Disposable {
  readonly #graphs = new Map<string, number>();
  /** What has run once: its kernels are loaded, which a recording must not do. */
  readonly #seen = new Set<string>();
  readonly #out = new OutParam();
  #overlap: OverlappingLaunch | null = null;

  /** `launches`: overlapping ones; null where the driver or the GPU has none. */
  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
    private readonly launches: OverlappingLaunch | null,
  ) {}

  /** How a kernel that waits by itself is launched now, after another kernel; null: as all others. */
  get overlap(): OverlappingLaunch | null {
    return this.#overlap;
  }

  /** Enqueues what `work` launches on the stream, which must be the same each time for a key. */
  replay(key: string, work: () => void): void {
    if (this.#graphs.has(key)) this.#launch(this.#graphs.get(key)!);
    else if (!this.#seen.has(key)) {
      if (this.#seen.size >= MOST) this.clear();
      this.#seen.add(key);
      work();
    } else {
      const made = this.#record(work);
      this.#graphs.set(key, made);
      this.#launch(made);
    }
  }

  /** Forgets all: what launches read has moved. */
  clear(): void {
    for (const graph of this.#graphs.values()) this.driver.cuGraphExecDestroy(graph);
    this.#graphs.clear();
    this.#seen.clear();
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #launch(graph: number): void {
    check(this.driver, "cuGraphLaunch", this.driver.cuGraphLaunch(graph, this.stream));
  }

  #record(work: () => void): number {
    const { driver, stream } = this;
    check(driver, "cuStreamBeginCapture", driver.cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    let isWhole = false;
    this.#overlap = this.launches;
    try {
      work();
      isWhole = true;
    } finally {
      this.#overlap = null;
      const status = driver.cuStreamEndCapture(stream, this.#out.ptr); // also where `work` throws: the stream is as before
      if (isWhole) check(driver, "cuStreamEndCapture", status);
    }
    const graph = this.#out.number;
    const status = driver.cuGraphInstantiateWithFlags(this.#out.ptr, graph, 0);
    driver.cuGraphDestroy(graph);
    check(driver, "cuGraphInstantiate", status);
    return this.#out.number;
  }
}
