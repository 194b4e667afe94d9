// A chart of many curves as SVG in a page: a path for each adapter, which its row of the table brings to the front.

import { maxOf } from "../../base/shape.ts";
import type { CurvePoints } from "../../session/run/report.ts";
import { px, xml } from "../draw/xml.ts";

export type Line = { readonly name: string; readonly id: number; readonly curve: CurvePoints };

/** In pixels at the chart's own size. */
const [WIDTH, HEIGHT] = [640, 280];
const AREA = { left: 64, right: 12, top: 10, bottom: 30 };
const [X_MARKS, Y_MARKS] = [6, 5];
/** Values that reach so far above the median are shown by their logarithms. */
const STEEP = 20;

/** 1, 2 or 5 times a power of ten, as many as fit between the two. */
function marks(from: number, to: number, about: number): number[] {
  const rough = (to - from) / about || 1;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const every = [1, 2, 5, 10].map((n) => n * ten).find((step) => step >= rough)!;
  const first = Math.ceil(from / every - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(to / every + 1e-9) - first + 1) }, (_, i) => (first + i) * every);
}

const powers = (from: number, to: number): number[] => {
  const [first, last] = [Math.ceil(Math.log10(from) - 1e-9), Math.floor(Math.log10(to) + 1e-9)];
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => 10 ** (first + i));
};

const number = (value: number): string =>
  value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)
    ? value.toExponential(0)
    : `${Number(value.toPrecision(4))}`;

/** Empty where no curve has a point. */
export function chart(title: string, lines: readonly Line[]): string {
  const drawn = lines.filter(({ curve }) => curve.length > 0);
  const points = drawn.flatMap(({ curve }) => curve);
  if (points.length === 0) return "";
  const values = points.map(([, value]) => value).sort((a, b) => a - b);
  const [least, median, most] = [values[0]!, values[values.length >> 1]!, values.at(-1)!];
  const isSteep = least > 0 && most > STEEP * median;
  const scale = isSteep ? Math.log10 : (value: number) => value;
  const [low, high] = least === most ? [scale(least) - 0.5, scale(most) + 0.5] : [scale(least), scale(most)];
  const last = Math.max(1, maxOf(points.map(([step]) => step)));
  const x = (step: number) => AREA.left + (step / last) * (WIDTH - AREA.left - AREA.right);
  const y = (value: number) => HEIGHT - AREA.bottom - ((scale(value) - low) / (high - low)) * (HEIGHT - AREA.top - AREA.bottom);
  const rows = isSteep ? powers(least, most) : marks(low, high, Y_MARKS);
  const text = (at: readonly [number, number], kind: string, words: string) =>
    `<text x="${px(at[0])}" y="${px(at[1])}" class="${kind}">${xml(words)}</text>`;
  return [
    `<figure><figcaption>${xml(title)}${isSteep ? ", logarithmic" : ""}</figcaption>`,
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${xml(title)}">`,
    `<path class="grid" d="${rows.map((value) => `M${AREA.left} ${px(y(value))}H${WIDTH - AREA.right}`).join("")}"/>`,
    ...rows.map((value) => text([AREA.left - 8, y(value) + 4], "left", number(value))),
    ...marks(0, last, X_MARKS).map((step) => text([x(step), HEIGHT - AREA.bottom + 18], "below", number(step))),
    ...drawn.map(({ name, id, curve }) => {
      const at = curve.map(([step, value]) => `${px(x(step))} ${px(y(value))}`);
      const d = at.length === 1 ? `M${at[0]}h.01` : `M${at.join("L")}`;
      return `<path class="c a${id}" d="${d}"><title>${xml(name)}</title></path>`;
    }),
    "</svg></figure>",
  ].join("\n");
}
