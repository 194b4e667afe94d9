// `mlora plan RECIPE`: what a run would do, without doing it.

import { basename } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import type { HeldWeights } from "../base/precision.ts";
import { sum } from "../base/shape.ts";
import { jsonText, visible, writeStdout } from "../base/terminal.ts";
import { count, counted, formatBytes, percent, shortPath } from "../base/units.ts";
import type { AdapterPlan, Plan, StagePlan } from "../plan/plan.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { Overrides } from "../recipe/recipe.ts";
import { type PlanFacts, type PlannedRun, planOf } from "../session/planning/planned-run.ts";
import { screenOf } from "./draw/screen.ts";
import { drawSvg } from "./draw/svg.ts";
import { drawTerminal, type Screen, wrapped } from "./draw/terminal.ts";
import { assumptionsOf, layersOf, numbersOf, placeOf } from "./draw/words.ts";
import { fileOf } from "./flags.ts";
import { readProgress } from "./reading.ts";
import { right, table } from "./table.ts";
import { priceOf, timeOf } from "./time.ts";

export type PlanFlags = Overrides & {
  readonly json?: boolean;
  /** Where the schedule is drawn to. */
  readonly svg?: unknown;
  /** Steps are made to measure its time. */
  readonly measure?: boolean;
  /** Of an hour. */
  readonly price?: unknown;
};

export async function plan(recipePath: string, options: PlanFlags): Promise<void> {
  const svg = options.svg === undefined ? null : fileOf("svg", `${options.svg}`);
  const price = options.price === undefined ? null : priceOf(options.price);
  using progress = readProgress();
  const planned = await planOf(loadRecipe(recipePath, options), progress);
  progress[Symbol.dispose]();
  if (svg !== null) writeFileAtomic(svg, drawSvg(planned.plan, planned.simulated, titleOf(planned.plan)));
  const screen = screenOf(process.stdout);
  const { facts } = planned;
  const time = await timeOf(planned, options.measure === true, price);
  const text = options.json
    ? jsonText({ ...facts, time: time.facts }, 2)
    : [
        ...planText(planned, facts).map(visible),
        ...time.lines.map(visible),
        ...scheduleText(planned, facts, screen),
        ...drawnText(svg).map(visible),
      ].join("\n");
  writeStdout(`${text}\n`, { painted: options.json !== true && screen.colour });
}

/** What the stages hold, what they do when, and what to change where they wait; nothing where there is one. */
function scheduleText(planned: PlannedRun, facts: PlanFacts, screen: Screen): string[] {
  const { plan } = planned;
  if (plan.stages.length === 1) return [];
  const { simulated, advice } = planned;
  const said = [...numbersOf(plan, simulated), ...advice, assumptionsOf(plan, simulated)];
  const drawn = drawTerminal(plan, simulated, screen);
  return ["", ...stageTable(planned, facts), "", ...drawn, "", ...said.flatMap((text) => wrapped(visible(text), screen.width))];
}

function stageTable({ plan: { stages }, simulated }: PlannedRun, facts: PlanFacts): string[] {
  const { busy, makespan } = simulated.simulation;
  type Row = StagePlan & { readonly stage: number };
  return table<Row>(
    [
      { title: "stage", of: ({ stage }) => `${stage}`, ...right },
      { title: "layers", of: layersOf },
      { title: "device", of: placeOf },
      { title: "memory", of: ({ stage }) => formatBytes(facts.stages[stage]!.memory_bytes.total), ...right },
      { title: "free there", of: ({ device }) => formatBytes(device.freeBytes), ...right },
      { title: "passes in flight", of: ({ inFlight }) => `${inFlight}`, ...right },
      { title: "busy", of: ({ stage }) => percent(busy[stage]! / makespan), ...right },
    ],
    stages.map((of, stage) => ({ ...of, stage })),
  );
}

/** The paper's model (b0 + b1 B L + b2 B L^2), fitted to this plan: the memory of larger and smaller passes. */
function memoryText({ stages }: Plan, { memory_model: { b0, b1, b2 } }: PlanFacts): string {
  const length = stages[0]!.sizes.positions;
  const square =
    Math.abs(b2) * length < 0.01 * b1 ? "" : `, ${b2.toPrecision(2)} bytes for each of them times its row's length`;
  return `  by size: ${formatBytes(b0)}, and ${formatBytes(1000 * b1)} for each 1,000 tokens of a pass${square}`;
}

/** Whether an adapter has several ranks. */
const hasRanks = (places: AdapterPlan["places"]): boolean => new Set(places?.ranks.flat().filter((rank) => rank > 0)).size > 1;

const drawnText = (svg: string | null): string[] => (svg === null ? [] : ["", `the schedule is drawn in ${shortPath(svg)}`]);

function titleOf({ recipe, adapters, stages }: Plan): string {
  const where = `${counted(adapters.length, "adapter")} on ${basename(recipe.model.path)} in ${counted(stages.length, "stage")}`;
  return `${basename(recipe.path)}: ${where}`;
}

