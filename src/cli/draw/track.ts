// One stage of the picture: its passes as rectangles, its steps as ticks.

import type { Span } from "../../session/planning/simulated-run.ts";
import { adaptersOf, type Legend, type Look } from "./looks.ts";
import { hundredth, px, xml } from "./xml.ts";

export const TRACK = 40;
/** How far the tick of a step stands out above its track. */
export const TICK = 8;
/** A letter needs so much room. */
const LETTER = { width: 8, height: 9, drop: 3.2 };

export type Track = {
  readonly stage: number;
  readonly spans: readonly Span[];
  readonly y: number;
  /** Where a time lies. */
  readonly x: (time: number) => number;
  readonly names: readonly string[];
  readonly legend: Legend;
};

/** Elements of a track; what a mouse rests on says what it is. */
export const drawTrack = (track: Track): string[] =>
  track.spans.map((span) => {
    const adapters = adaptersOf(span);
    const names = adapters.map((adapter) => track.names[adapter]!).join(", ");
    const what = span.pass === null ? `step of ${names}` : `${span.kind} of pass ${span.pass}: ${names}`;
    const shape = span.pass === null ? tick(track, span) : box(track, span, adapters);
    return `<g><title>${xml(what)}</title>${shape}</g>`;
  });

const tick = ({ x, y }: Track, { start }: Span): string => `<path class="step" d="M${px(x(start))} ${y - TICK}V${y + 2}"/>`;

/** The adapters of a pass lie above each other. Edges are rounded, not sizes, so that neighbours meet and do not overlap. */
function box({ x, y, legend }: Track, { kind, start, end }: Span, adapters: readonly number[]): string {
  const [left, right] = [hundredth(x(start)), hundredth(x(end))];
  const edge = (i: number) => hundredth(y + (i * TRACK) / adapters.length);
  const parts = adapters.map((adapter, i) => {
    const look = legend.look(adapter);
    const [top, width, height] = [edge(i), hundredth(right - left), hundredth(edge(i + 1) - edge(i))];
    const of = kind === "forward" ? "f" : "b";
    const rect = `<rect class="${of}${look.id}" x="${left}" y="${top}" width="${width}" height="${height}"/>`;
    return rect + (fits(width, height) ? letter(look, kind, left + width / 2, top + height / 2) : "");
  });
  return parts.join("");
}

const fits = (width: number, height: number): boolean => width >= LETTER.width && height >= LETTER.height;
const letter = ({ id, letter: large, small }: Look, kind: Span["kind"], x: number, y: number): string =>
  `<text class="letter${kind === "forward" ? ` i${id}` : ""}" x="${px(x)}" y="${px(y + LETTER.drop)}">${kind === "forward" ? large : small}</text>`;
