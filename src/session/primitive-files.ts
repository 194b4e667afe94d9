// Adapters of the primitives on disk: their state, to resume from, and their weights, as PEFT writes them. Threads write large
// ones, and this process has its other work done meanwhile.

import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { checkpointsIn, readCheckpoint, writeCheckpoint } from "../files/checkpoint.ts";
import { modelFingerprint } from "../files/fingerprint.ts";
import { readPeftAdapter } from "../files/peft.ts";
import type { Blocks } from "../methods/optimizers.ts";
import { samePlaces } from "../methods/placement.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { isFile } from "./adapters.ts";
import { snapshotOf } from "./checkpoints.ts";
import { exportBlocks, isSmall, startExports } from "./export.ts";
import { FileThreads } from "./file-threads.ts";
import { begin } from "./initialise.ts";
import { stateBlocks } from "./parameters.ts";
import { type AdapterSlot, admit, putSaved, writeState } from "./slot.ts";

/** What two adapters must agree on for the state of one to be that of the other. */
const shapeOf = (of: AdapterPlan): string => {
  const { method, optimizer, rank, scale, targets, places, tables, trainedRank, projectionSeed } = of;
  return JSON.stringify({ method, optimizer, rank, scale, targets, places, tables, trainedRank, projectionSeed });
};

/** Writes what it is given, which is its own from then on. Disposing waits for that. */
export class AdapterFiles implements AsyncDisposable {
  /** One at a time: the states of an adapter in the order in which they were. */
  readonly #states = new FileThreads({ large: 1, small: 1 });
  readonly #exports = startExports();

  constructor(private readonly plan: Plan) {}

  /** Writes a checkpoint into `folder`; one that was there goes when this one is whole. */
  async saveState(folder: string, adapter: AdapterPlan, step: number, blocks: readonly Blocks[]): Promise<void> {
    const made = { settings: shapeOf(adapter), data: "", model: modelFingerprint(this.plan.recipe.model.path) };
    const nothing = { tokens: 0, seconds: 0, firstLoss: null, lastLoss: null, before: null, best: null };
    const progress = { adapter: adapter.name, step, ...nothing, made };
    const snapshot = snapshotOf(this.plan, adapter, blocks);
    if (isSmall(this.plan, adapter)) return writeCheckpoint(folder, progress, snapshot, 1);
    const owned = blocks.flatMap((of) => Object.values(of).map(({ buffer }) => buffer as ArrayBuffer));
    await this.#states.run({ folder, isSmall: false }, () => ({
      work: { kind: "checkpoint", folder, progress, snapshot, keep: 1 },
      owned,
    }));
  }

  /** Writes `folder` as PEFT would, and reads it back. */
  export(folder: string, adapter: AdapterPlan, blocks: readonly { readonly params: Float32Array }[]): Promise<void> {
    return exportBlocks(this.plan, adapter, () => Promise.resolve(blocks), folder, this.#exports);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#states[Symbol.asyncDispose]();
    await this.#exports[Symbol.asyncDispose]();
  }
}

/** Puts what `folder` holds into the adapter's slot; returns the steps that it has made. */
export async function loadFrom(of: AdapterSlot, folder: string): Promise<number> {
  const { bus, plan, adapter, slot } = of;
  const refuse = (what: string) =>
    new RequestError(
      "primitives.load",
      `adapter '${adapter.name}': ${folder} ${what}`,
      "name a folder of save, of saveState or of PEFT, of an adapter of the same method, optimizer, ranks, scales, targets and base model",
    );
  const [newest] = checkpointsIn(folder);
  if (newest !== undefined) {
    const { progress, factors } = readCheckpoint(newest);
    if (progress.made.settings !== shapeOf(adapter))
      throw refuse(`has ${progress.made.settings}, expected ${shapeOf(adapter)}`);
    if (progress.made.model !== modelFingerprint(plan.recipe.model.path)) throw refuse("is of another base model");
    await admit(bus, slot, adapter, null);
    await writeState(bus, slot, stateBlocks(plan, adapter, factors));
    return progress.step;
  }
  if (!isFile(join(folder, "adapter_config.json"))) throw refuse("holds no adapter");
  const saved = readPeftAdapter(folder, plan.spec, () => {
    throw new Error("a part of a weight is read while an adapter is checked");
  });
  if (saved.method !== adapter.method) throw refuse(`is a ${saved.method}, expected a ${adapter.method}`);
  if (!samePlaces(saved, adapter, plan.spec.layers)) throw refuse("has other ranks or scales in some layer");
  await putSaved(of, folder, (init) => begin(of, () => undefined, { init }));
  return 0;
}