/** "144 of attention, 3 dense, 96 of experts (shared-outer)" */
function sitesText({ sites, experts }: PlanFacts["adapters"][number]): string {
  const { attention, dense, experts: inside } = sites!;
  const parts = [`${count(attention)} of attention`, ...(dense > 0 ? [`${count(dense)} dense`] : [])];
  return [...parts, inside > 0 ? `${count(inside)} of experts (${experts})` : "none of experts"].join(", ");
}

function planText({ plan, modules }: PlannedRun, facts: PlanFacts): string[] {
  const { recipe, spec, device, adapters, stages } = plan;
  const { sizes } = stages[0]!;
  type Row = { readonly adapter: AdapterPlan; readonly own: PlanFacts["adapters"][number] };
  const rows: Row[] = adapters.map((adapter, i) => ({ adapter, own: facts.adapters[i]! }));
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
        of: ({ adapter, own }) =>
          [
            own.sites
              ? sitesText(own)
              : adapter.places
                ? `${count(own.modules)} of ${count(modules)} modules`
                : `${adapter.targets.length}`,
            ...Object.keys(adapter.tables ?? {}),
          ].join(", "),
        ...right,
      },
      { title: "learning rate", of: ({ adapter }) => `${adapter.recipe.optimizer.learningRate}`, ...right },
      { title: "batch", of: ({ adapter: { work } }) => `${work.batchSize} x ${work.accumulation}`, ...right },
      { title: "rows", of: ({ adapter }) => count(adapter.rows), ...right },
      { title: "cut", of: ({ own }) => count(own.truncated_rows), ...right },
      { title: "dropped", of: ({ own }) => count(own.dropped_rows), ...right },
      { title: "held out", of: ({ adapter }) => count(adapter.evalRows), ...right },
      { title: "steps", of: ({ adapter }) => count(adapter.steps), ...right },
      { title: "tokens", of: ({ adapter }) => count(adapter.tokens), ...right },
      { title: "parameters", of: ({ adapter }) => count(adapter.parameters), ...right },
    ],
    rows,
  );
  return [
    `${shortPath(recipe.path)}: ${counted(adapters.length, "adapter")} on ${shortPath(recipe.model.path)}`,
    `  base model   ${spec.family}, ${counted(spec.layers, "layer")}, hidden ${spec.hidden}, vocabulary ${count(spec.vocab)}, held as ${heldText(sizes, device.compute)}`,
    `  device       ${device.kind} (${device.name}), ${device.compute}, recomputation ${sizes.recomputation}`,
    `  passes       at most ${counted(sizes.rows, "token")}, shared by adapters; a micro-batch at most ${counted(plan.tokensPerMicrobatch, "token")}`,
    ...(facts.host_bytes > 0
      ? [
          `  turns        ${plan.resident} of ${counted(plan.slots, "adapter")} are on the device at once; the others wait for their turn in ${formatBytes(facts.host_bytes)} of host memory`,
        ]
      : []),
    ...(plan.slots < adapters.length
      ? [
          `  at once      ${counted(plan.slots, "adapter")}; the others wait for ${plan.slots === 1 ? "it" : "one of them"} to end`,
        ]
      : []),
    `  output       ${shortPath(recipe.run.output)}`,
    ...facts.notices.map((notice) => `  notice       ${notice}`),
    "",
    ...adapterLines,
    "",
    `${counted(sum(adapters.map(({ steps }) => steps)), "step")}, ${counted(sum(adapters.map(({ tokens }) => tokens)), "token")} in all`,
    "",
    ...table(
      [
        { title: stages.length > 1 ? "memory of all stages" : "memory", of: ([layerRange]) => layerRange },
        { title: "", of: ([, bytes]) => formatBytes(bytes), ...right },
      ],
      Object.entries(facts.memory_bytes),
    ),
    memoryText(plan, facts),
    ...(facts.host_weight_bytes > 0
      ? [`  ${formatBytes(facts.host_weight_bytes)} of host memory in addition, for the embeddings of layers`]
      : []),
    ...(facts.host_memory_model
      ? [
          `  ${formatBytes(facts.host_stream_bytes)} of host memory in addition, for streams between layers and inputs of attention: ${formatBytes(1000 * facts.host_memory_model.b1)} for each 1,000 tokens of a pass`,
        ]
      : []),
    ...(stages.length > 1
      ? []
      : [`  ${formatBytes(device.freeBytes)} of ${formatBytes(device.totalBytes)} are free on the ${device.kind}`]),
  ];
}

/** "nf4", "nf4, 3 groups of linears as bf16" */
function heldText({ format, denseGroups = [] }: HeldWeights, compute: string): string {
  if (format === "dense") return compute;
  if (format === "bf16-products") return "bf16, and multiplied in bf16";
  return denseGroups.length === 0 ? format : `${format}, ${counted(denseGroups.length, "group")} of linears as ${compute}`;
}
