// `mlora plan RECIPE`: what a run would do, without doing it.

import { basename } from "node:path";
import { sum } from "../base/shape.ts";
import { jsonText, visible, writeStdout } from "../base/terminal.ts";
import { count, formatBytes } from "../base/units.ts";
import type { Dataset } from "../data/dataset.ts";
import { linearsOfModel } from "../families/linears.ts";
import { writeFileAtomic } from "../files/atomic.ts";
import type { Placement } from "../methods/adapter.ts";
import { memoryModel } from "../plan/memory-model.ts";
import { countModules } from "../plan/places.ts";
import { type AdapterPlan, type Plan, type StagePlan, totalBytes, totalMemory } from "../plan/plan.ts";
import type { Overrides } from "../recipe/recipe.ts";
import { type Prepared, prepare, shortPath } from "../session/prepare.ts";
import { adviceFor } from "./draw/advice.ts";
import { screenOf } from "./draw/screen.ts";
import { type SimulatedRun, simulateRun } from "./draw/simulated-run.ts";
import { drawSvg } from "./draw/svg.ts";
import { drawTerminal, type Screen, wrapped } from "./draw/terminal.ts";
import { assumptionsOf, layersOf, numbersOf, overBound, percent, placeOf } from "./draw/words.ts";
import { fileOf } from "./flags.ts";
import { readProgress } from "./reading.ts";
import { table } from "./table.ts";

export type PlanOptions = Overrides & {
  readonly json?: boolean;
  /** Where the schedule is drawn to. */
  readonly svg?: string;
};

export async function plan(recipePath: string, options: PlanOptions): Promise<void> {
  const svg = options.svg === undefined ? null : fileOf("svg", options.svg);
  using progress = readProgress();
  const prepared = await prepare(recipePath, options, progress);
  progress[Symbol.dispose]();
  const { plan } = prepared;
  const simulated = plan.stages.length > 1 || svg !== null ? simulateRun(plan) : null;
  if (svg !== null) writeFileAtomic(svg, drawSvg(plan, simulated!, titleOf(plan)));
  const screen = screenOf(process.stdout);
  const text = options.json
    ? jsonText(planJson(prepared, simulated), 2)
    : [...planText(prepared).map(visible), ...scheduleText(prepared, simulated, screen), ...drawnText(svg).map(visible)].join(
        "\n",
      );
  writeStdout(`${text}\n`, { painted: options.json !== true && screen.colour });
}

/** For machines: every number of the text, by name. */
export function planJson({ plan, data, notices }: Prepared, simulated: SimulatedRun | null) {
  const { recipe, spec, device, adapters, stages, tokensPerMicrobatch } = plan;
  const { sizes } = stages[0]!;
  const memory = totalMemory(plan);
  return {
    recipe: recipe.path,
    model: { path: recipe.model.path, ...spec, windows: [...new Set(spec.windows)], layerRopes: [...new Set(spec.layerRopes)] },
    device,
    output: recipe.run.output,
    seed: recipe.run.seed,
    tokens_per_microbatch: tokensPerMicrobatch,
    rows_per_pass: sizes.rows,
    recomputation: sizes.recomputation,
    slots: plan.slots,
    stages: stages.map(({ layerRange, memory: of, inFlight, device: { ordinal } }) => ({
      layers: [layerRange.from, layerRange.to],
      device: ordinal,
      in_flight: inFlight,
      memory_bytes: { ...of, total: totalBytes(of) },
    })),
    adapters: adapters.map((adapter, i) => ({
      name: adapter.name,
      rank: adapter.trainedRank ?? adapter.rank,
      frozen_rank: adapter.rank - (adapter.trainedRank ?? adapter.rank),
      alpha: adapter.recipe.alpha,
      scale: adapter.scale,
      dropout: adapter.recipe.dropout,
      targets: adapter.targets,
      modules: countModules(adapter, spec.layers),
      ...(adapter.places ? { places: trainedPlaces(adapter, adapter.places) } : {}),
      learning_rate: adapter.recipe.optimizer.learningRate,
      batch_size: adapter.work.batchSize,
      accumulation: adapter.work.accumulation,
      rows: adapter.rows,
      eval_rows: adapter.evalRows,
      truncated_rows: data[i]!.counts.truncated,
      dropped_rows: data[i]!.counts.dropped,
      steps: adapter.steps,
      tokens: adapter.tokens,
      parameters: adapter.parameters,
    })),
    notices,
    memory_bytes: { ...memory, total: totalBytes(memory) },
    memory_model: memoryModel(plan),
    ...(simulated && stages.length > 1 ? { schedule: scheduleJson(simulated) } : {}),
  };
}

