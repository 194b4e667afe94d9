// Drawings of a schedule: what they show is what was played, and they fit where they are drawn.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { counted } from "../../src/base/units.ts";
import { legendOf } from "../../src/cli/draw/looks.ts";
import { drawSvg } from "../../src/cli/draw/svg.ts";
import { drawTerminal } from "../../src/cli/draw/terminal.ts";
import { numbersOf } from "../../src/cli/draw/words.ts";
import { makePlan, type Plan, type StageDevice } from "../../src/plan/plan.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import type { Span } from "../../src/schedule/simulate.ts";
import { type SimulatedRun, simulateRun } from "../../src/session/planning/simulated-run.ts";
import { tinySpec } from "../helpers/tiny.ts";

const LAYERS = 11;
const spec = tinySpec({ layers: LAYERS, windows: Array(LAYERS).fill(null) });
const HOST = `<b> & "c" ']]>`;
const device = (ordinal: number): StageDevice => ({
  kind: "cpu",
  name: "made up",
  compute: "f32",
  rowTile: 24,
  threads: 2,
  totalBytes: 2 ** 40,
  freeBytes: 2 ** 40,
  ordinal,
  count: 8,
  note: null,
  host: ordinal % 2 ? HOST : "",
});

const NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
/** Any that a recipe may give, the longest too. */
const randomName = (rng: Rng, i: number): string =>
  [`${i}-`, ...range(rng.below(4) === 0 ? 61 : rng.below(20)).map(() => NAME[rng.below(NAME.length)])].join("");

/** Adapters that differ in all that a schedule sees; `most` steps of each at most. */
function planOf(adapters: number, stages: number, most = 10): Plan {
  const rng = new Rng(adapters, stages);
  const tables = range(adapters).map(
    (i) => `[[adapter]]
name = "${randomName(rng, i)}"
data = "x.jsonl"
batch_size = ${1 + rng.below(5)}
accumulation = ${1 + rng.below(3)}
steps = ${1 + rng.below(most)}
`,
  );
  const recipe = parseRecipe(`[model]\npath = "m"\n[run]\noutput = "o"\ndevice = "cpu"\n${tables.join("")}`, "/here/r.toml");
  const data = recipe.adapters.map(() => {
    const lengths = range(3 + rng.below(20)).map(() => 2 + rng.below(60));
    return { train: lengths.map((length) => ({ length, longest: length, targets: length >> 1 })), eval: [] };
  });
  return makePlan(recipe, spec, data, range(stages).map(device));
}

const STAGES = range(8).map((i) => i + 1);
const crowds = (stages: number) =>
  [1, 2, 3, 5, 8, 14, 23, 30].map((adapters, i) => ({ adapters, widths: widthsFrom(i + stages) }));
/** Every width from 40 to 200 comes with each number of stages. */
const widthsFrom = (i: number) => [40, ...range(20).map((at) => 41 + (i % 8) + 8 * at)];

/** The rows of the stages, without their labels. */
function rowsOf(lines: readonly string[], stages: number): string[][] {
  return lines.slice(0, stages).map((line, stage) => {
    const [, of, row] = /^stage +(\d+) {2}(.*)$/.exec(line)!;
    expect(Number(of)).toBe(stage);
    return [...row!];
  });
}

const isDone = ({ until, simulation }: SimulatedRun): boolean => until === simulation.makespan;
const shareOf = (cells: readonly string[], is: (cell: string) => boolean) => cells.filter(is).length / cells.length;
const isLarge = (cell: string) => cell === "+" || cell !== cell.toLowerCase();
const isSmall = (cell: string) => cell === "-" || cell !== cell.toUpperCase();
const timeOf = (spans: readonly Span[], kind: Span["kind"]) =>
  sum(spans.filter((span) => span.kind === kind).map(({ start, end }) => end - start));

