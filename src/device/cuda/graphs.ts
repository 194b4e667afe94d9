// Work that is the same each time, recorded as a CUDA graph: hundreds of launches become one call of the driver.
//
// On Hopper kernels that wait by themselves (kernels/triton/overlap.py) begin while the launch before them still runs. Before
// they wait they read parameters and tables: nothing that is launched in such a record may write these.

import { CAPTURE_RELAXED } from "../../../ffi/cuda.ts";
import { check, type Driver, OutParam } from "./driver.ts";
import type { OverlappingLaunch } from "./overlap.ts";

/** Keys that are known; where there are more, the one that was not used for longest is forgotten. */
const MOST = 96;

export class Graphs implements Disposable {
  /** In the order of their last use; 0 for what has run once: its kernels are loaded, which a recording must not do. */
  readonly #graphs = new Map<string, number>();
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

  /** As Device.replay. */
  replay(key: string, work: () => void, overlaps: boolean): void {
    const known = this.#graphs.get(key);
    this.#graphs.delete(key);
    if (known === undefined) {
      if (this.#graphs.size >= MOST) this.#forget(this.#graphs.keys().next().value!);
      this.#graphs.set(key, 0);
      work();
      return;
    }
    const graph = known === 0 ? this.#record(work, overlaps) : known;
    this.#graphs.set(key, graph);
    this.#launch(graph);
  }

  #forget(key: string): void {
    const graph = this.#graphs.get(key)!;
    if (graph !== 0) this.driver.cuGraphExecDestroy(graph);
    this.#graphs.delete(key);
  }

  /** Forgets all: what launches read has moved. */
  clear(): void {
    for (const key of [...this.#graphs.keys()]) this.#forget(key);
  }

  [Symbol.dispose](): void {
    this.clear();
  }

  #launch(graph: number): void {
    check(this.driver, "cuGraphLaunch", this.driver.cuGraphLaunch(graph, this.stream));
  }

  #record(work: () => void, overlaps: boolean): number {
    const { driver, stream } = this;
    check(driver, "cuStreamBeginCapture", driver.cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    let isWhole = false;
    this.#overlap = overlaps ? this.launches : null;
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
