// What a run would do, without doing it: its plan as data, its schedule played, and what would make it faster.

import { sum } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { modulesOf } from "../../families/linears.ts";
import type { Placement } from "../../methods/adapter.ts";
import { placesOfModel, sharingOf } from "../../methods/placement.ts";
import { countSites } from "../../plan/experts.ts";
import { totalHostBytes, totalStreamBytes } from "../../plan/host-memory.ts";
import { hostMemoryModel, memoryModel } from "../../plan/memory-model.ts";
import { countModules } from "../../plan/places.ts";
import { type AdapterPlan, bytesOnStages, type Plan, totalBytes, totalMemory } from "../../plan/plan.ts";
import type { Recipe } from "../../recipe/recipe.ts";
import {
  localDevices,
  planOn,
  type Reading,
  type Request,
  readRequest,
  specFor,
  withLocalModel,
} from "../preparation/prepare.ts";
import { settingNotices } from "../preparation/setting-notices.ts";
import { adviceFor } from "./advice.ts";
import { type Estimate, estimateRun } from "./estimate.ts";
import { measureRun } from "./measure.ts";
import { type SimulatedRun, simulateRun } from "./simulated-run.ts";

/** Reads model configuration, tokenizer and data, and plans the run on this machine. Throws RequestErrors. */
export async function planOf(asked: Recipe, reading: Reading = {}): Promise<PlannedRun> {
  const notices: string[] = [];
  const recipe = await withLocalModel(asked, reading, (text) => notices.push(text));
  const spec = specFor(recipe);
  const devices = localDevices(recipe, spec);
  const read = await readRequest(recipe, spec, reading);
  const request = { ...read, notices: [...notices, ...read.notices] };
  return new PlannedRun(request, planOn(request, devices));
}

/** Every number of a plan, by name: plain data, as `mlora plan --json` prints it. */
export type PlanFacts = PlannedRun["facts"];

/** Made by `planOf`. */
export class PlannedRun {
  readonly plan: Plan;
  readonly #request: Request;
  #simulated: SimulatedRun | null = null;

  constructor(request: Request, plan: Plan) {
    this.plan = plan;
    this.#request = request;
  }

  /** The run's schedule, played at the first call. */
  get simulated(): SimulatedRun {
    this.#simulated ??= simulateRun(this.plan);
    return this.#simulated;
  }

  /** How long it will take; opens the device for a moment where nothing is known of it. Throws what that fails with. */
  estimate(): Promise<Estimate> {
    return estimateRun(this.plan, this.#request.data);
  }

  /** The same by some seconds of its steps, on the devices that it will have. Throws what they fail with. */
  measure(signal: AbortSignal, report: (steps: number) => void): Promise<Estimate> {
    return measureRun(this.plan, this.#request.data, signal, report);
  }

  /** What to change so that stages idle less, a sentence a string; none where they hardly do. */
  get advice(): string[] {
    return adviceFor(this.#request, this.plan, this.simulated);
  }

  /** Linears of all layers: as many modules as an adapter may have. */
  get modules(): number {
    const { spec } = this.plan;
    return modulesOf(spec).length;
  }

  get facts() {
    const { recipe, spec, device, adapters, stages, tokensPerMicrobatch } = this.plan;
    const { data, notices } = this.#request;
    const { sizes } = stages[0]!;
    const memory = totalMemory(this.plan);
    return {
      recipe: recipe.path,
      model: {
        path: recipe.model.path,
        ...spec,
        windows: [...new Set(spec.windows)],
        layerRopes: [...new Set(spec.layerRopes)],
      },
      device,
      output: recipe.run.output,
      seed: recipe.run.seed,
      tokens_per_microbatch: tokensPerMicrobatch,
      rows_per_pass: sizes.rows,
      recomputation: sizes.recomputation,
      slots: this.plan.slots,
      resident: this.plan.resident,
      host_bytes: sum(stages.map(({ sizes: of }) => of.hostBytes)),
      host_weight_bytes: totalHostBytes(spec, stages),
      host_stream_bytes: totalStreamBytes(spec, stages),
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
        ...(adapter.tables ? { tables: adapter.tables } : {}),
        ...(spec.experts === null ? {} : { sites: countSites(adapter, spec.layers), experts: sharingOf(adapter) }),
        ...(adapter.places ? { places: trainedPlaces(spec, adapter, adapter.places) } : {}),
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
        memory_bytes: sum(bytesOnStages(this.plan, adapter)),
      })),
      notices: [...notices, ...settingNotices(adapters)],
      memory_bytes: { ...memory, total: totalBytes(memory) },
      memory_model: memoryModel(this.plan),
      ...(totalStreamBytes(spec, stages) > 0 ? { host_memory_model: hostMemoryModel(this.plan) } : {}),
      ...(stages.length > 1 ? { schedule: scheduleFacts(this.simulated) } : {}),
    };
  }
}

/** As `rank`: of an adapter with a frozen half, what is trained. */
function trainedPlaces(spec: ModelSpec, { rank, trainedRank = rank }: AdapterPlan, places: Placement): Placement {
  const { ranks, scales } = placesOfModel(spec, places);
  return { ranks: ranks.map((row) => row.map((own) => (own * trainedRank) / rank)), scales };
}

const scheduleFacts = ({ simulation, overBound, whole }: SimulatedRun) => ({
  bubble: simulation.bubble,
  steady_bubble: simulation.steadyBubble,
  makespan_over_lower_bound: overBound,
  passes: simulation.passes,
  whole_run: whole,
});
