// Which pages of the cache belong to which sequence: a sequence takes one when it has grown beyond its last, and all are free
// when it ends. Where pages lie changes no number.

import { range } from "../../base/shape.ts";
import { type CacheSizes, pagesOf, pagesOfSequence } from "../../engine/generation/kv-cache.ts";

/** Of a sequence at one of the cache's places. */
export type OwnPages = { readonly place: number; readonly pages: number[] };

export class PagePool {
  readonly #free: number[];
  /** What stages do not know: of each page of a sequence, as the table of all counts them, where it lies. */
  readonly #changes = new Map<number, number>();

  constructor(private readonly sizes: CacheSizes) {
    this.#free = range(pagesOf(sizes)).reverse();
  }

  get free(): number {
    return this.#free.length;
  }

  /** Pages that a sequence lacks for as many tokens. */
  lacking({ pages }: Pick<OwnPages, "pages">, tokens: number): number {
    return Math.max(0, pagesOfSequence(this.sizes, tokens) - pages.length);
  }

  /** Gives a sequence pages for as many tokens; false, and nothing, where too few are free. */
  take(of: OwnPages, tokens: number): boolean {
    const lacking = this.lacking(of, tokens);
    if (lacking > this.#free.length) return false;
    for (let i = 0; i < lacking; i++) {
      const page = this.#free.pop()!;
      this.#changes.set(of.place * pagesOfSequence(this.sizes) + of.pages.length, page);
      of.pages.push(page);
    }
    return true;
  }

  release({ pages }: OwnPages): void {
    this.#free.push(...pages.splice(0));
  }

  /** What the next pass has to say to the stages; `told` once it has. */
  changes(): Int32Array<ArrayBuffer> {
    return Int32Array.from([...this.#changes].flat());
  }
  told(): void {
    this.#changes.clear();
  }
}
