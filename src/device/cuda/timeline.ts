// When each kernel began and ended on the GPU, by events on its stream: for `mlora bench` and traces. Off unless asked for.

import type { Span } from "../device.ts";
import { check, type Driver, OutParam } from "./driver.ts";

export class Timeline implements Disposable {
  readonly #events: number[] = [];
  readonly #marks: { readonly kernel: string; readonly begin: number; readonly end: number }[] = [];
  readonly #out = new OutParam();
  readonly #origin: number;

  constructor(
    private readonly driver: Driver,
    private readonly stream: number,
  ) {
    this.#origin = this.#record();
  }

  /** Marks the begin of a kernel on a stream; what is returned marks its end. */
  begin(kernel: string, stream = this.stream): () => void {
    const begin = this.#record(stream);
    return () => {
      this.#marks.push({ kernel, begin, end: this.#record(stream) });
    };
  }

  /** What was marked, in order; all of it must have ended. */
  spans(): readonly Span[] {
    const between = (from: number, to: number): number => {
      check(this.driver, "cuEventElapsedTime", this.driver.cuEventElapsedTime(this.#out.ptr, from, to));
      return this.#out.f32;
    };
    return this.#marks.map(({ kernel, begin, end }) => ({
      kernel,
      startMs: between(this.#origin, begin),
      ms: between(begin, end),
    }));
  }

  [Symbol.dispose](): void {
    for (const event of this.#events.splice(0)) this.driver.cuEventDestroy_v2(event);
  }

  #record(stream = this.stream): number {
    check(this.driver, "cuEventCreate", this.driver.cuEventCreate(this.#out.ptr, 0));
    const event = this.#out.number;
    this.#events.push(event);
    check(this.driver, "cuEventRecord", this.driver.cuEventRecord(event, stream));
    return event;
  }
}
