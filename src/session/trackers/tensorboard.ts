// Files for TensorBoard in a run's folder.

import { join } from "node:path";
import { wallTime } from "../../base/clock.ts";
import { scalarsRecord, startRecord, versionRecord } from "../../files/tfevents.ts";
import type { Plan } from "../../plan/plan.ts";
import { TENSORBOARD } from "../../recipe/recipe.ts";
import type { Listener } from "../events/events.ts";
import { scalarsOf } from "./scalars.ts";
import { type Tracking, WaitingBytes } from "./tracking-files.ts";

/** TensorBoard's files, a run for each adapter: `tensorboard --logdir OUTPUT/tb`. */
export function tensorboard(plan: Plan, output: string, notice: (text: string) => void): Tracking {
  const waiting = new WaitingBytes(output, notice);
  const files = new Map<string, string>();
  const began = Math.floor(wallTime() / 1000);
  const listener: Listener = (event) => {
    const found = scalarsOf(event, (index) => plan.adapters[index]!.stepsPerEpoch);
    if (!found) return;
    const { adapter, step, scalars } = found;
    const at = { wallTime: wallTime() / 1000 };
    let file = files.get(adapter);
    if (file === undefined) {
      file = join(output, TENSORBOARD, adapter, `events.out.tfevents.${began}.mlora.${process.pid}.${files.size}`);
      files.set(adapter, file);
      waiting.add(file, versionRecord(at));
      waiting.add(file, startRecord(at, event.type === "step" ? step : step + 1)); // the step of an evaluation is made already
    }
    waiting.add(file, scalarsRecord(at, step, scalars));
  };
  return { listener, write: () => waiting.write(), flush: () => waiting.end() };
}
