// How near a pipeline's schedules come to the shortest there can be, simulated on the token lengths of real data.
//
//   scripts/bench/schedule --data FILE [--rows N] [--write]
//
// FILE is JSONL with a question and an answer in each row. Each adapter trains one epoch of it in an order of its own. Nothing
// is measured, so nothing depends on the machine: a row costs 1 forward and 2 backward on each stage. --write puts the tables
// in the place of those in docs/measurements/schedule.md; what is written around them stays.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { range, sum } from "../../src/base/shape.ts";
import { rowsOf } from "../../src/data/data-file.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { SEND_BUFFERS } from "../../src/plan/memory.ts";
import { ROW_TIMES, type ScheduleKind, type StageAction } from "../../src/schedule/lists.ts";
import { type Joining, type PipelineOptions, pipeline } from "../../src/schedule/pipeline.ts";
import { type Simulation, simulate } from "../../src/schedule/simulate.ts";

const ROOT = join(import.meta.dir, "..", "..");
const MODEL = join(ROOT, "models", "SmolLM2-135M-Instruct");
const FILE = join(ROOT, "docs", "measurements", "schedule.md");
const [BEGIN, END] = ["<!-- tables: scripts/bench/schedule -->", "<!-- end of tables -->"];

const BATCH = 8;
/** A GPU's tiles and passes (plan/plan.ts). */
const LIMITS = { tokensPerMicrobatch: 400, passRows: 4096, rowTile: 128 };
const STAGES = [4, 8];
const ADAPTERS = [4, 8, 12, 16];
const SHARES = [0, 0.2, 0.35, 0.5];
/** Of a share that is left out more numbers of adapters are tried: whole micro-batches are left over at some of them. */
const MORE_ADAPTERS = [4, 5, 6, 7, 8, 10, 12, 16];

const { values } = parseArgs({
  options: { data: { type: "string" }, rows: { type: "string" }, write: { type: "boolean", default: false } },
});
if (values.data === undefined) throw new Error("--data names a JSONL file whose rows have a question and an answer");

/** Tokens that each row feeds to the model, without a chat template: its end-of-text is only a target. */
function lengthsIn(file: string): number[] {
  const { encode } = loadTokenizer(MODEL);
  const lengths: number[] = [];
  for (const row of rowsOf({ name: file, path: file })) {
    if ("fault" in row) throw new Error(`${file}:${row.source.line}: ${row.fault}`);
    const { question, answer } = row.fields;
    if (typeof question !== "string" || typeof answer !== "string")
      throw new Error(`${file}:${row.source.line}: expected a question and an answer`);
    lengths.push(encode(question).length + encode(answer).length);
  }
  return lengths.slice(0, values.rows === undefined ? undefined : Number(values.rows));
}

const lengths = lengthsIn(values.data);

type Setting = {
  readonly stages: number;
  readonly adapters: number;
  /** Passes in flight beyond those of 1F1B. */
  readonly more: number;
  readonly kind?: ScheduleKind;
  readonly packing?: PipelineOptions["packing"];
  readonly spare?: number;
};
type Result = Simulation & { readonly meanRows: number; readonly spread: number };

function result({ stages, adapters, more, kind = "lorapp", packing = "balanced", spare }: Setting): Result {
  const own = { lengths, batchSize: BATCH, accumulation: 1, epochs: 1, steps: null, shuffle: true };
  const joining = range(adapters).map((adapter): Joining => ({ adapter, from: 0, work: { ...own, seed: adapter } }));
  const inFlight = range(stages).map((stage) => stages - stage + more);
  const options = {
    ...LIMITS,
    kind,
    packing,
    stages,
    inFlight,
    sendBuffers: SEND_BUFFERS,
    ...(spare === undefined ? {} : { spare }),
  };
  let squares = 0;
  function* watched(actions: Iterable<StageAction>): Generator<StageAction> {
    for (const item of actions) {
      if (item.stage === 0 && item.action.kind === "forward") squares += item.action.pass.rows ** 2;
      yield item;
    }
  }
  const of = simulate(watched(pipeline(joining, options)), { stages, times: ROW_TIMES, sendBuffers: SEND_BUFFERS });
  const meanRows = of.rows / of.passes;
  return { ...of, meanRows, spread: Math.sqrt(Math.max(0, squares / of.passes - meanRows ** 2)) };
}

