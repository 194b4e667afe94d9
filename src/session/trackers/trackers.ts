// What a run writes for trackers of experiments, by the names of `run.tracking`.

import type { Plan } from "../../plan/plan.ts";
import type { Resumed } from "../run/resume.ts";
import { mlflow } from "./mlflow.ts";
import { tensorboard } from "./tensorboard.ts";
import type { Tracking } from "./tracking-files.ts";
import { wandb } from "./wandb.ts";

/** `notice` is called where something cannot be written. */
export function trackersOf(plan: Plan, resumed: Resumed | null, notice: (text: string) => void): Tracking[] {
  const { output, tracking } = plan.recipe.run;
  return [
    ...(tracking.includes("tensorboard") ? [tensorboard(plan, output, notice)] : []),
    ...(tracking.includes("wandb") ? [wandb(plan, output, resumed, notice)] : []),
    ...(tracking.includes("mlflow") ? [mlflow(plan, output, resumed, notice)] : []),
  ];
}