/** As `rank`: of an adapter with a frozen half, what is trained. */
const trainedPlaces = ({ rank, trainedRank = rank }: AdapterPlan, places: Placement): Placement => ({
  ...places,
  ranks: places.ranks.map((row) => row.map((own) => (own * trainedRank) / rank)),
});

const scheduleJson = (simulated: SimulatedRun) => ({
  bubble: simulated.simulation.bubble,
  steady_bubble: simulated.simulation.steadyBubble,
  makespan_over_lower_bound: overBound(simulated),
  passes: simulated.simulation.passes,
  whole_run: simulated.whole,
});

/** What the stages hold, what they do when, and what to change where they wait; nothing where there is one. */
function scheduleText(prepared: Prepared, simulated: SimulatedRun | null, screen: Screen): string[] {
  const { plan } = prepared;
  if (!simulated || plan.stages.length === 1) return [];
  const said = [...numbersOf(plan, simulated), ...adviceFor(prepared, simulated), assumptionsOf(plan)];
  const drawn = drawTerminal(plan, simulated, screen);
  return [
    "",
    ...stageTable(plan, simulated),
    "",
    ...drawn,
    "",
    ...said.flatMap((text) => wrapped(visible(text), screen.width)),
  ];
}

function stageTable({ stages }: Plan, { simulation: { busy, makespan } }: SimulatedRun): string[] {
  const right = { align: "right" } as const;
  type Row = StagePlan & { readonly stage: number };
  return table<Row>(
    [
      { title: "stage", of: ({ stage }) => `${stage}`, ...right },
      { title: "layers", of: layersOf },
      { title: "device", of: placeOf },
      { title: "memory", of: ({ memory }) => formatBytes(totalBytes(memory)), ...right },
      { title: "free there", of: ({ device }) => formatBytes(device.freeBytes), ...right },
      { title: "passes in flight", of: ({ inFlight }) => `${inFlight}`, ...right },
      { title: "busy", of: ({ stage }) => percent(busy[stage]! / makespan), ...right },
    ],
    stages.map((of, stage) => ({ ...of, stage })),
  );
}

/** What the paper's model, fitted to this plan, says of larger and smaller passes. */
function memoryText(plan: Plan): string {
  const { b0, b1, b2 } = memoryModel(plan);
  const length = plan.stages[0]!.sizes.positions;
  const square = Math.abs(b2) * length < 0.01 * b1 ? "nothing" : `${b2.toPrecision(2)} bytes`;
  const token = `${formatBytes(1000 * b1)} for each 1,000 tokens B L of a pass`;
  return `  memory model: ${formatBytes(b0)}, ${token}, ${square} for B L^2`;
}

/** Whether an adapter has several ranks. */
const hasRanks = (places: AdapterPlan["places"]): boolean => new Set(places?.ranks.flat().filter((rank) => rank > 0)).size > 1;

const drawnText = (svg: string | null): string[] => (svg === null ? [] : ["", `the schedule is drawn in ${shortPath(svg)}`]);

