// The way out where stages wait for each other: what else was tried, by simulation, and what of it helps.

import { RequestError } from "../../base/errors.ts";
import { alignUp, maxOf, range } from "../../base/shape.ts";
import { counted, percent } from "../../base/units.ts";
import { costsOf, partition, partWork } from "../../plan/partition.ts";
import type { Plan, StageDevice } from "../../plan/plan.ts";
import type { Recipe } from "../../recipe/recipe.ts";
import { planOn, type Request } from "../preparation/prepare.ts";
import { type SimulatedRun, simulateRun } from "./simulated-run.ts";

/** Stages may wait for so much of their time. */
const FEW = 0.05;
/** What is advised has to be worth the change. */
const WORTH = 1.02;
/** Parts that the largest micro-batch is cut into. */
const CUTS = [2, 4, 8];

/** What the steady part idles beyond what unequal work explains: what more or smaller passes could fill. */
const waitingOf = ({ simulation, uneven }: SimulatedRun): number => (simulation.steadyBubble ?? 0) - uneven;
const speedOf = ({ tokens, simulation }: SimulatedRun): number => tokens / simulation.makespan;

/** What to change so that stages idle less, a sentence a string; nothing where they hardly do. */
export function adviceFor(request: Request, plan: Plan, simulated: SimulatedRun): string[] {
  return [...againstWaiting(request, plan, simulated), ...againstUneven(request, plan, simulated)];
}

function againstWaiting(request: Request, plan: Plan, simulated: SimulatedRun): string[] {
  if (waitingOf(simulated) <= FEW) return [];
  const waits = "Stages wait for each other, since too few adapters at a time fill them";
  let best: { readonly change: string; readonly then: SimulatedRun } | null = null;
  for (const { change, request: changed } of changes(request, plan, simulated)) {
    const then = simulatedOf(changed, devicesOf(plan));
    if (!then || then.simulation.steadyBubble === null || speedOf(then) < WORTH * speedOf(best?.then ?? simulated)) continue;
    best = { change, then };
    if (waitingOf(then) <= FEW) break;
  }
  if (!best)
    return [
      `${waits}; neither finer cuts (run.tokens_per_microbatch, now ${plan.tokensPerMicrobatch}) nor twice as many adapters would help.`,
    ];
  const left = percent(best.then.simulation.steadyBubble ?? 0);
  const faster = percent(speedOf(best.then) / speedOf(simulated) - 1);
  return [`${waits}. ${best.change}: ${left} in the steady part, ${faster} faster, if a row costs the same in small passes.`];
}

/** Whole layers and the head bound the busiest stage from below: more stages than it takes to get there only stand idle. */
function againstUneven(request: Request, plan: Plan, simulated: SimulatedRun): string[] {
  const { stages, spec, targets, device } = plan;
  const costs = costsOf(device, stages[0]!.sizes.format);
  if (simulated.uneven <= FEW) return [];
  const busiest = (parts: ReturnType<typeof partition>) => maxOf(parts.map((part) => partWork(spec, part, targets, costs)));
  const now = busiest(stages.map(({ layerRange }) => layerRange));
  const enough = range(stages.length).find((n) => n > 0 && busiest(partition(spec, n, targets, costs)) <= now);
  if (enough === undefined) return [];
  const recipe = { ...request.recipe, run: { ...request.recipe.run, stages: enough } };
  const then = simulatedOf({ ...request, recipe }, devicesOf(plan).slice(0, enough));
  if (!then || speedOf(then) * WORTH < speedOf(simulated)) return [];
  return [`${counted(enough, "stage")} would be as fast: the busiest has the same work.`];
}

const devicesOf = ({ stages }: Plan): StageDevice[] => stages.map(({ device }) => device);

type Change = { readonly change: string; readonly request: Request };

function* changes(
  request: Request,
  { tokensPerMicrobatch, device, slots }: Plan,
  { microBatch }: SimulatedRun,
): Generator<Change> {
  const { recipe, data } = request;
  const withRun = (run: Partial<Recipe["run"]>) => ({ ...request, recipe: { ...recipe, run: { ...recipe.run, ...run } } });
  if (slots === recipe.run.slots && slots < recipe.adapters.length)
    yield {
      change: `run.slots = "auto" (now ${slots}) would let more adapters train at once`,
      request: withRun({ slots: null }),
    };
  const most = Math.min(tokensPerMicrobatch, microBatch);
  const budgets = CUTS.map((cuts) => alignUp(Math.ceil(most / cuts), device.rowTile)).filter((tokens) => tokens < most);
  for (const tokens of new Set(budgets)) {
    const change = `run.tokens_per_microbatch = ${tokens} (now ${tokensPerMicrobatch}) would cut mini-batches finer`;
    yield { change, request: withRun({ tokensPerMicrobatch: tokens }) };
  }
  const adapters = [...recipe.adapters, ...recipe.adapters];
  const twice = { ...request, data: [...data, ...data], recipe: { ...recipe, adapters } };
  yield { change: "Twice as many such adapters would help", request: twice };
}

/** Null where it cannot be: for want of memory, say. */
function simulatedOf(request: Request, devices: readonly StageDevice[]): SimulatedRun | null {
  try {
    return simulateRun(planOn(request, devices));
  } catch (error) {
    if (error instanceof RequestError) return null;
    throw error;
  }
}
