// Saving an adapter as PEFT would, from its blocks: large ones, and many small ones, by threads, so that others train
// meanwhile. What was written is read back and compared (files/peftexport.ts).

import { RunError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import { exportPeft, type PeftExport } from "../files/peftexport.ts";
import { alphaOf, scaleOf } from "../methods/placement.ts";
import { settingsOf } from "../methods/registry.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { FileThreads } from "./file-threads.ts";
import { layoutOf } from "./parameters.ts";

/** Bytes of parameters that are written in less time than a thread takes to start. */
const SMALL = 32 << 20;
/** Exports at once: each holds an adapter's parameters three times in the host's memory. Small ones wait for the disk. */
const MOST_EXPORTS = { large: 2, small: 4 };
/** Adapters that end at one time from which on small ones have threads, too. */
const MANY = 8;

/** Exports of a run: a few at once. Dispose of it when all are done. */
export const startExports = (): FileThreads => new FileThreads(MOST_EXPORTS);

/** Throws a RunError where the loss that a probe found is not finite; null where it has none. */
export function checkProbe(name: string, loss: number | null): void {
  if (loss === null || Number.isFinite(loss)) return;
  throw new RunError("export.loss", `adapter '${name}': its loss is ${loss}, so it is not saved; lower the learning rate`);
}

/** Whether its parameters are written in less time than a thread takes to start. */
export function isSmall(plan: Plan, adapter: AdapterPlan): boolean {
  const known = sizes.get(adapter) ?? sum(plan.stages.map((_, stage) => 4 * layoutOf(plan, stage, adapter).size));
  sizes.set(adapter, known);
  return known < SMALL;
}
/** Bytes of parameters: laying them out takes as long as writing a small one. */
const sizes = new WeakMap<AdapterPlan, number>();

/**
 * Writes `folder` as PEFT would, from an adapter's blocks, which `read` gives and which are the export's from then on, and
 * verifies it. `ending`: adapters that end at this time. Throws a RunError where the file is not what was trained.
 */
export async function exportBlocks(
  plan: Plan,
  adapter: AdapterPlan,
  read: () => Promise<readonly { readonly params: Float32Array }[]>,
  folder: string,
  threads: FileThreads | null = null,
  ending = 1,
): Promise<void> {
  const of = { folder, isSmall: isSmall(plan, adapter) };
  if (!threads || (of.isSmall && ending < MANY)) return exportPeft(folder, peftExport(plan, adapter, await read()));
  await threads.run(of, async () => {
    const made = peftExport(plan, adapter, await read());
    const owned = made.stages.map(({ params }) => params.buffer as ArrayBuffer);
    return { work: { kind: "export", folder, adapter: made }, owned };
  });
}

function peftExport(plan: Plan, adapter: AdapterPlan, blocks: readonly { readonly params: Float32Array }[]): PeftExport {
  const { recipe: run, spec, stages } = plan;
  const { recipe, name, rank, scale, targets, places, tables, trainedRank } = adapter;
  const { dropout, method } = recipe;
  // With a frozen half it is a LoRA of twice the rank and the same scale, as PEFT converts its own.
  const rslora = trainedRank === undefined && recipe.rslora;
  const alpha =
    targets.length === 0 || (trainedRank === undefined && scaleOf({ ...recipe, rank }) === scale)
      ? recipe.alpha
      : alphaOf(scale, rank, rslora);
  const begun = trainedRank === undefined ? null : { init: recipe.init };
  const placing = { rank, alpha, scale, targets, rslora, ...(places ? { places } : {}), ...(tables ? { tables } : {}) };
  const peft = { ...placing, dropout, method, settings: settingsOf(method, recipe), begun, baseModel: run.model.path };
  const ofStage = ({ params }: { readonly params: Float32Array }, stage: number) => ({
    ...{ layerRange: { from: stages[stage]!.layerRange.from, to: stages[stage]!.layerRange.to }, params },
  });
  return { name, spec, peft, stages: blocks.map(ofStage) };
}