describe.each(STAGES)("in the terminal, of %i stages", (stages) => {
  test("there is a row a stage; no line is wider than the screen; colours change no letter", () => {
    for (const { adapters, widths } of crowds(stages)) {
      const plan = planOf(adapters, stages);
      const simulated = simulateRun(plan);
      for (const width of widths) {
        const plain = drawTerminal(plan, simulated, { width, colour: false });
        const coloured = drawTerminal(plan, simulated, { width, colour: true });
        expect(coloured.map(Bun.stripANSI)).toEqual(plain);
        expect(coloured.slice(0, stages).every((line) => line.includes("\x1b["))).toBe(true);
        expect(plain.some((line) => line.includes("\x1b"))).toBe(false);
        expect(plain.filter((line) => Bun.stringWidth(line) > width)).toEqual([]);
        expect(plain.filter((line) => /^stage +\d/.test(line)).length).toBe(stages);
        expect(plain.slice(0, stages).every((line) => line.length === width)).toBe(true);
        expect(rowsOf(plain, stages)[0]![0]).not.toBe("."); // it has nothing to wait for
      }
    }
  });

  test("letters are what the stage does in the middle of their time: whose, large forward, small backward", () => {
    for (const adapters of [1, 4, 9]) {
      const plan = planOf(adapters, stages, 3);
      const simulated = simulateRun(plan);
      expect(isDone(simulated)).toBe(true);
      const { spans, simulation } = simulated;
      const lines = drawTerminal(plan, simulated, { width: 6000, colour: false }); // wide enough for the whole run
      expect(lines.join(" ")).toContain("Drawn: the whole run.");
      const letters = range(adapters).map((adapter) => lettersOf(lines, plan, adapter));
      for (const [stage, cells] of rowsOf(lines, stages).entries()) {
        const isWrong = (cell: string, column: number) => {
          const time = ((column + 0.5) / cells.length) * simulation.makespan;
          const span = spans[stage]!.find(({ start, end }) => start <= time && time < end);
          if (!span) return cell !== ".";
          return !span.adapters.some((adapter) => letters[adapter]![span.kind === "forward" ? 0 : 1] === cell);
        };
        expect(cells.filter(isWrong)).toEqual([]);
        const segment = (kind: Span["kind"]) => timeOf(spans[stage]!, kind) / simulation.makespan;
        expect(shareOf(cells, isLarge)).toBeCloseTo(segment("forward"), 2);
        expect(shareOf(cells, isSmall)).toBeCloseTo(segment("backward"), 2);
        expect(1 - shareOf(cells, (cell) => cell === ".")).toBeCloseTo(simulation.busy[stage]! / simulation.makespan, 2);
      }
    }
  });
});

/** An adapter's large and small letter, by the legend. */
function lettersOf(lines: readonly string[], { adapters }: Plan, adapter: number): readonly string[] {
  const [, large, small] = new RegExp(`(?:^|  )(\\S)(\\S) ${adapters[adapter]!.name}(?: |$)`, "m").exec(lines.join("\n"))!;
  expect(large!.toLowerCase()).toBe(small!);
  return [large!, small!];
}

const GIVEN = `x/<"&'>.toml: \u0007 in stages`;
const TITLE = GIVEN.replace("\u0007", "?");

