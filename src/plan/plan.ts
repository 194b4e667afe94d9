// What a run will do, from numbers alone: steps, tokens, parameters, memory. Nothing is opened and nothing is started here.

import type { DeviceReport } from "../base/device-report.ts";
import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { layersIn } from "../base/layers.ts";
import { type ExactWeights, heldWeights } from "../base/precision.ts";
import type { Recomputation } from "../base/recomputation.ts";
import { alignUp, maxOf, sum, sumOfMany } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import { formatBytes } from "../base/units.ts";
import type { StageSizes } from "../engine/buffers.ts";
import type { CacheSizes } from "../engine/kv-cache.ts";
import type { StageLayers } from "../engine/weights.ts";
import type { Recipe } from "../recipe/recipe.ts";
import { enoughAdapters, inStep, memberOf, mostRows, targetRows } from "../schedule/balance.ts";
import {
  blockBytes,
  countThatFit,
  gradientElements,
  lowSizes,
  lowWidths,
  mostBytes as mostBlockBytes,
  poolBytes,
  productSizes,
} from "./adapter-memory.ts";
import { type AdapterPlan, countsOf, type DataSummary, largestRows, longestRow, onStages, planAdapters } from "./adapters.ts";
import { checkBf16Products, checkFormat } from "./format.ts";
import { checkHostMemory, hostInputsOf, requireStreams, streamLack, totalStreamBytes } from "./host-memory.ts";
import { type MemoryParts, requireKernels, stageHostBytes, stageMemory } from "./memory.ts";
import { costsOf, mostStages, partition } from "./partition.ts";
import { rolloutCache } from "./rollouts.ts";
import { countWithHost, type HostNeed, hostBytesOf, requireHost } from "./waiting-memory.ts";

/** Tokens of an adapter's micro-batch at most, unless the recipe says; the same on every device, since it decides sums. */
export const DEFAULT_TOKENS = 4096;
/**
 * Rows of a pass: enough to keep a GPU busy. A CPU's cores are busy with a few hundred, and more cost memory: four adapters of
 * 4 x 64 tokens on SmolLM2-135M gave 234 tokens/s in 1199 MiB with 288 rows, 246 in 1738 MiB with 1200 (medians of three runs
 * in turn on a busy machine, 210 to 246 and 237 to 252). Whole tiles: four rows of 64 tokens fill it.
 */
const PASS_ROWS = { cpu: 264, cuda: 4096 };
/**
 * The same on a GPU with experts: each gets a part of the rows, and its weights are read again for every pass. Smaller passes
 * are tried before anything is computed again.
 */
const EXPERT_PASS_ROWS = 16_384;
/**
 * Rows of a chunk of logits, most first, and its bytes at the most. The gradient of its input is a product of few tiles: with
 * 1024 rows and a hidden size of 4096 they fill a GPU's multiprocessors, with 640 two thirds of them.
 */
const CHUNK_ROWS = { cpu: [120, 24], cuda: [2048, 1024, 512, 256, 128] };
const CHUNK_BYTES = 320 * 2 ** 20;
/** At most as many where streams wait in host memory: the head lies next to what the last half of a layer keeps. */
const OFFLOADED_CHUNK_ROWS = 1024;

/**
 * What is tried when the recipe does not say, the first that fits: on a CPU selective costs less than the memory traffic it
 * saves.
 */
const RECOMPUTATIONS = { cpu: ["selective", "full"], cuda: ["none", "selective", "full"] } as const;

export type { AdapterPlan, DataSummary, RowCounts, RowSummary } from "./adapters.ts";

export type Plan = {
  readonly recipe: Recipe;
  readonly spec: ModelSpec;
  /** What the devices of all stages have in common is read off the first's. */
  readonly device: DeviceReport;
  /** Those that join a run under way are put at the end (late-adapters.ts). */
  readonly adapters: AdapterPlan[];
  readonly stages: readonly StagePlan[];
  /** Adapters that train at once, at most; the others wait for a slot, or for memory. */
  readonly slots: number;
  /** Tokens of an adapter's own micro-batch at most. */
  readonly tokensPerMicrobatch: number;
  /** Of these, adapters that are on the devices at once, whichever they are; the others wait for their turn in host memory. */
  readonly resident: number;
  /** Rows of a pass, which adapters share, at most; a larger micro-batch runs alone. */
  readonly passRows: number;
  /** The share of all tokens that have a target, and so pass the output head. */
  readonly targets: number;
};

