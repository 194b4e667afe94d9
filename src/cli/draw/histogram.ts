// How many values lie where: a bar for each range of equal width.

import { maxOf } from "../../base/shape.ts";
import { count } from "../../base/units.ts";
import type { Bin } from "../../session/preparation/data-description.ts";

/** A line for each bin, at most `width` columns. */
export function drawHistogram(bins: readonly Bin[], width: number): string[] {
  const labels = bins.map(({ from, to }) => (from === to ? count(from) : `${count(from)}-${count(to)}`));
  const numbers = bins.map((bin) => count(bin.count));
  const [label, number] = [labels, numbers].map((texts) => maxOf(texts.map((text) => text.length)));
  const room = Math.max(8, width - label! - number! - 4);
  const most = maxOf(bins.map((bin) => bin.count));
  return bins.map((bin, i) => {
    const bar = "█".repeat(bin.count === 0 ? 0 : Math.max(1, Math.round((bin.count / most) * room)));
    return `${labels[i]!.padStart(label!)}  ${numbers[i]!.padStart(number!)}  ${bar}`.trimEnd();
  });
}
