// Keeps adapters while they are not on the stages, and against the day that everything is killed: on disk, or, where a run
// leaves nothing there, in memory.

import { join } from "node:path";
import { MloraError, RunError, textOf } from "../base/errors.ts";
import { hintOf } from "../base/faults.ts";
import {
  checkpointsIn,
  type Progress,
  readCheckpoint,
  removeCheckpoints,
  type Snapshot,
  setAside,
} from "../files/checkpoint.ts";
import type { Blocks } from "../methods/optimizers.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { CHECKPOINTS } from "../recipe/recipe.ts";
import { isSmall } from "./export.ts";
import { FileThreads } from "./file-threads.ts";
import { stateBlocks } from "./parameters.ts";

/** An adapter as it was kept: where it stands, and the blocks of each stage. */
export type StoredAdapter = { readonly progress: Progress; readonly blocks: readonly Blocks[] };

/** Where an adapter stands, or where its evaluation was best. */
export type Which = "latest" | "best";

export interface CheckpointStore extends AsyncDisposable {
  /** Resolves when it can be had again, whatever happens to this process. The blocks belong to the store from now on. */
  save(plan: Plan, adapter: AdapterPlan, kept: StoredAdapter, which?: Which): Promise<void>;
  /**
   * The latest of what was saved and is whole; null where there is none. `notice` is called with a text on each
   * that is damaged.
   */
  load(plan: Plan, adapter: AdapterPlan, notice: (text: string) => void, which?: Which): StoredAdapter | null;
  /** Lets go of all that was saved of an adapter. Throws a RunError where it cannot be removed. */
  remove(adapter: AdapterPlan): void;
}

/** Whether it is one adapter's alone: its file, as it is written or read back, not a stage. */
export const isOwn = (error: unknown): boolean =>
  error instanceof MloraError && /^(files|export|checkpoint|peft|safetensors)\./.test(error.code);

export function memoryStore(): CheckpointStore {
  const all = new Map<string, StoredAdapter>();
  return {
    save: async (_, { name }, kept, which = "latest") => void all.set(`${which} ${name}`, kept),
    load: (_, { name }, __, which = "latest") => all.get(`${which} ${name}`) ?? null,
    remove: ({ name }) => {
      for (const which of ["latest", "best"]) all.delete(`${which} ${name}`);
    },
    [Symbol.asyncDispose]: async () => all.clear(),
  };
}

/** Where the checkpoints of an adapter lie in a run's folder. */
export const checkpointFolder = (output: string, name: string, which: Which = "latest"): string =>
  join(output, CHECKPOINTS, name, ...(which === "best" ? [which] : []));

/** Removes all that was kept under this name in a run's folder. Throws a RunError where it cannot be removed. */
export function removeStored(output: string, name: string): void {
  const folder = checkpointFolder(output, name);
  try {
    removeCheckpoints(checkpointFolder(output, name, "best"));
    removeCheckpoints(folder);
  } catch (error) {
    throw new RunError("files.remove", `cannot remove ${folder}: ${textOf(error)}`, hintOf(error), { cause: error });
  }
}

/** Sets a damaged checkpoint aside; returns the text that reports it. Throws the error where it is another than damage. */
export function aside(folder: string, error: unknown): string {
  if (!(error instanceof RunError) || error.code !== "checkpoint.bad") throw error;
  const to = setAside(folder);
  return `${error.message}; ${to === null ? "" : `it is set aside as ${to}, and `}the one before is taken`;
}

/** Checkpoints written at once. */
const MOST_WRITTEN = { large: 1, small: 4 };

/** In a run's folder, the `keep` newest of each adapter; written by threads of its own. */
export function diskStore(output: string, keep: number): CheckpointStore {
  const threads = new FileThreads(MOST_WRITTEN);
  let ended = false;
  return {
    async save(plan, adapter, { progress, blocks }, which = "latest") {
      if (ended) throw new RunError("checkpoint.closed", "the run ended before this checkpoint was begun");
      const folder = checkpointFolder(output, adapter.name, which);
      const snapshot = snapshotOf(plan, adapter, blocks);
      const owned = blocks.flatMap((of) => Object.values(of).map(({ buffer }) => buffer as ArrayBuffer));
      const keeping = which === "best" ? 1 : keep;
      await threads.run({ folder, isSmall: isSmall(plan, adapter) }, () => ({
        work: { kind: "checkpoint", folder, progress, snapshot, keep: keeping },
        owned,
      }));
    },
    load(plan, adapter, notice, which = "latest") {
      for (const folder of checkpointsIn(checkpointFolder(output, adapter.name, which)))
        try {
          const { progress, factors } = readCheckpoint(folder);
          if (progress.adapter !== adapter.name)
            throw new RunError("checkpoint.bad", `the checkpoint ${folder} is of the adapter '${progress.adapter}'`);
          return { progress, blocks: stateBlocks(plan, adapter, factors) };
        } catch (error) {
          notice(aside(folder, error));
        }
      return null;
    },
    remove: ({ name }) => removeStored(output, name),
    [Symbol.asyncDispose]: () => {
      ended = true;
      return threads[Symbol.asyncDispose]();
    },
  };
}

export const snapshotOf = (plan: Plan, adapter: AdapterPlan, blocks: readonly Blocks[]): Snapshot => ({
  spec: plan.spec,
  rank: adapter.rank,
  targets: adapter.targets,
  method: adapter.method,
  optimizer: adapter.optimizer,
  places: adapter.places,
  tables: adapter.tables,
  stages: plan.stages.map(({ layerRange }, stage) => ({
    layerRange,
    blocks: blocks[stage]!,
  })),
});