export type StagePlan = {
  readonly layerRange: StageLayers;
  readonly sizes: StageSizes;
  readonly memory: MemoryParts;
  readonly device: StageDevice;
  /** Passes between forward and backward at most; a pipeline keeps one more slot for evaluations. */
  readonly inFlight: number;
};

/** The device of a stage, and the machine that it is in. */
export type StageDevice = DeviceReport & { readonly host: string };

/** How many stages a recipe gets where a machine has `count` devices. */
export const stageCount = (stages: Recipe["run"]["stages"], spec: ModelSpec, count: number): number =>
  stages === "auto" ? Math.min(count, mostStages(spec)) : typeof stages === "number" ? stages : stages.length;

export type PlanOptions = {
  /** Bytes that each stage takes on its device in addition to what is planned, as it was measured. */
  readonly unplanned?: number;
  /** Bytes on a device at most, whatever it says is free: it has refused more. */
  readonly ceiling?: number;
  /** What linear weights are held in exactly, by the model's files. */
  readonly exact?: ExactWeights | null;
  /** For stages that also generate. */
  readonly cache?: CacheSizes;
  /** All adapters may be in a step at once, whatever a schedule would do; none takes turns. */
  readonly allAtOnce?: boolean;
};

/** `devices` are those of the stages, first stage first. */
export function makePlan(
  recipe: Recipe,
  spec: ModelSpec,
  data: readonly DataSummary[],
  devices: readonly StageDevice[],
  { unplanned = 0, ceiling = Number.POSITIVE_INFINITY, exact = null, cache: given, allAtOnce = false }: PlanOptions = {},
): Plan {
  const device = commonOf(devices);
  const tokensPerMicrobatch = recipe.run.tokensPerMicrobatch ?? DEFAULT_TOKENS;
  const { rowTile } = device;
  const adapters = planAdapters(recipe.adapters, spec, data, tokensPerMicrobatch);
  requireKernels(spec, device);
  const packsTables = devices.every((of) => of.packsTables === true);
  const prefersBf16 = devices.every((of) => of.prefersBf16 === true);
  const held = heldWeights(recipe.model.precision, { compute: device.compute, packsTables, prefersBf16 }, exact);
  const cache = given ?? rolloutCache(adapters, spec, devices, recipe.run.slots, held);
  const generated = cache ? [cache.capacity] : [];
  const positions = maxOf([...data.map((of, i) => longestRow(recipe.adapters[i]!, spec, of)), ...generated]);
  const targets = targetShare(data);
  const { stages } = recipe.run;
  const parts = partition(spec, typeof stages === "object" ? stages : devices.length, targets, costsOf(device, held.format));
  const busyRows = PASS_ROWS[device.kind];
  const mostRowsOfPass = spec.experts !== null && device.kind === "cuda" ? EXPERT_PASS_ROWS : busyRows;
  const fullRows = Math.min(recipe.run.tokensPerMicrobatch ?? mostRowsOfPass, mostRowsOfPass);
  const wanted = recipe.run.slots ?? adapters.length;
  const { residentAdapters } = recipe.run;
  const mostResident = Math.min(wanted, residentAdapters ?? wanted);
  const members = adapters
    .slice(0, wanted)
    .map(({ index, work }) => memberOf(index, work, 0, { tokensPerMicrobatch, passRows: fullRows, rowTile }));
  const wantedRows = mostRows(targetRows(members, parts.length, fullRows), fullRows);
  const trained = adapters.map((adapter, i) => largestRows(adapter, data[i]!, tokensPerMicrobatch, rowTile));
  const largest = [...trained, ...generated.map((tokens) => alignUp(tokens, rowTile))];
  const chunkBytes = (count: number) => count * tableRows(spec) * bytesOf(device.compute);
  const chunkFor = (recomputation: Recomputation) => {
    const most = recomputation === "offload" ? OFFLOADED_CHUNK_ROWS : Number.POSITIVE_INFINITY;
    return CHUNK_ROWS[device.kind].find((count) => count <= most && chunkBytes(count) <= CHUNK_BYTES) ?? rowTile;
  };
  checkFormat(held.format, spec);
  checkBf16Products(held.format, devices);
  checkHostMemory(
    spec,
    parts.map((_, stage) => ({ device: devices[stage]! })),
  );
  const blocks = parts.map((part) => adapters.map((of) => blockBytes(spec, part, onStages([of]), device)));
  const widths = parts.map((part) => lowWidths(onStages(adapters), part));
  const gradients = parts.map((part) => adapters.map((of) => gradientElements(spec, part, of)).sort((a, b) => b - a));
  const shared = {
    products: productSizes(onStages(adapters)),
    positions,
    ...held,
    ...(cache ? { cache } : {}),
  };
  /** With room for any `count` of the adapters at once. */
  const stagesFor = (
    { recomputation, spare, keepsInputs }: Choice,
    passRows: number,
    count: number,
    slots = wanted,
  ): StagePlan[] => {
    const stepping = allAtOnce
      ? Math.min(slots, adapters.length)
      : Math.min(count, inStep(members, parts.length, passRows, parts.length + spare, device.kind === "cpu"));
    return parts.map((layerRange, stage) => {
      const inFlight = parts.length - stage + spare;
      const passes = parts.length === 1 ? 1 : inFlight + 1;
      const rows = largestPass(largest, alignUp(passRows, rowTile));
      const ofPass = {
        rows,
        targets: rows,
        chunk: chunkOf(rows, chunkFor(recomputation), device),
        recomputation,
        inFlight: passes,
      };
      const low = lowSizes(widths[stage]!, rows, ofPass.chunk);
      const blockBytes = mostBlockBytes(blocks[stage]!, count);
      const layers = layersIn(layerRange).length;
      const room = { blockBytes, hostBytes: 0, slots, gradients: gradients[stage]!.slice(0, stepping) };
      const own = devices[stage]!;
      const share = 1 / devices.filter(({ host }) => host === own.host).length;
      const all = { ...shared, ...ofPass, ...room, low, layers };
      const hostInputs = keepsInputs ? hostInputsOf(spec, { layerRange, sizes: all, device: own }, share) : 0;
      const sizes = hostInputs > 0 ? { ...all, hostInputs } : all;
      const memory = stageMemory(spec, layerRange, sizes, device, poolBytes(spec, layerRange, sizes, blockBytes, device.kind));
      return { layerRange, sizes, memory, device: own, inFlight };
    });
  };
  const fits = (stages: readonly StagePlan[]) => {
    const most = fullest(stages);
    return (
      most.bytes + unplanned * most.stages <= Math.min(ceiling, most.device.freeBytes) && streamLack(spec, stages) === null
    );
  };
  const known = { recipe, spec, device, adapters, tokensPerMicrobatch, targets };
  const choices = choicesOf(recipe, device.kind, parts.length);
  for (const passRows of halves(wantedRows, maxOf(largest))) {
    const isLarge = passRows > busyRows && passRows > maxOf(largest);
    const tried = isLarge ? choices.filter(({ recomputation }) => recomputation === choices[0]!.recomputation) : choices;
    const found = tried.map((choice) => {
      return { choice, count: largestThat(mostResident, (count) => fits(stagesFor(choice, passRows, count))) };
    });
    const enough = Math.min(wanted, enoughAdapters(members, parts.length, passRows));
    const most = found.reduce((a, b) => (b.count > a.count ? b : a));
    const { choice, count } = found.find((of) => of.count >= enough) ?? most;
    if (count === 0 || (isLarge && count < enough)) continue;
    const fitting = blocks.map((of) => countThatFit(of, mostBlockBytes(of, count)));
    const fitted = count === wanted ? wanted : Math.min(wanted, ...fitting);
    const resident = Math.max(count, Math.min(fitted, mostResident));
    const offloads = !allAtOnce && fitted < wanted && (device.kind !== "cpu" || residentAdapters !== null);
    if (!offloads) return { ...known, stages: stagesFor(choice, passRows, count, fitted), slots: fitted, resident, passRows };
    const all = stagesFor(choice, passRows, count, wanted);
    const needs = all.map((of, stage): HostNeed => {
      const { device, sizes, memory } = of;
      const otherBytes = stageHostBytes(spec, device) + totalStreamBytes(spec, [of]);
      const own = { deviceBytes: totalBytes(memory), otherBytes };
      return { device, blocks: blocks[stage]!, blockBytes: sizes.blockBytes, ...own };
    });
    if (recipe.run.slots !== null || residentAdapters !== null) requireHost(needs, count, wanted);
    const slots = Math.max(fitted, countWithHost(needs, count, wanted));
    const stages = stagesFor(choice, passRows, count, slots).map((stage, i): StagePlan => {
      const hostBytes = slots > fitted ? hostBytesOf(needs[i]!, slots) : 0;
      return { ...stage, sizes: { ...stage.sizes, hostBytes } };
    });
    return { ...known, stages, slots, resident, passRows };
  }
  const least = stagesFor(choices.at(-1)!, maxOf(largest), 1);
  requireStreams(spec, least, tokensPerMicrobatch);
  throw tooLarge(fullest(least), ceiling, tokensPerMicrobatch);
}

