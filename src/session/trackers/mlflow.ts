// Lines for MLflow in a run's folder, a run of MLflow's for each adapter; mlflow-sender.ts sends them. A resumed run continues
// them: what it makes again has been sent, perhaps, and is there once, as it was first made.

import { basename, join } from "node:path";
import { wallTime } from "../../base/clock.ts";
import { MloraError, textOf } from "../../base/errors.ts";
import { hintOf } from "../../base/faults.ts";
import { randomId } from "../../base/secret.ts";
import { lineBytes, linesToContinue, type MlflowLine, rowsPath } from "../../files/mlflow.ts";
import type { Plan } from "../../plan/plan.ts";
import { MLFLOW } from "../../recipe/recipe.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import { type AdapterResult, isFailure, type Listener } from "../events/events.ts";
import type { Resumed } from "../run/resume.ts";
import { withoutSecrets } from "./public-settings.ts";
import { scalarsOf } from "./scalars.ts";
import { type Tracking, WaitingBytes } from "./tracking-files.ts";

/** The last step of each kind that an adapter's run has, and whether it is under way. */
type Made = { train: number; eval: number; runs: boolean };

const NOTHING: Tracking = { listener: () => undefined, write: () => undefined, flush: () => undefined };

export function mlflow(plan: Plan, output: string, resumed: Resumed | null, notice: (text: string) => void): Tracking {
  const folder = join(output, MLFLOW);
  const waiting = new WaitingBytes(output, notice);
  const add = (line: MlflowLine) => waiting.add(rowsPath(folder), lineBytes(line));
  let made: Map<string, Made>;
  try {
    made = madeIn(folder);
  } catch (error) {
    const why = error instanceof MloraError ? textOf(error) : `${rowsPath(folder)}: ${textOf(error)}`;
    notice(`${why}${hintOf(error) ? ` (${hintOf(error)})` : ""}; MLflow gets nothing more of this run`);
    return NOTHING;
  }
  const of = new Map<string, Made>();
  const open = (adapter: string, time: number): Made => {
    const known = of.get(adapter);
    if (known) return known;
    const earlier = made.get(adapter);
    const continues = earlier !== undefined && (resumed?.ended.has(adapter) || (resumed?.steps.get(adapter) ?? 0) > 0);
    if (continues && !earlier.runs) add({ what: "status", adapter, time, status: "RUNNING" });
    if (!continues) {
      if (earlier?.runs) add({ what: "status", adapter, time, status: "KILLED" }); // its steps are made anew, by another run
      add({ what: "begin", adapter, time, id: randomId(), params: paramsOf(plan, adapter, output) });
    }
    const now = continues ? { ...earlier, runs: true } : { train: -1, eval: -1, runs: true };
    of.set(adapter, now);
    return now;
  };
  const listener: Listener = (event) => {
    if (event.type === "ended") {
      if (resumed?.ended.has(event.adapter)) return;
      const time = wallTime();
      open(event.adapter, time).runs = false;
      add({ what: "status", adapter: event.adapter, time, status: statusOf(event.result) });
      return;
    }
    const found = scalarsOf(event, (index) => plan.adapters[index]!.stepsPerEpoch);
    if (!found || resumed?.ended.has(found.adapter)) return;
    const { adapter, step, scalars } = found;
    const what = event.type === "step" ? "train" : "eval";
    const time = wallTime();
    const run = open(adapter, time);
    if (step <= run[what]) return;
    run[what] = step;
    add({ what, adapter, time, step, scalars });
  };
  return { listener, write: () => waiting.write(), flush: () => waiting.end() };
}

/** Of an earlier process, or of stages that were opened before. */
function madeIn(folder: string): Map<string, Made> {
  const made = new Map<string, Made>();
  for (const line of linesToContinue(folder)) {
    if (line.what === "begin") made.set(line.adapter, { train: -1, eval: -1, runs: true });
    const of = made.get(line.adapter);
    if (!of) continue;
    if (line.what === "status") of.runs = line.status === "RUNNING";
    else if (line.what !== "begin") of[line.what] = line.step;
  }
  return made;
}

const statusOf = (result: Pick<AdapterResult, "status" | "message">) =>
  isFailure(result) ? "FAILED" : result.status === "stopped" ? "KILLED" : "FINISHED";

/** What MLflow takes of a value. */
const MOST_CHARACTERS = 6000;

/** Settings as texts. */
function paramsOf(plan: Plan, adapter: string, output: string): Readonly<Record<string, string>> {
  const recipe = plan.recipe.adapters.find(({ name }) => name === adapter)!;
  const { path: model, precision } = plan.recipe.model;
  const settings = withoutSecrets(adapterTable(recipe)) as Readonly<Record<string, unknown>>;
  const text = (value: unknown): string => {
    const whole = typeof value === "string" ? value : JSON.stringify(value);
    return whole.length > MOST_CHARACTERS ? `${whole.slice(0, MOST_CHARACTERS - 3)}...` : whole;
  };
  const all = Object.entries({ output: basename(output), model, precision, ...settings });
  return Object.fromEntries(all.flatMap(([key, value]) => (value == null ? [] : [[key, text(value)] as const])));
}
