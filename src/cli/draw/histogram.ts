// How many values lie where: a bar for each range of equal width.

import { maxOf, range } from "../../base/shape.ts";
import { count } from "../../base/units.ts";

const BARS = 12;
/** Steps that people count in: 1, 2 or 5 times a power of ten. */
const niceStep = (least: number): number => {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least)!;
};

export type Bin = { readonly from: number; readonly to: number; readonly count: number };

/** Whole numbers, 0 or more, in at most about a dozen bins of equal width, `to` inclusive. No bins of no values. */
export function binsOf(values: readonly number[]): Bin[] {
  if (values.length === 0) return [];
  const [least, most] = [-maxOf(values.map((value) => -value)), maxOf(values)];
  const step = niceStep(Math.max(1, (most - least + 1) / BARS));
  const first = Math.floor(least / step);
  const counts = range(Math.floor(most / step) - first + 1).map(() => 0);
  for (const value of values) counts[Math.floor(value / step) - first]!++;
  return counts.map((count, i) => ({ from: (first + i) * step, to: (first + i + 1) * step - 1, count }));
}

/** A line for each bin, at most `width` columns. */
export function drawHistogram(values: readonly number[], width: number): string[] {
  const bins = binsOf(values);
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