/** Rows of a chunk of logits, at most `most`; on a CPU no more than as many chunks need. */
function chunkOf(rows: number, most: number, { kind, rowTile }: Pick<DeviceReport, "kind" | "rowTile">): number {
  const chunk = Math.min(rows, most);
  return kind === "cpu" ? Math.min(chunk, alignUp(Math.ceil(rows / Math.ceil(rows / chunk)), rowTile)) : chunk;
}

/** Of what adapters train on. */
function targetShare(data: readonly DataSummary[]): number {
  const total = (of: "targets" | "lengths") =>
    sum(
      data.map(({ train }) => {
        const { unread, ...counts } = countsOf(train);
        if (unread) return counts.lengths.length * (of === "targets" ? unread.targets : unread.lengths.mean);
        return sumOfMany(counts[of]);
      }),
    );
  return total("targets") / Math.max(1, total("lengths"));
}

/** `rows`, and half as many each time, while a pass is larger than a single micro-batch needs: its cut changes no number. */
function halves(rows: number, least: number): number[] {
  const all = [rows];
  while (all.at(-1)! > least) all.push(Math.max(least, Math.floor(all.at(-1)! / 2)));
  return all;
}

/** Bytes that an adapter takes on each stage. */
export const bytesOnStages = (
  { spec, stages, device }: Pick<Plan, "spec" | "stages" | "device">,
  adapter: AdapterPlan,
): number[] => stages.map(({ layerRange }) => blockBytes(spec, layerRange, onStages([adapter]), device));