describe.each(STAGES)("as SVG, of %i stages", (stages) => {
  test("each pass lies within its lane, where its time is and with all adapters that are in it, and none upon another", () => {
    for (const adapters of [1, 3, 9, 30]) {
      const plan = planOf(adapters, stages);
      const simulated = simulateRun(plan);
      const svg = parse(drawSvg(plan, simulated, GIVEN));
      expect(svg.children.filter(({ name }) => name === "title").map(({ text }) => text)).toEqual([TITLE]);
      const texts = svg.children.filter(({ name }) => name === "text");
      expect(texts[0]!.text).toBe(TITLE);
      for (const said of numbersOf(plan, simulated)) expect(texts.map(({ text }) => text)).toContain(said);
      if (stages > 1) expect(texts.map(({ text }) => text)).toContain(`cpu 1 on ${HOST}`);

      const tracks = svg.children.filter(({ of }) => of["class"] === "track").map(boxOf);
      expect(tracks.length).toBe(stages);
      const marks = texts.filter(({ of }) => of["class"] === "mark");
      const [zero, last] = [marks[0]!, marks.at(-1)!];
      const pixels = (numberOf(last, "x") - numberOf(zero, "x")) / Number(last.text) / simulated.unit;
      const groups = svg.children.filter(({ name }) => name === "g");
      for (const [stage, track] of tracks.entries()) {
        const bottom = tracks[stage + 1]?.top ?? Number.POSITIVE_INFINITY;
        const isHere = (group: Element) => {
          const top = group.children[1]!.name === "path" ? track.top : boxOf(group.children[1]!).top;
          return top >= track.top - 0.01 && top < bottom;
        };
        let before = track.left;
        const passes = groups.filter(({ children }) => children[1]!.name === "rect").filter(isHere);
        const spans = simulated.spans[stage]!.filter(({ kind }) => kind !== "step").slice(0, passes.length);
        expect(passes.length).toBeGreaterThan(0);
        for (const [i, { children }] of passes.entries()) {
          const { kind, pass, adapters: members, start, end } = spans[i]!;
          const names = members.toSorted((a, b) => a - b).map((adapter) => plan.adapters[adapter]!.name);
          expect(children[0]!.text).toBe(`${kind} of pass ${pass}: ${names.join(", ")}`);
          const boxes = children.filter(({ name }) => name === "rect").map(boxOf);
          expect(boxes.length).toBe(members.length);
          let top = track.top;
          for (const box of boxes) {
            expect([box.left, box.right]).toEqual([boxes[0]!.left, boxes[0]!.right]);
            expect(box.top).toBeCloseTo(top, 5);
            top = box.bottom;
          }
          expect(top).toBeCloseTo(track.bottom, 5);
          const { left, right } = boxes[0]!;
          expect(left).toBeGreaterThanOrEqual(before - 1e-9);
          expect(right).toBeLessThanOrEqual(track.right + 1e-9);
          expect(Math.abs(left - track.left - start * pixels)).toBeLessThan(0.05);
          expect(Math.abs(right - Math.min(track.right, track.left + end * pixels))).toBeLessThan(0.05);
          before = right;
        }
      }
      const picture = boxOf(svg);
      for (const { of } of everyElement(svg)) {
        if (of["x"]) expect(Number(of["x"])).toBeLessThanOrEqual(picture.right);
        if (of["y"]) expect(Number(of["y"])).toBeLessThanOrEqual(picture.bottom);
      }
    }
  });
});

test("numbers that are reported are the simulation's, and those of what is drawn", () => {
  for (const stages of STAGES.slice(1))
    for (const adapters of [1, 4, 9]) {
      const plan = planOf(adapters, stages, 3);
      const simulated = simulateRun(plan);
      const { simulation, spans } = simulated;
      const busy = sum(spans.map((of) => timeOf(of, "forward") + timeOf(of, "backward")));
      const bubble = 1 - busy / (stages * Math.max(...spans.flat().map(({ end }) => end)));
      expect(simulation.bubble).toBeCloseTo(bubble, 9);
      const [said] = numbersOf(plan, simulated);
      expect(said).toStartWith(`Bubble ${(100 * bubble).toFixed(1)} % of all stages' time`);
      expect(said).toEndWith(
        ` (${counted(new Set(spans[0]!.flatMap(({ pass }) => pass ?? [])).size, "pass", "passes")}, the whole run).`,
      );
    }
  const cut = simulateRun(planOf(4, 2), 5);
  expect(cut.whole).toBe(false);
  expect(cut.simulation.passes).toBeLessThan(10); // what was begun was finished
  expect(numbersOf(planOf(4, 2), cut)[0]).toEndWith(`the first ${cut.simulation.passes} passes).`);
});

