// Where an interrupted run continues: which of its adapters have ended, and at which step each of the others was saved.

import { join } from "node:path";
import { RequestError, RunError, textOf } from "../../base/errors.ts";
import { checkpointsIn, type Progress, readCheckpoint } from "../../files/checkpoint.ts";
import { foldersIn } from "../../files/owned.ts";
import { type Outcome, readRecord, rewindMetrics } from "../../files/record.ts";
import type { Plan } from "../../plan/plan.ts";
import { CHECKPOINTS } from "../../recipe/recipe.ts";
import { type AdapterData, madeOf } from "../scheduling/adapter-state.ts";
import { aside, checkpointFolder } from "../state/checkpoints.ts";

export type Resumed = {
  /** Adapters that need no more training, by name. */
  readonly ended: ReadonlyMap<string, Outcome>;
  /** Steps that each of the others had made when it was last saved. */
  readonly steps: ReadonlyMap<string, number>;
  /** Names of adapters that were saved, and that the recipe has no more. */
  readonly left: ReadonlySet<string>;
};

/** Ends after which an adapter needs no more training. */
const FINAL = ["done", "early", "dropped"];

/**
 * Throws a RequestError: `resume.finished` where there is nothing left to do, `resume.changed` with the differences where
 * the recipe, the data or the base model would not make the same adapters. Adapters may have been added. `notice` is called
 * for damaged checkpoints, and for adapters that were saved and that the recipe has no more, `left`. `isOpen`: the run waits
 * for more adapters, so that nothing may be left to do.
 */
export function findStored(
  output: string,
  plan: Plan,
  data: readonly AdapterData[],
  model: string,
  notice: (text: string) => void,
  isOpen = false,
): Resumed {
  const record = readRecord(output);
  const ended = new Map([...record].filter(([, { status }]) => FINAL.includes(status)));
  const steps = new Map<string, number>();
  const differences: string[] = [];
  for (const [i, adapter] of plan.adapters.entries()) {
    const over = ended.get(adapter.name);
    const progress = over ? null : newest(checkpointFolder(output, adapter.name), adapter.name, notice);
    if (progress) steps.set(adapter.name, progress.step);
    const made = (over ?? progress)?.made;
    if (made) differences.push(...compare(adapter.name, made, madeOf(plan, adapter, data[i]!, model)));
  }
  const names = new Set(plan.adapters.map(({ name }) => name));
  for (const name of record.keys()) if (!names.has(name)) differences.push(`adapter '${name}' is not in the recipe any more`);
  const left = new Set<string>();
  for (const name of foldersIn(join(output, CHECKPOINTS))) {
    const folder = checkpointFolder(output, name);
    if (names.has(name) || record.has(name) || checkpointsIn(folder).length === 0) continue;
    left.add(name);
    notice(`'${name}' is not in the recipe any more: it is not trained further, and its checkpoints stay in ${folder}`);
  }
  if (differences.length > 0)
    throw new RequestError(
      "resume.changed",
      `the run in ${output} was begun otherwise:\n  ${differences.join("\n  ")}`,
      "give back what was changed, or choose another output",
    );
  if (!isOpen && plan.adapters.every(({ name }) => ended.has(name)))
    throw new RequestError(
      "resume.finished",
      `the run in ${output} is finished: all adapters of the recipe have ended`,
      "choose another output, or move this one away; to train an adapter further, give its folder as `from` in another run",
    );
  return { ended, steps, left };
}

/** Takes what a run's folder tells of adapters back to these steps; null: all of it stays. */
export function rewindTold(output: string, stepsOf: (adapter: string) => number | null, notice: (text: string) => void): void {
  try {
    rewindMetrics(output, stepsOf);
  } catch (error) {
    notice(`${textOf(error)}; it may have lines of steps that are made again`);
  }
}

/** The progress of the newest checkpoint that is whole; null for none. */
function newest(folder: string, name: string, notice: (text: string) => void): Progress | null {
  for (const checkpoint of checkpointsIn(folder))
    try {
      const { progress } = readCheckpoint(checkpoint);
      if (progress.adapter === name) return progress;
      throw new RunError("checkpoint.bad", `the checkpoint ${checkpoint} is of the adapter '${progress.adapter}'`);
    } catch (error) {
      notice(aside(checkpoint, error));
    }
  return null;
}

function compare(name: string, was: Progress["made"], is: Progress["made"]): string[] {
  const [before, now] = [JSON.parse(was.settings), JSON.parse(is.settings)] as Record<string, unknown>[];
  const changed = [...new Set([...Object.keys(before!), ...Object.keys(now!)])]
    .filter((key) => JSON.stringify(before![key]) !== JSON.stringify(now![key]))
    .map((key) => `adapter '${name}': ${key} was ${JSON.stringify(before![key])}, is ${JSON.stringify(now![key])}`);
  if (was.data !== is.data) changed.push(`adapter '${name}': its data has other rows`);
  const named = new Set([was, is].flatMap(({ adapters = {} }) => Object.keys(adapters)));
  for (const key of named)
    if (was.adapters?.[key] !== is.adapters?.[key]) changed.push(`adapter '${name}': the adapter that ${key} names is another`);
  if (was.model !== is.model) changed.push(`adapter '${name}': the base model is another`);
  return changed;
}
