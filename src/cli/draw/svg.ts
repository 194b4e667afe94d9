// The schedule as a picture that needs nothing but itself: a track for each stage, time to the right, a colour and a letter an
// adapter.

import { maxOf, range, sum } from "../../base/shape.ts";
import { percent } from "../../base/units.ts";
import type { Plan } from "../../plan/plan.ts";
import { drawnUntil, type SimulatedRun } from "../../session/planning/simulated-run.ts";
import { type Legend, type Look, legendOf } from "./looks.ts";
import { drawTrack, TICK, TRACK, type Track } from "./track.ts";
import { assumptionsOf, layersOf, numbersOf, placeOf, shownOf } from "./words.ts";
import { px, xml } from "./xml.ts";

/** In pixels at the picture's own size. */
const WIDTH = 1280;
const MARGIN = 24;
const LABELS = 184;
const BUSY = 84;
const CHART = { from: MARGIN + LABELS, width: WIDTH - 2 * MARGIN - LABELS - BUSY };
const GAP = 14;
const LINE = 18;
/** Of a mean forward pass, where there is room: narrower ones are hard to tell apart. */
const PASS = 9;
const SWATCH = { width: 18, height: 15, line: 24 };
/** Characters of a title that there is room for. */
const LONGEST_TITLE = 100;
/** Marks on the time axis, about. */
const MARKS = 12;

const STYLE = `
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-size: 18px; font-weight: 600 }
.small { font-size: 11px; fill: #57606a }
.stage { font-weight: 600 }
.mark { font-size: 11px; fill: #57606a; text-anchor: middle }
.letter { font-size: 9px; text-anchor: middle; pointer-events: none }
.track { fill: #f3f4f6 }
.grid { stroke: #d0d7de; stroke-width: 0.7; fill: none }
g rect { stroke: #ffffff; stroke-width: 0.3 }
.step { stroke: #24292f; stroke-width: 1.2; fill: none }`;

const KEY =
  "Strong colours are forward passes, pale ones backward passes; adapters that share a pass lie above each other. A tick is an optimizer step of an adapter; where a track is empty, the stage is idle.";

