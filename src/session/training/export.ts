// Saving an adapter as PEFT would, from its blocks or its slot: large ones by a thread, so that others train meanwhile. What
// was written is read back and compared (files/peftexport.ts).

import { RunError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { exportPeft, type PeftExport } from "../../files/peftexport.ts";
import { alphaOf, scaleOf } from "../../methods/placement.ts";
import { settingsOf } from "../../methods/registry.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import type { Row } from "../../schedule/pack.ts";
import { evaluate } from "../evaluation/evaluate.ts";
import { FileThreads } from "../state/file-threads.ts";
import { layoutOf } from "../state/parameters.ts";
import { type AdapterSlot, readParams } from "../state/slot.ts";

/** Rows whose loss is computed before the export. */
const PROBE_ROWS = 4;
/** Likelihoods are looked at, whatever the objective was. */
const SFT = { name: "sft" } as const;
/** Bytes of parameters that are written in less time than a thread takes to start. */
const SMALL = 32 << 20;
/** Exports at once: each holds an adapter's parameters three times in the host's memory. */
const MOST_EXPORTS = 2;

/** Exports of a run: a few at once. Dispose of it when all are done. */
export const startExports = (): FileThreads => new FileThreads(MOST_EXPORTS);

/**
 * Writes `folder` as PEFT would, from the adapter's slot, and verifies it. Throws a RunError where its loss on a few of
 * `samples` is not finite, and where the file is not what was trained.
 */
export async function exportAdapter(
  of: AdapterSlot,
  folder: string,
  samples: readonly Row[],
  threads: FileThreads,
): Promise<void> {
  const { bus, plan, adapter, slot } = of;
  // Of a prompt, which has no answer, the tokens that it has itself.
  const maskOf = ({ ids, mask, columns }: Row) => (columns === undefined ? mask : new Uint8Array(ids.length).fill(1));
  const probe = samples.slice(0, PROBE_ROWS).map((row) => ({ ids: row.ids, mask: maskOf(row) }));
  // One by one: the plan has room for each, and not for several that no step and no evaluation has together.
  const work = { slot, samples: probe, batchSize: 1, objective: SFT, references: null };
  const { loss } = await evaluate(bus, plan, work).result;
  if (!Number.isFinite(loss) && probe.some(({ mask }) => mask.includes(1, 1)))
    throw new RunError(
      "export.loss",
      `adapter '${adapter.name}': its loss is ${loss}, so it is not saved; lower the learning rate`,
    );
  await exportBlocks(plan, adapter, () => readParams({ bus, slot }), folder, threads);
}

/** Whether its parameters are written in less time than a thread takes to start. */
export const isSmall = (plan: Plan, adapter: AdapterPlan): boolean =>
  sum(plan.stages.map((_, stage) => 4 * layoutOf(plan, stage, adapter).size)) < SMALL;

/** The same from its blocks, which `read` gives and which are the export's from then on. */
export async function exportBlocks(
  plan: Plan,
  adapter: AdapterPlan,
  read: () => Promise<readonly { readonly params: Float32Array }[]>,
  folder: string,
  threads: FileThreads | null = null,
): Promise<void> {
  if (!threads || isSmall(plan, adapter)) return exportPeft(folder, peftExport(plan, adapter, await read()));
  await threads.run(async () => {
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
    layout: layoutOf(plan, stage, adapter),
  });
  return { name, spec, peft, stages: blocks.map(ofStage) };
}
