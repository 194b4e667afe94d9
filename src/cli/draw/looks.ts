// How adapters are told apart in a drawing: a colour and a letter each. Letters for those who cannot rely on colours, or have
// many.

import { range } from "../../base/shape.ts";
import type { Span } from "../../session/planning/simulated-run.ts";

export type Look = {
  /** Of this look among those of a drawing. */
  readonly id: number;
  /** Of a forward pass; in small letters of a backward pass. */
  readonly letter: string;
  readonly small: string;
  /** Colours as #rrggbb: of a forward pass; of a backward pass on white, and on a screen of any colour. */
  readonly strong: string;
  readonly pale: string;
  readonly deep: string;
  /** Of a letter on the strong one. */
  readonly ink: string;
};

/** Latin, then those of Greek and Cyrillic that look like no other, large or small. */
const LETTERS = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZΓΔΘΛΞΠΣΦΨΩБДЖЦЧШЭЮЯ"];
const [BLACK, WHITE] = ["#000000", "#ffffff"];
/** Turned on by this, hues stay far from all that came before. */
const GOLDEN_ANGLE = 137.508;
const FIRST_HUE = 255;
/** Neighbours among many hues differ in lightness instead: hues nearly return after 8, 13, 21 and 34, lightnesses do not. */
const LIGHTNESS = [0.63, 0.75, 0.55, 0.69, 0.48];
/** From here on black is read better than white. */
const LIGHT = 0.6;

const oklch = (lightness: number, chroma: number, hue: number): string =>
  Bun.color(`oklch(${100 * lightness}% ${chroma} ${hue % 360})`, "hex")!;

function lookOf(i: number): Look {
  const hue = FIRST_HUE + i * GOLDEN_ANGLE;
  const lightness = LIGHTNESS[i % LIGHTNESS.length]!;
  return {
    id: i,
    letter: LETTERS[i]!,
    small: LETTERS[i]!.toLowerCase(),
    strong: oklch(lightness, 0.16, hue),
    pale: oklch(0.74 + lightness / 5, 0.08, hue),
    deep: oklch(0.32 + lightness / 5, 0.2, hue),
    ink: lightness > LIGHT ? BLACK : WHITE,
  };
}

/** Of all adapters for which there is no letter. */
const OTHERS: Look = {
  id: LETTERS.length,
  letter: "+",
  small: "-",
  strong: "#8a8a8a",
  pale: "#d0d0d0",
  deep: "#585858",
  ink: BLACK,
};

export type Legend = {
  readonly look: (adapter: number) => Look;
  /** Which adapters are drawn, and how many more under one look; null when each has a look of its own. */
  readonly named: readonly { readonly adapter: number; readonly look: Look }[];
  readonly others: { readonly count: number; readonly look: Look } | null;
};

/**
 * Looks for the adapters in these spans of the first stage, in the order in which they come: so a longer drawing of the same
 * run has the same looks, and those that wait for a slot meanwhile take none.
 */
export function legendOf(spans: readonly Span[]): Legend {
  const drawn = new Set<number>();
  for (const span of spans) for (const adapter of adaptersOf(span)) drawn.add(adapter);
  const all = [...drawn];
  const looks = new Map(range(Math.min(all.length, LETTERS.length)).map((i) => [all[i]!, lookOf(i)]));
  const count = all.length - looks.size;
  return {
    look: (adapter) => looks.get(adapter) ?? OTHERS,
    named: [...looks].map(([adapter, look]) => ({ adapter, look })),
    others: count > 0 ? { count, look: OTHERS } : null,
  };
}

/** In the order of the recipe, however they came together. */
export const adaptersOf = ({ adapters }: Span): number[] => [...adapters].sort((a, b) => a - b);