function titleOf({ recipe, adapters, stages }: Plan): string {
  const many = (n: number, what: string) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const where = `${many(adapters.length, "adapter")} on ${basename(recipe.model.path)} in ${many(stages.length, "stage")}`;
  return `${basename(recipe.path)}: ${where}`;
}

function planText({ plan, data, notices }: Prepared): string[] {
  const { recipe, spec, device, adapters, stages } = plan;
  const { sizes } = stages[0]!;
  const memory = totalMemory(plan);
  const right = { align: "right" } as const;
  type Row = { readonly adapter: AdapterPlan; readonly counts: Dataset["counts"] };
  const rows: Row[] = adapters.map((adapter, i) => ({ adapter, counts: data[i]!.counts }));
  const adapterLines = table<Row>(
    [
      { title: "adapter", of: ({ adapter }) => adapter.name },
      {
        title: "rank",
        of: ({ adapter: { rank, trainedRank, places } }) =>
          `${trainedRank === undefined ? `${rank}` : `${trainedRank} + ${rank - trainedRank} frozen`}${hasRanks(places) ? " at most" : ""}`,
        ...right,
      },
      {
        title: "targets",
        of: ({ adapter }) =>
          adapter.places
            ? `${count(countModules(adapter, spec.layers))} of ${count(spec.layers * linearsOfModel(spec).length)} modules`
            : `${adapter.targets.length}`,
        ...right,
      },
      { title: "learning rate", of: ({ adapter }) => `${adapter.recipe.optimizer.learningRate}`, ...right },
      { title: "batch", of: ({ adapter: { work } }) => `${work.batchSize} x ${work.accumulation}`, ...right },
      { title: "rows", of: ({ adapter }) => count(adapter.rows), ...right },
      { title: "cut", of: ({ counts }) => count(counts.truncated), ...right },
      { title: "dropped", of: ({ counts }) => count(counts.dropped), ...right },
      { title: "held out", of: ({ adapter }) => count(adapter.evalRows), ...right },
      { title: "steps", of: ({ adapter }) => count(adapter.steps), ...right },
      { title: "tokens", of: ({ adapter }) => count(adapter.tokens), ...right },
      { title: "parameters", of: ({ adapter }) => count(adapter.parameters), ...right },
    ],
    rows,
  );
  const memoryRows = [...Object.entries(memory), ["total", totalBytes(memory)] as const];
  return [
    `${shortPath(recipe.path)}: ${adapters.length} ${adapters.length === 1 ? "adapter" : "adapters"} on ${shortPath(recipe.model.path)}`,
    `  base model   ${spec.family}, ${spec.layers} layers, hidden ${spec.hidden}, vocabulary ${count(spec.vocab)}, held as ${sizes.format === "dense" ? device.compute : sizes.format}`,
    `  device       ${device.kind} (${device.name}), ${device.compute}, recomputation ${sizes.recomputation}`,
    `  passes       at most ${count(sizes.rows)} rows, shared by adapters; a micro-batch at most ${count(plan.tokensPerMicrobatch)} tokens`,
    ...(plan.slots < adapters.length ? [`  at once      ${plan.slots} adapters; the others wait for one of them to end`] : []),
    `  output       ${shortPath(recipe.run.output)}`,
    ...notices.map((notice) => `  notice       ${notice}`),
    "",
    ...adapterLines,
    "",
    `${count(sum(adapters.map(({ steps }) => steps)))} steps, ${count(sum(adapters.map(({ tokens }) => tokens)))} tokens in all`,
    "",
    ...table(
      [
        { title: stages.length > 1 ? "memory of all stages" : "memory", of: ([layerRange]) => layerRange },
        { title: "", of: ([, bytes]) => formatBytes(bytes), ...right },
      ],
      memoryRows,
    ),
    memoryText(plan),
    ...(stages.length > 1
      ? []
      : [`  ${formatBytes(device.freeBytes)} of ${formatBytes(device.totalBytes)} are free on the ${device.kind}`]),
  ];
}
