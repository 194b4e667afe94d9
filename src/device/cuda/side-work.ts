// Which stream kernels are launched on: the main one, or another for work that runs next to it.

import type { Driver } from "./driver.ts";
import { SideStream } from "./streams.ts";

export class SideWork implements Disposable {
  /** Where kernels are launched. */
  stream: number;
  #aside: SideStream | null = null;
  #concurrent: SideStream | null = null;

  constructor(
    private readonly driver: Driver,
    private readonly main: number,
  ) {
    this.stream = main;
  }

  /** As Device.aside. */
  aside(work: () => void): () => void {
    this.#aside ??= new SideStream(this.driver, this.main);
    const side = this.#aside;
    side.afterMain();
    this.on(side.stream, work);
    return () => side.beforeMain();
  }

  /** As Launcher.concurrently. */
  concurrently(work: () => void, other: () => void): void {
    this.#concurrent ??= new SideStream(this.driver, this.main);
    this.#concurrent.afterMain();
    this.on(this.#concurrent.stream, other);
    work();
    this.#concurrent.beforeMain();
  }

  /** Has what `work` launches go to a stream. */
  on(stream: number, work: () => void): void {
    this.stream = stream;
    try {
      work();
    } finally {
      this.stream = this.main;
    }
  }

  [Symbol.dispose](): void {
    this.#aside?.[Symbol.dispose]();
    this.#concurrent?.[Symbol.dispose]();
  }
}