/** Elements of an adapter's gradients on each stage. */
export const gradientsOnStages = ({ spec, stages }: Pick<Plan, "spec" | "stages">, adapter: AdapterPlan): number[] =>
  stages.map(({ layerRange }) => gradientElements(spec, layerRange, adapter));

/** The largest number from 1 to `most` that `fits`, which a larger one never does where a smaller does not; 0 for none. */
function largestThat(most: number, fits: (count: number) => boolean): number {
  if (fits(most)) return most;
  let [good, bad] = [0, most];
  while (bad - good > 1) {
    const middle = Math.floor((good + bad) / 2);
    if (fits(middle)) good = middle;
    else bad = middle;
  }
  return good;
}

/**
 * 1F1B keeps as many passes in flight on a stage as there are stages from it on; `spare` more let stages that wait for an
 * unequal pass continue with another. `keepsInputs`: whether the input of attention of some layers waits in host memory, too.
 */
type Choice = { readonly recomputation: Recomputation; readonly spare: number; readonly keepsInputs: boolean };

/** The best first: what is computed again costs more than what waits. */
function choicesOf({ run }: Recipe, kind: DeviceReport["kind"], stages: number): Choice[] {
  const { recomputation: asked } = run;
  const isFull = kind === "cpu" && asked === "offload"; // its memory is the host's
  const recomputations: readonly Recomputation[] = asked === "auto" ? RECOMPUTATIONS[kind] : [isFull ? "full" : asked];
  const spares = stages === 1 ? [0] : [stages, Math.floor(stages / 2), 0];
  return recomputations.flatMap((recomputation) =>
    spares.flatMap((spare) =>
      (recomputation === "offload" ? [true, false] : [false]).map((keepsInputs) => ({ recomputation, spare, keepsInputs })),
    ),
  );
}