describe("looks", () => {
  const many = legendOf([{ adapters: range(60) } as unknown as Span]);
  const looks = many.named.map(({ look }) => look);

  test("are one for each adapter as far as there are letters; the rest share one, and are counted", () => {
    expect([looks.length + many.others!.count, many.look(59)]).toEqual([60, many.others!.look]);
    for (const of of ["letter", "small", "strong", "pale", "deep"] as const) {
      const all = [...looks, many.others!.look].map((look) => look[of]);
      expect(new Set(all).size).toBe(all.length);
    }
    for (const adapters of [12, 60]) {
      const plan = planOf(adapters, 1);
      const svg = drawSvg(plan, simulateRun(plan), "t");
      const passes = everyElement(parse(svg)).filter(({ name, text }) => name === "title" && text.includes(" of pass "));
      const drawn = new Set(passes.flatMap(({ text }) => text.split(": ")[1]!.split(", "))).size;
      const rest = Number(/>(\d+) more</.exec(svg)?.[1] ?? 0);
      expect([drawn > 9, rest]).toEqual([true, Math.max(0, drawn - looks.length)]);
      const fills = [...svg.matchAll(/^\.f\d+ \{ fill: (#[0-9a-f]{6}) \}/gm)].map(([, fill]) => fill);
      expect([fills.length, new Set(fills).size]).toEqual(Array(2).fill(drawn - rest + Math.min(1, rest)));
      if (adapters === 60) expect(rest).toBeGreaterThan(0);
    }
  });

  test("can be seen: letters on their colours, and passes against idle time and each other's direction", () => {
    for (const { strong, pale, deep, ink } of [...looks, many.others!.look]) {
      expect(contrast(strong, ink)).toBeGreaterThan(4.5);
      expect(contrast(pale, TEXT)).toBeGreaterThan(4.5);
      expect(contrast(deep, "#ffffff")).toBeGreaterThan(4.5);
      for (const other of [pale, LANE]) expect(distance(strong, other)).toBeGreaterThan(0.12);
      expect(distance(pale, LANE)).toBeGreaterThan(0.08);
    }
    for (const [i, { strong }] of looks.entries())
      for (const other of looks.slice(0, i)) expect(distance(strong, other.strong)).toBeGreaterThan(0.05);
  });
});

/** As in the SVG's style. */
const TEXT = "#24292f";
const LANE = "#f3f4f6";

/** Red, green and blue in proportion to light. */
const lightOf = (hex: string) =>
  [1, 3, 5].map((at) => {
    const value = Number.parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  }) as [number, number, number];

/** As the web's guidelines (WCAG 2) define it: 4.5 for small letters. */
function contrast(a: string, b: string): number {
  const [dark, light] = [a, b]
    .map(lightOf)
    .map(([r, g, blue]) => 0.2126 * r + 0.7152 * g + 0.0722 * blue)
    .sort((x, y) => x - y) as [number, number];
  return (light + 0.05) / (dark + 0.05);
}

/** In Oklab: 0.02 can just be seen side by side. */
function distance(one: string, two: string): number {
  const [a, b] = [one, two].map((hex) => {
    const [r, g, blue] = lightOf(hex);
    const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * blue);
    const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * blue);
    const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * blue);
    return [
      0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
      1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
      0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
    ];
  });
  return Math.hypot(...a!.map((value, i) => value - b![i]!));
}

type Element = {
  readonly name: string;
  readonly of: Readonly<Record<string, string>>;
  readonly children: Element[];
  text: string;
};

const numberOf = ({ of }: Element, name: string): number => {
  expect(of[name]).toMatch(/^-?\d+(\.\d+)?$/);
  return Number(of[name]);
};
function boxOf(element: Element) {
  const [left, top] = element.of["x"] === undefined ? [0, 0] : [numberOf(element, "x"), numberOf(element, "y")];
  return { left, top, right: left + numberOf(element, "width"), bottom: top + numberOf(element, "height") };
}
const everyElement = (element: Element): Element[] => [element, ...element.children.flatMap(everyElement)];

const ENTITIES: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', "#x27": "'", "#39": "'" };
const unescaped = (text: string): string => {
  expect(text).not.toMatch(/[<>]|&(?!(amp|lt|gt|quot|#x27|#39);)/);
  expect([...text].every((letter) => letter >= " " || letter === "\n")).toBe(true);
  return text.replace(/&([^;]+);/g, (_, entity) => ENTITIES[entity]!);
};

/** The outermost element of a strict subset of XML; fails where tags do not close each other or something is not escaped. */
function parse(xml: string): Element {
  const root: Element = { name: "", of: {}, children: [], text: "" };
  const open = [root];
  let at = 0;
  for (const match of xml.matchAll(/<(\/?)([a-z]+)((?: [\w:-]+="[^"<]*")*)(\/?)>/gi)) {
    const [tag, closing, name, attributes, empty] = match as unknown as [string, string, string, string, string];
    open.at(-1)!.text += unescaped(xml.slice(at, match.index));
    at = match.index + tag.length;
    if (closing) {
      expect(open.pop()!.name).toBe(name);
      continue;
    }
    const pairs = [...attributes.matchAll(/([\w:-]+)="([^"]*)"/g)].map(([, key, value]) => [key!, unescaped(value!)] as const);
    expect(new Set(pairs.map(([key]) => key)).size).toBe(pairs.length);
    const element: Element = { name, of: Object.fromEntries(pairs), children: [], text: "" };
    open.at(-1)!.children.push(element);
    if (!empty) open.push(element);
  }
  expect([open.length, root.text + xml.slice(at), root.children.length]).toEqual([1, "\n", 1]);
  return root.children[0]!;
}
