// The schedule in a terminal: a row a stage, time to the right, a letter and a colour an adapter. The text is the same with
// colours and without.

import { maxOf, range } from "../../base/shape.ts";
import { visibleLine } from "../../base/terminal.ts";
import type { Plan } from "../../plan/plan.ts";
import { drawnUntil, type SimulatedRun, type Span } from "../../session/planning/simulated-run.ts";
import { adaptersOf, type Legend, type Look, legendOf } from "./looks.ts";
import { shownOf } from "./words.ts";

export type Screen = { readonly width: number; readonly colour: boolean };

/** Columns of a forward pass: one for each adapter in it, but few enough that several passes fit. */
const MOST_COLUMNS = 3;
/** Narrower than this nothing can be read. */
const LEAST_WIDTH = 40;

const KEY =
  "Time goes to the right. Large letters are forward passes, small ones backward passes, dots idle time; steps says whose step the first stage makes, * several.";

/** What is in a column of a row. */
type Cell = { readonly letter: string; readonly paint: { readonly on: string; readonly text: string } | null };
const IDLE: Cell = { letter: ".", paint: null };
const NOTHING: Cell = { letter: " ", paint: null };
const SEVERAL: Cell = { letter: "*", paint: null };

const forwardCell = ({ letter, strong, ink }: Look): Cell => ({ letter, paint: { on: strong, text: ink } });
const backwardCell = ({ small, deep }: Look): Cell => ({ letter: small, paint: { on: deep, text: "#ffffff" } });

/** Lines of at most the screen's width: the stages' rows, which adapter steps when, and the legend. */
export function drawTerminal(plan: Plan, simulated: SimulatedRun, screen: Screen): string[] {
  const { colour } = screen;
  const width = Math.max(screen.width, LEAST_WIDTH);
  const indent = `stage ${plan.stages.length - 1}  `.length;
  const columns = width - indent;
  const perPass = Math.min(MOST_COLUMNS, Math.max(1, Math.round(simulated.adaptersInPass)));
  const end = drawnUntil(simulated, columns / perPass);
  const drawn = simulated.spans.map((spans) => spans.filter(({ start }) => start < end));
  const legend = legendOf(drawn[0]!);
  const rows = drawn.map((spans, stage) => {
    const label = `stage ${`${stage}`.padStart(`${drawn.length - 1}`.length)}  `;
    return label + line(stageCells(spans, columns, end, legend), colour);
  });
  const steps = "steps".padEnd(indent) + line(stepCells(drawn[0]!, columns, end, legend), colour);
  const key = `${KEY} ${shownOf(simulated, end)}`;
  return [...rows, steps.trimEnd(), "", ...legendLines(plan, legend, width, colour), ...wrapped(key, width)];
}

/** What the stage does in the middle of each column's time; adapters of a pass take turns. */
function stageCells(spans: readonly Span[], columns: number, end: number, legend: Legend): Cell[] {
  const width = end / columns;
  let at = 0;
  return range(columns).map((column) => {
    const time = (column + 0.5) * width;
    while (at < spans.length && spans[at]!.end <= time) at++;
    const span = spans[at];
    if (!span || span.start > time) return IDLE;
    const first = Math.ceil(span.start / width - 0.5);
    const adapters = adaptersOf(span);
    const look = legend.look(adapters[(column - first) % adapters.length]!);
    return span.kind === "forward" ? forwardCell(look) : backwardCell(look);
  });
}

function stepCells(spans: readonly Span[], columns: number, end: number, legend: Legend): Cell[] {
  const cells: Cell[] = range(columns).map(() => NOTHING);
  for (const { kind, adapters, start } of spans) {
    if (kind !== "step") continue;
    const column = Math.min(columns - 1, Math.floor((start * columns) / end));
    const alone = adapters.length === 1 && cells[column] === NOTHING;
    cells[column] = alone ? { letter: legend.look(adapters[0]!).letter, paint: null } : SEVERAL;
  }
  return cells;
}

/** Neighbours of one colour share its escapes. */
function line(cells: readonly Cell[], colour: boolean): string {
  let [text, from] = ["", 0];
  for (let to = 1; to <= cells.length; to++) {
    const { paint } = cells[from]!;
    if (to < cells.length && cells[to]!.paint?.on === paint?.on) continue;
    const letters = cells.slice(from, to).map(({ letter }) => letter);
    text += colour && paint ? painted(letters.join(""), paint) : letters.join("");
    from = to;
  }
  return text;
}

const foreground = (rgb: string): string => Bun.color(rgb, "ansi-256")!;
const painted = (text: string, { on, text: ink }: NonNullable<Cell["paint"]>): string =>
  `${foreground(on).replace("[38;", "[48;")}${foreground(ink)}${text}\x1b[0m`;

/** "Aa dates  Bb tickets", in columns. */
function legendLines(plan: Plan, { named, others }: Legend, width: number, colour: boolean): string[] {
  const all = named.map(({ adapter, look }) => ({ look, name: visibleLine(plan.adapters[adapter]!.name) }));
  if (others) all.push({ look: others.look, name: `${others.count} more` });
  const longest = Math.min(maxOf(all.map(({ name }) => name.length)), width - 3);
  const entries = all.map(({ look, name }) => {
    const letters = line([forwardCell(look), backwardCell(look)], colour);
    return `${letters} ${(name.length > longest ? `${name.slice(0, longest - 1)}…` : name).padEnd(longest)}`;
  });
  const inLine = Math.floor((width + 2) / (longest + 5));
  return range(Math.ceil(entries.length / inLine)).map((i) =>
    entries
      .slice(i * inLine, (i + 1) * inLine)
      .join("  ")
      .trimEnd(),
  );
}

/** A text in lines of at most `width` columns. */
export const wrapped = (text: string, width: number): string[] => Bun.wrapAnsi(text, Math.max(width, LEAST_WIDTH)).split("\n");
