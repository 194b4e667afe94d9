// Runs the sequences of many requests together, and resolves each request when its own have ended.

import { onAbort } from "../../base/abort.ts";
import { sleep } from "../../base/clock.ts";
import { Decoding, type GenerationEngine, type Wanted } from "./decoding.ts";
import type { PassTurns } from "./pass-turns.ts";
import type { Shares } from "./shares.ts";

type Request = { readonly wanted: Wanted[]; left: number; readonly done: PromiseWithResolvers<void> };

export class Sampler {
  readonly #decoding: Decoding;
  readonly #requests = new Set<Request>();
  #isRunning = false;

  constructor(
    engine: GenerationEngine,
    private readonly turns: PassTurns,
    shares: Shares,
  ) {
    this.#decoding = new Decoding(engine, shares);
  }

  /**
   * Resolves when all sequences have ended. Rejects with what a pass failed with, and with the reason of `signal`, whose abort
   * ends the sequences.
   */
  async run(sequences: readonly Omit<Wanted, "failed">[], signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const request: Request = { wanted: [], left: sequences.length, done: Promise.withResolvers<void>() };
    request.wanted.push(...sequences.map((of) => this.#wantedOf(of, request)));
    this.#requests.add(request);
    for (const of of request.wanted) this.#decoding.add(of);
    using _abort = signal ? onAbort(signal, () => this.#fail(request, signal.reason)) : null;
    void this.#run();
    await request.done.promise;
  }

  #wantedOf(of: Omit<Wanted, "failed">, request: Request): Wanted {
    return {
      ...of,
      got: (next) => {
        of.got(next);
        if (next.end === null || --request.left > 0) return;
        this.#requests.delete(request);
        request.done.resolve();
      },
      failed: (error) => this.#fail(request, error),
    };
  }

  #fail(request: Request, error: unknown): void {
    if (!this.#requests.delete(request)) return;
    for (const of of request.wanted) this.#decoding.cancel(of);
    request.done.reject(error);
  }

  async #run(): Promise<void> {
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      for (;;) {
        await sleep(0); // requests that are made together are read together; and the process does its other work
        if (this.#decoding.isIdle) break;
        using _turn = await this.turns.take("generation");
        await this.#decoding.pass(() => !this.turns.isShared("generation"));
      }
    } catch (error) {
      for (const request of [...this.#requests]) this.#fail(request, error);
    }
    this.#isRunning = false;
  }
}
