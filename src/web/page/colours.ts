// A colour for each adapter that charts show: those that are shown keep theirs while they are, so that a curve does not change
// its colour when the ranking does.

import { MOST_SHOWN } from "./model.ts";

/** Colours of the style sheet, told apart by lightness, too: --c0, --c1, ... */
export const colourOf = (slot: number): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--c${slot}`).trim();

export class Colours {
  readonly #slots = new Map<string, number>();

  /** Gives slots to these, and takes those of others. */
  keep(names: readonly string[]): void {
    for (const name of this.#slots.keys()) if (!names.includes(name)) this.#slots.delete(name);
    const taken = new Set(this.#slots.values());
    const free = Array.from({ length: MOST_SHOWN }, (_, slot) => slot).filter((slot) => !taken.has(slot));
    for (const name of names) if (!this.#slots.has(name)) this.#slots.set(name, free.shift()!);
  }

  /** Null of one that has none. */
  slotOf(name: string): number | null {
    return this.#slots.get(name) ?? null;
  }
}
