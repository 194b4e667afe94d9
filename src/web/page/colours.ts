// A colour for each adapter that charts show: those that are shown keep theirs while they are, so that a curve does not change
// its colour when the ranking does.

import { setAttribute } from "./dom.ts";
import { MOST_SHOWN } from "./model.ts";

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
const known = new Map<string, string>();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => known.clear());

/** What a canvas draws with: a colour of the style sheet, as the theme has it. */
export function themeColour(name: `--${string}`): string {
  let colour = known.get(name);
  if (colour === undefined) {
    probe.style.color = `var(${name})`;
    colour = getComputedStyle(probe).color;
    known.set(name, colour);
  }
  return colour;
}

/** Shows the page in one theme, or, by null, in the system's. */
export function setTheme(theme: "light" | "dark" | null): void {
  setAttribute(document.documentElement, "data-theme", theme);
  known.clear();
}

/** Colours told apart by lightness, too. */
export const colourOf = (slot: number): string => themeColour(`--c${slot}`);

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
