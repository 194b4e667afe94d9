// What a simulated run came to, in words: the same in the terminal and in the SVG.

import { layersText } from "../../base/layers.ts";
import { counted, percent } from "../../base/units.ts";
import type { Plan, StagePlan } from "../../plan/plan.ts";
import type { SimulatedRun } from "../../session/planning/simulated-run.ts";

export const layersOf = ({ layerRange }: StagePlan): string => layersText(layerRange);

/** "cuda 1 on gpu-b"; here without a host. */
export const placeOf = ({ device: { host, kind, ordinal } }: StagePlan): string =>
  host === "" ? `${kind} ${ordinal}` : `${kind} ${ordinal} on ${host}`;

/** Below this the stages' unequal work is not worth a word. */
const UNEVEN = 0.01;

/** The numbers, a sentence a string; nothing of stages that wait where there is one. */
export function numbersOf(plan: Plan, simulated: SimulatedRun): string[] {
  const { simulation, whole, uneven, overBound, headLayers } = simulated;
  const { bubble, steadyBubble, passes } = simulation;
  const of = whole ? `${counted(passes, "pass", "passes")}, the whole run` : `the first ${counted(passes, "pass", "passes")}`;
  if (plan.stages.length === 1) return [`${of}.`];
  const steady = steadyBubble === null ? "" : `, ${percent(steadyBubble)} in the steady part`;
  const shortest = `${(1 / overBound).toFixed(3)} of this`;
  return [
    `Bubble ${percent(bubble)} of all stages' time${steady}; no schedule of these passes is shorter than ${shortest} (${of}).`,
    ...(uneven >= UNEVEN
      ? [
          `Of that ${percent(uneven)} because the stages' work is unequal: halves of layers are not divided, nor is the output head (worth ${headLayers.toFixed(1)} layers, since ${percent(plan.targets)} of the tokens have a target).`,
        ]
      : []),
  ];
}

/** What the numbers rest on. */
export function assumptionsOf({ adapters }: Plan, { backwardCost }: SimulatedRun): string {
  const early = adapters.some(({ recipe }) => recipe.patience !== null || recipe.halving !== null);
  const ends = early ? ", and no adapter ends early" : "";
  return `Simulated: a layer's backward pass takes ${backwardCost} times as long as its forward pass, steps, evaluations and transfers take no time${ends}.`;
}

/** Which part of the run is drawn where the drawing ends at `end`. */
export function shownOf({ whole, simulation: { makespan } }: SimulatedRun, end: number): string {
  const share = end / makespan;
  if (share >= 1) return whole ? "Drawn: the whole run." : "Drawn: all that was simulated.";
  return `Drawn: the first ${percent(share)} of ${whole ? "the run" : "what was simulated"}.`;
}