const overBound = ({ makespan, lowerBound }: Simulation): string => (makespan / lowerBound).toFixed(3);
const segment = (ratio: number | null): string => (ratio === null ? "" : ratio.toFixed(3));
const line = (cells: readonly (string | number)[]): string => `| ${cells.join(" | ")} |`;
const table = (titles: readonly string[], left: number, rows: readonly (readonly (string | number)[])[]): string =>
  [titles, titles.map((_, i) => (i < left ? "---" : "---:")), ...rows].map(line).join("\n");

function schedules(): string {
  const kinds = (stages: number): Record<string, Omit<Setting, "stages" | "adapters">> => ({
    "LoRAPP, balanced": { more: stages },
    "LoRAPP, one adapter a pass": { more: stages, packing: "alone" },
    "1F1B": { more: 0, kind: "1f1b" },
    GPipe: { more: 0, kind: "gpipe" },
  });
  const rows = STAGES.flatMap((stages) =>
    ADAPTERS.flatMap((adapters) =>
      Object.entries(kinds(stages)).map(([name, setting]) => {
        const of = result({ stages, adapters, ...setting });
        const pass = `${of.meanRows.toFixed(0)} (${of.spread.toFixed(0)})`;
        const numbers = [overBound(of), segment(of.bubble), segment(of.steadyBubble), pass, of.peakRows[0]!];
        return [stages, adapters, name, ...numbers];
      }),
    ),
  );
  const titles = [
    "stages",
    "adapters",
    "schedule",
    "makespan / bound",
    "bubble",
    "steady bubble",
    "rows a pass (sd)",
    "peak rows",
  ];
  return table(titles, 3, rows);
}

function spares(): string {
  const rows = STAGES.flatMap((stages) =>
    ADAPTERS.flatMap((adapters) =>
      (["balanced", "alone"] as const).map((packing) => {
        const cells = [0, stages / 2, stages].map((more) => {
          const of = result({ stages, adapters, more, packing });
          return `${overBound(of)} (${of.peakRows[0]})`;
        });
        return [stages, adapters, packing === "alone" ? "one adapter a pass" : packing, ...cells];
      }),
    ),
  );
  return table(["stages", "adapters", "passes", "D - s", "D - s + D / 2", "D - s + D"], 3, rows);
}

function segments(): string {
  const rows = STAGES.flatMap((stages) =>
    SHARES.map((spare) => {
      const results = MORE_ADAPTERS.map((adapters) => result({ stages, adapters, more: stages, spare }));
      const worst = results.reduce((a, b) => (Number(overBound(b)) > Number(overBound(a)) ? b : a));
      return [stages, spare, ...results.map((of) => `${overBound(of)} (${of.meanRows.toFixed(0)})`), overBound(worst)];
    }),
  );
  return table(["stages", "left out", ...MORE_ADAPTERS.map(String), "worst"], 2, rows);
}

/** What the tables are of, with what is needed to make them again. */
function heading(): string {
  const git = (...words: string[]) =>
    Bun.spawnSync(["git", ...words], { cwd: ROOT })
      .stdout.toString()
      .trim();
  const commit = `${git("rev-parse", "--short", "HEAD") || "?"}${git("status", "--porcelain") === "" ? "" : "-dirty"}`;
  const mean = sum(lengths) / lengths.length;
  const sd = Math.sqrt(sum(lengths.map((length) => (length - mean) ** 2)) / lengths.length);
  const [least, most] = lengths.reduce(([a, b], length) => [Math.min(a, length), Math.max(b, length)], [Infinity, 0]);
  const rows = `${lengths.length} rows of ${mean.toFixed(0)} tokens (standard deviation ${sd.toFixed(0)}, ${least} to ${most})`;
  const date = new Date().toISOString().slice(0, 16).replace("T", " ");
  return `${date} UTC, ${commit}: ${rows}.`;
}

function keep(tables: string): void {
  const text = existsSync(FILE) ? readFileSync(FILE, "utf8") : `# Schedules of a pipeline\n\n${BEGIN}\n${END}\n`;
  const [from, to] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (from < 0 || to < from) throw new Error(`${FILE} has not the two comments that the tables stand between`);
  writeFileSync(FILE, `${text.slice(0, from)}${BEGIN}\n\n${tables}\n\n${text.slice(to)}`);
}

const tables = `${heading()}

### Schedules

${schedules()}

### Passes in flight

${spares()}

### The share of passes that is left out

${segments()}`;
process.stdout.write(`${tables}\n`);
if (values.write) keep(tables);
