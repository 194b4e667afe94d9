// What a simulated run came to, in words: the same in the terminal and in the SVG.

import { count } from "../../base/units.ts";
import { headWork } from "../../plan/partition.ts";
import type { Plan, StagePlan } from "../../plan/plan.ts";
import { BACKWARD } from "../../plan/times.ts";
import type { SimulatedRun } from "./simulated-run.ts";

/** 0.0312 as "3.1 %". */
export const percent = (share: number): string => `${(100 * Math.max(0, share)).toFixed(1)} %`;

/** "0 to 9". */
export const layersOf = ({ layerRange: { from, to } }: StagePlan): string =>
  to - from === 1 ? `${from}` : `${from} to ${to - 1}`;

/** "cuda 1 on gpu-b"; here without a host. */
export const placeOf = ({ device: { host, kind, ordinal } }: StagePlan): string =>
  host === "" ? `${kind} ${ordinal}` : `${kind} ${ordinal} on ${host}`;

/** How far from the shortest schedule, as the paper's readers want to see it: 1 is the shortest. */
export const overBound = ({ simulation: { makespan, lowerBound } }: SimulatedRun): number =>
  lowerBound > 0 ? makespan / lowerBound : 1;

/** Below this the stages' unequal work is not worth a word. */
const UNEVEN = 0.01;

/** The numbers, a sentence a string; nothing of stages that wait where there is one. */
export function numbersOf(plan: Plan, simulated: SimulatedRun): string[] {
  const { simulation, whole, uneven } = simulated;
  const { bubble, steadyBubble, passes } = simulation;
  const of = whole ? `${count(passes)} passes, the whole run` : `the first ${count(passes)} passes`;
  if (plan.stages.length === 1) return [`${of}.`];
  const steady = steadyBubble === null ? "" : `, ${percent(steadyBubble)} in the steady part`;
  const shortest = `${(1 / overBound(simulated)).toFixed(3)} of this`;
  return [
    `Bubble ${percent(bubble)} of all stages' time${steady}; no schedule of these passes is shorter than ${shortest} (${of}).`,
    ...(uneven >= UNEVEN
      ? [
          `Of that ${percent(uneven)} because the stages' work is unequal: layers are whole, and so is the output head (worth ${headWork(plan.spec, plan.targets).toFixed(1)} layers, since ${percent(plan.targets)} of the tokens have a target).`,
        ]
      : []),
  ];
}

/** What the numbers rest on. */
export function assumptionsOf({ stages, adapters }: Plan): string {
  const factor = stages[0]!.sizes.recomputation === "full" ? BACKWARD + 1 : BACKWARD;
  const early = adapters.some(({ recipe }) => recipe.patience !== null || recipe.halving !== null);
  const ends = early ? ", and no adapter ends early" : "";
  return `Simulated: a layer's backward pass takes ${factor} times as long as its forward pass, steps, evaluations and transfers take no time${ends}.`;
}

/** Which part of the run is drawn where the drawing ends at `end`. */
export function shownOf({ whole, simulation: { makespan } }: SimulatedRun, end: number): string {
  const share = end / makespan;
  if (share >= 1) return whole ? "Drawn: the whole run." : "Drawn: all that was simulated.";
  return `Drawn: the first ${percent(share)} of ${whole ? "the run" : "what was simulated"}.`;
}