/** The whole file. */
export function drawSvg(plan: Plan, simulated: SimulatedRun, title: string): string {
  const end = drawnUntil(simulated, CHART.width / PASS);
  const drawn = simulated.spans.map((spans) => spans.filter(({ start }) => start < end));
  const legend = legendOf(drawn[0]!);
  const said = [...numbersOf(plan, simulated), shownOf(simulated, end), assumptionsOf(plan, simulated)];
  const top = MARGIN + LINE + said.length * LINE + TICK + GAP;
  const bottom = top + drawn.length * (TRACK + GAP) - GAP;
  const x = (time: number) => CHART.from + (Math.min(time, end) / end) * CHART.width;
  const names = plan.adapters.map(({ name }) => name);
  const tracks = drawn.map((spans, stage): Track => ({ stage, spans, y: top + stage * (TRACK + GAP), x, names, legend }));
  const below = bottom + 92;
  const key = legendLines(names, legend, below);
  const height = below + key.lines * SWATCH.line + MARGIN / 2;
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${px(height)}" width="${WIDTH}" height="${px(height)}" role="img">`,
    `<title>${xml(title)}</title>`,
    `<style>${STYLE}\n${fills(legend)}\n</style>`,
    `<rect width="${WIDTH}" height="${px(height)}" fill="#ffffff"/>`,
    text(MARGIN, MARGIN + 12, "title", cutTo(title, LONGEST_TITLE)),
    ...said.map((line, i) => text(MARGIN, MARGIN + 12 + (i + 1) * LINE + 2, i + 2 < said.length ? "" : "small", line)),
    ...tracks.map(({ y }) => `<rect class="track" x="${CHART.from}" y="${y}" width="${CHART.width}" height="${TRACK}"/>`),
    ...axis(simulated.unit, end, x, top, bottom),
    ...tracks.flatMap((track) => [...labels(plan, simulated, track), ...drawTrack(track)]),
    text(MARGIN, below - 16, "small", KEY),
    ...key.drawn,
    "</svg>",
  ].join("\n")}\n`;
}

const text = (x: number, y: number, kind: string, words: string): string =>
  `<text x="${px(x)}" y="${px(y)}"${kind && ` class="${kind}"`}>${xml(words)}</text>`;

/** Classes instead of colours on each of thousands of rectangles. */
const fills = ({ named, others }: Legend): string =>
  [...named.map(({ look }) => look), ...(others ? [others.look] : [])]
    .map(({ id, strong, pale, ink }) => `.f${id} { fill: ${strong} } .b${id} { fill: ${pale} } .i${id} { fill: ${ink} }`)
    .join("\n");

/** What an adapter does in a track, and for how much of the time. */
function labels(plan: Plan, { simulation: { busy, makespan } }: SimulatedRun, { stage, y }: Track): string[] {
  const of = plan.stages[stage]!;
  return [
    text(MARGIN, y + 17, "stage", `stage ${stage}`),
    text(MARGIN + 62, y + 17, "", `layers ${layersOf(of)}`),
    text(MARGIN, y + 33, "small", cutTo(placeOf(of), LABELS / 6)),
    text(CHART.from + CHART.width + 10, y + TRACK / 2 + 4, "small", `${percent(busy[stage]! / makespan)} busy`),
  ];
}

/** Of words at the size of a name, in the widest of the fonts that may be there. */
const widthOf = (words: string): number =>
  sum([...words].map((letter) => (/[mwMW]/.test(letter) ? 12 : /[A-Z]/.test(letter) ? 9 : 7.5)));

const cutTo = (name: string, most: number): string => (name.length > most ? `${name.slice(0, most - 1)}…` : name);

/** Time in mean forward passes. */
function axis(unit: number, end: number, x: (time: number) => number, top: number, bottom: number): string[] {
  const rough = end / unit / MARKS;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const every = ten * [1, 2, 5, 10].find((n) => n * ten >= rough)!;
  const marks = range(Math.floor(end / unit / every + 1e-9) + 1).map((i) => i * every);
  const lines = marks.map((mark) => `M${px(x(mark * unit))} ${top - 4}V${bottom + 6}`);
  return [
    `<path class="grid" d="${lines.join("")}"/>`,
    ...marks.map((mark) => text(x(mark * unit), bottom + 20, "mark", `${Number(mark.toPrecision(3))}`)),
    text(CHART.from, bottom + 38, "small", "Time, in forward passes of mean length on one stage"),
  ];
}

/** Entries in columns from `y` on; adapters without a look of their own share one. */
function legendLines(names: readonly string[], { named, others }: Legend, y: number) {
  const entries = named.map(({ adapter, look }): [Look, string] => [look, names[adapter]!]);
  if (others) entries.push([others.look, `${others.count} more`]);
  const columnWidth = 2 * SWATCH.width + 8 + maxOf(entries.map(([, name]) => widthOf(name))) + 20;
  const columns = Math.max(1, Math.floor((WIDTH - 2 * MARGIN) / columnWidth));
  const drawn = entries.flatMap(([look, name], i) => {
    const [left, top] = [MARGIN + (i % columns) * columnWidth, y + Math.floor(i / columns) * SWATCH.line];
    const swatch = (at: number, kind: string, letter: string) => [
      `<rect class="${kind}${look.id}" x="${px(at)}" y="${top}" width="${SWATCH.width}" height="${SWATCH.height}"/>`,
      text(at + SWATCH.width / 2, top + 11, kind === "f" ? `letter i${look.id}` : "letter", letter),
    ];
    return [
      ...swatch(left, "f", look.letter),
      ...swatch(left + SWATCH.width, "b", look.small),
      text(left + 2 * SWATCH.width + 8, top + 12, "", name),
    ];
  });
  return { drawn, lines: Math.ceil(entries.length / columns) };
}
