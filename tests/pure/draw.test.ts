// Drawings of a schedule: what they show is what was played, and they fit where they are drawn.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { type Rehearsal, rehearse } from "../../src/cli/draw/rehearsal.ts";
import { drawSvg } from "../../src/cli/draw/svg.ts";
import { drawTerminal } from "../../src/cli/draw/terminal.ts";
import { numbersOf } from "../../src/cli/draw/words.ts";
import { makePlan, type Plan, type StageDevice } from "../../src/plan/plan.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { tinyFamilies } from "../helpers/tiny.ts";

const LAYERS = 8;
const spec = { ...tinyFamilies["llama"]!, layers: LAYERS, windows: Array.from({ length: LAYERS }, () => null) };
const device = (i: number): StageDevice => ({
  kind: "cpu",
  name: "made up",
  compute: "f32",
  rowTile: 24,
  paddedRanks: [],
  totalBytes: 2 ** 40,
  freeBytes: 2 ** 40,
  ordinal: i,
  count: 8,
  note: null,
  host: i % 2 ? "gpu-b" : "",
});

/** Adapters that differ in all that a schedule sees. */
function planOf(adapters: number, stages: number, nameOf = (i: number) => `a${i}`): Plan {
  const rng = new Rng(adapters, stages);
  const tables = range(adapters).map(
    (i) => `[[adapter]]
name = "${nameOf(i)}"
data = "x.jsonl"
batch_size = ${1 + rng.below(5)}
accumulation = ${1 + rng.below(3)}
steps = ${2 + rng.below(9)}
`,
  );
  const recipe = parseRecipe(`[model]\npath = "m"\n[run]\noutput = "o"\ndevice = "cpu"\n${tables.join("")}`, "/here/r.toml");
  const data = recipe.adapters.map(() => {
    const lengths = range(3 + rng.below(20)).map(() => 2 + rng.below(60));
    return { train: lengths.map((length) => ({ length, longest: length, targets: length >> 1 })), eval: [] };
  });
  return makePlan(recipe, spec, data, range(stages).map(device));
}

const CASES = [
  [1, 1],
  [1, 2],
  [3, 2],
  [8, 4],
  [30, 4],
  [60, 3],
  [5, 8],
] as const;

const wide = (text: string): number => Bun.stringWidth(text);

describe.each(CASES)("%i adapters on %i stages", (adapters, stages) => {
  const plan = planOf(adapters, stages);
  const rehearsal = rehearse(plan);

  test("a row a stage, no line wider than the screen, and the same text without colours", () => {
    for (const width of [40, 57, 100, 200]) {
      const plain = drawTerminal(plan, rehearsal, { width, colour: false });
      const coloured = drawTerminal(plan, rehearsal, { width, colour: true });
      expect(coloured.map((line) => Bun.stripANSI(line))).toEqual(plain);
      expect(coloured.some((line) => line.includes("\x1b["))).toBe(true);
      expect(plain.every((line) => wide(line) <= width)).toBe(true);
      expect(plain.filter((line) => /^stage \d+ {2}/.test(line)).length).toBe(stages);
      // Where there is something to do the first stage does not stand idle from the start, and the others wait for it.
      const rows = plain.slice(0, stages).map((line) => line.slice(`stage ${stages - 1}  `.length));
      expect(rows[0]!.startsWith(".")).toBe(false);
      if (stages > 1) expect(rows[1]!.startsWith(".")).toBe(true);
    }
  });

  test("letters are as many as the time that a stage is busy", () => {
    const width = 200;
    const rows = drawTerminal(plan, rehearsal, { width, colour: false }).slice(0, stages);
    for (const [stage, row] of rows.entries()) {
      const cells = [...row.slice(`stage ${stages - 1}  `.length)];
      const idle = cells.filter((cell) => cell === ".").length / cells.length;
      const share = busyShare(rehearsal, stage, cells.length);
      expect(Math.abs(1 - idle - share), `stage ${stage}`).toBeLessThan(0.15);
    }
  });

  test("the SVG is XML, its passes lie in their lanes and meet without overlapping", () => {
    const svg = drawSvg(plan, rehearsal, 'r.toml: <"&> in stages');
    const elements = parse(svg);
    expect(elements[0]!.name).toBe("svg");
    expect(svg).toContain("r.toml: &lt;&quot;&amp;&gt; in stages");
    const height = Number(elements[0]!.of["height"]);
    const boxes = elements.filter(({ name, of }) => name === "rect" && /^[fb]\d+$/.test(of["class"] ?? ""));
    const lanes = elements.filter(({ name, of }) => name === "rect" && of["class"] === "lane");
    expect(lanes.length).toBe(stages);
    const number = (of: Record<string, string>, key: string) => Number(of[key]);
    for (const lane of lanes) {
      const [top, bottom] = [number(lane.of, "y"), number(lane.of, "y") + number(lane.of, "height")];
      const [from, to] = [number(lane.of, "x"), number(lane.of, "x") + number(lane.of, "width")];
      expect(bottom).toBeLessThanOrEqual(height);
      const inLane = boxes.filter(({ of }) => number(of, "y") >= top - 0.01 && number(of, "y") < bottom);
      expect(inLane.length).toBeGreaterThan(0);
      const edges: (readonly [number, number])[] = [];
      for (const { of } of inLane) {
        const [x, y] = [number(of, "x"), number(of, "y")];
        expect(x).toBeGreaterThanOrEqual(from - 0.01);
        expect(x + number(of, "width")).toBeLessThanOrEqual(to + 0.02);
        expect(y + number(of, "height")).toBeLessThanOrEqual(bottom + 0.02);
        if (Math.abs(y - top) < 0.01) edges.push([x, x + number(of, "width")]);
      }
      edges.sort(([a], [b]) => a - b);
      for (const [i, [x]] of edges.entries()) if (i > 0) expect(x).toBeGreaterThanOrEqual(edges[i - 1]![1] - 0.011);
    }
  });
});