/**
 * What the plan may rely on for all stages, with the largest row tile, which is a multiple of each. Throws a RequestError,
 * `plan.devices`, where they have not the same.
 */
function commonOf(devices: readonly StageDevice[]): StageDevice {
  const first = devices[0]!;
  const other = devices.findIndex(({ kind, compute }) => kind !== first.kind || compute !== first.compute);
  if (other < 0) return { ...first, rowTile: maxOf(devices.map(({ rowTile }) => rowTile)) };
  const say = ({ host, kind, compute }: StageDevice) => `${kind} in ${compute}${host === "" ? "" : ` (${host})`}`;
  throw new RequestError(
    "plan.devices",
    `stage 0 has ${say(first)}, stage ${other} ${say(devices[other]!)}: all stages compute alike`,
    "give all stages devices of one kind, or set device and precision",
  );
}

/** The device whose stages leave the least of its memory, and what they need it for. */
function fullest(stages: readonly StagePlan[]) {
  const devices = [...Map.groupBy(stages, ({ device }) => `${device.host} ${device.ordinal}`).values()].map((on) => {
    const memory = on.map((stage) => stage.memory).reduce(addMemory);
    return { memory, bytes: totalBytes(memory), device: on[0]!.device, stages: on.length };
  });
  const left = ({ bytes, device }: (typeof devices)[number]) => device.freeBytes - bytes;
  return devices.reduce((a, b) => (left(b) < left(a) ? b : a));
}

const addMemory = (a: MemoryParts, b: MemoryParts): MemoryParts => ({
  weights: a.weights + b.weights,
  adapters: a.adapters + b.adapters,
  activations: a.activations + b.activations,
  workspace: a.workspace + b.workspace,
  head: a.head + b.head,
  links: a.links + b.links,
  ...(a.cache === undefined ? {} : { cache: a.cache + b.cache! }),
});

/** What a plan takes on the device that is fullest. */
export const mostBytes = ({ stages }: Plan): number => fullest(stages).bytes;

/** Of all stages together. */
export const totalMemory = ({ stages }: Plan): MemoryParts => stages.map(({ memory }) => memory).reduce(addMemory);

export const totalBytes = (memory: MemoryParts): number => sum(Object.values(memory));

/**
 * The largest pass that can come: no more than `passRows` (a micro-batch over it runs alone, so room for the largest is made),
 * and no more than all adapters' largest micro-batches together.
 */
const largestPass = (largest: readonly number[], passRows: number): number =>
  Math.max(Math.min(sum(largest), passRows), maxOf(largest));

function tooLarge(
  { memory, stages, device }: ReturnType<typeof fullest>,
  ceiling: number,
  tokensPerMicrobatch: number,
): RequestError {
  const parts = Object.entries(memory)
    .filter(([, bytes]) => bytes > 0)
    .map(([layerRange, bytes]) => `${layerRange} ${formatBytes(bytes)}`);
  const who = stages === 1 ? "the run needs" : `${stages} stages of the run need`;
  const refused = ceiling < device.freeBytes ? `, but refuses more than ${formatBytes(ceiling)}` : "";
  return new RequestError(
    "plan.memory",
    `${who} ${formatBytes(totalBytes(memory))} on ${device.name}, which has ${formatBytes(device.freeBytes)} free${refused}: ${parts.join(", ")}`,
    `lower run.tokens_per_microbatch (now ${tokensPerMicrobatch}), batch_size, max_length or the number of adapters`,
  );
}
