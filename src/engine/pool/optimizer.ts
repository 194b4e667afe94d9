// The table of an optimizer's step, as adamwStep of ops/adamw.ts reads it, from the steps that the coordinator sends.

import type { MadeOptimizerStep } from "../../bus/messages.ts";
import { ADAMW_TABLE_WIDTH } from "../../ops/adamw.ts";

/** f32[slots, width]; adapters without a step have a row of zeros. Differences from 1 are computed in doubles. */
export function stepTable(steps: readonly MadeOptimizerStep[], slots: number): Float32Array {
  const table = new Float32Array(slots * ADAMW_TABLE_WIDTH);
  for (const step of steps) table.set(rowOf(step), step.adapter * ADAMW_TABLE_WIDTH);
  return table;
}

function rowOf(step: MadeOptimizerStep): number[] {
  const { t, learningRate, ratio, weightDecay, coefficient } = step;
  const last = [coefficient, learningRate * ratio];
  if ("momentum" in step) return [2, learningRate, step.momentum, step.nesterov ? 1 : 0, 0, 0, weightDecay, 0, 0, ...last];
  const { beta1, beta2, eps } = step;
  const corrections = [1 - beta1 ** t, 1 - beta2 ** t];
  return [1, learningRate, 1 - beta1, beta2, 1 - beta2, eps, weightDecay, ...corrections, ...last];
}