/** Of the drawn time, the share in which a stage does something. */
function busyShare({ spans, unit, until, firstBack, adaptersInPass }: Rehearsal, stage: number, columns: number): number {
  const perPass = Math.min(3, Math.max(1, Math.round(adaptersInPass)));
  const end = Math.min(until, Math.max((columns / perPass) * unit, 1.75 * firstBack));
  let busy = 0;
  for (const { start, end: to } of spans[stage]!) busy += Math.max(0, Math.min(to, end) - Math.min(start, end));
  return busy / end;
}

test("adapters are told apart: a fill each, as far as there are letters, and the rest are named as such", () => {
  for (const [adapters, own] of [
    [12, 12],
    [60, 45],
  ] as const) {
    const plan = planOf(adapters, 1);
    const rehearsal = rehearse(plan);
    const fills = [...drawSvg(plan, rehearsal, "t").matchAll(/^\.f\d+ \{ fill: (#[0-9a-f]{6}) \}/gm)].map(([, fill]) => fill);
    expect(new Set(fills).size).toBe(fills.length);
    const drawn = new Set(rehearsal.spans[0]!.flatMap((span) => span.adapters));
    expect(fills.length).toBe(Math.min(drawn.size, own) + (drawn.size > own ? 1 : 0));
  }
});

test("long names are cut in the terminal, and numbers are the simulation's", () => {
  const plan = planOf(4, 2, (i) => `${"x".repeat(62)}${i}`);
  const rehearsal = rehearse(plan);
  expect(drawTerminal(plan, rehearsal, { width: 40, colour: false }).every((line) => wide(line) <= 40)).toBe(true);
  const [said] = numbersOf(plan, rehearsal);
  expect(said).toContain(`Bubble ${(100 * rehearsal.simulation.bubble).toFixed(1)} %`);
  expect(rehearsal.whole).toBe(true);
  expect(rehearse(plan, 5).whole).toBe(false);
});

type Element = { readonly name: string; readonly of: Record<string, string> };

/** Elements in order; throws where tags do not close each other or an attribute is not quoted. */
function parse(xml: string): Element[] {
  const open: string[] = [];
  const elements: Element[] = [];
  let at = 0;
  for (const match of xml.matchAll(/<(\/?)([a-zA-Z]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/g)) {
    const between = xml.slice(at, match.index);
    if (/[<>]/.test(between) || /&(?!(amp|lt|gt|quot|#x?[0-9a-f]+);)/i.test(between)) throw new Error(`text ${between}`);
    at = match.index + match[0].length;
    const [, closing, name, attributes, empty] = match;
    if (closing) {
      if (open.pop() !== name) throw new Error(`</${name}> closes nothing`);
      continue;
    }
    const of = Object.fromEntries([...attributes!.matchAll(/([\w:-]+)="([^"]*)"/g)].map(([, key, value]) => [key!, value!]));
    elements.push({ name: name!, of });
    if (!empty) open.push(name!);
  }
  if (open.length > 0 || xml.slice(at).trim() !== "") throw new Error(`left open: ${open.join(", ")}`);
  return elements;
}
