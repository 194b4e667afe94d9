// Saving an adapter, and proving what was saved: it is read back, put in the live one's place, and must give the same loss.

import { RunError } from "../base/errors.ts";
import { sameBits } from "../files/convert.ts";
import { writePeftAdapter } from "../files/peft.ts";
import type { FactorTensor } from "../methods/layout.ts";
import type { Blocks } from "../methods/optimizers.ts";
import { alphaOf, scaleOf } from "../methods/placement.ts";
import { DEFINITIONS, settingsOf } from "../methods/registry.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Row } from "../schedule/pack.ts";
import { evaluate } from "./evaluate.ts";
import { factorsOf } from "./parameters.ts";
import { type AdapterSlot, gather, putFactors, readFactors } from "./slot.ts";

/** Rows whose loss is compared. */
const PROBE_ROWS = 4;
/** Likelihoods are compared, whatever the objective was. */
const SFT = { name: "sft" } as const;
/** f32 is written and read without rounding, so that only a wrong file makes a difference. */
const TOLERANCE = 1e-6;

/**
 * Writes `folder` as PEFT would and verifies it on a few of `samples`. Throws a RunError where the file is not what was
 * trained; the adapter in training is left as it was saved.
 */
export async function exportAdapter(of: AdapterSlot, folder: string, samples: readonly Row[]): Promise<void> {
  const { bus, plan, adapter, slot } = of;
  const { name } = adapter;
  const probe = samples.slice(0, PROBE_ROWS).map(({ ids, mask }) => ({ ids, mask }));
  const work = { slot, samples: probe, batchSize: adapter.recipe.batchSize, objective: SFT, references: null };
  const live = await evaluate(bus, plan, work).result;
  if (!Number.isFinite(live.loss))
    throw new RunError(
      "export.loss",
      `adapter '${name}': its loss is ${live.loss}, so it is not saved; lower the learning rate`,
    );
  write(plan, adapter, folder, await gather(of));
  await putFactors(of, readFactors(folder, plan, adapter));
  const saved = await evaluate(bus, plan, work).result;
  if (!(Math.abs(saved.loss - live.loss) <= TOLERANCE * Math.abs(live.loss)))
    throw new RunError(
      "export.mismatch",
      `adapter '${name}': read back from ${folder} it has a loss of ${saved.loss}, in training ${live.loss}`,
      "the disk or the file is not to be trusted; nothing else was overwritten",
    );
}

/** Writes an adapter from its blocks; what is read back must be equal to them, number by number. */
export function exportKept(plan: Plan, adapter: AdapterPlan, blocks: readonly Blocks[], folder: string): void {
  const params = blocks.map((of) => of.params);
  const factors = factorsOf(plan, adapter, params);
  write(plan, adapter, folder, factors);
  for (const [i, { values }] of readFactors(folder, plan, adapter).entries())
    if (!sameBits(values, factors[i]!.values))
      throw new RunError("export.mismatch", `adapter '${adapter.name}': what is in ${folder} is not what was trained`);
}

function write(
  { recipe: run, spec }: Plan,
  { recipe, rank, scale, targets, places, tables, trainedRank }: AdapterPlan,
  folder: string,
  factors: readonly FactorTensor[],
): void {
  const { dropout, method } = recipe;
  // With a frozen half it is a LoRA of twice the rank and the same scale, as PEFT converts its own.
  const rslora = trainedRank === undefined && recipe.rslora;
  const alpha =
    targets.length === 0 || (trainedRank === undefined && scaleOf({ ...recipe, rank }) === scale)
      ? recipe.alpha
      : alphaOf(scale, rank, rslora);
  const settings = settingsOf(method, recipe);
  const shared = DEFINITIONS[method].peft.shared?.tensors(spec, targets, rank, settings) ?? [];
  const begun = trainedRank === undefined ? null : { init: recipe.init };
  const placing = { rank, alpha, targets, rslora, ...(places ? { places } : {}), ...(tables ? { tables } : {}) };
  writePeftAdapter(folder, spec, { ...placing, dropout, method, settings, shared, begun, baseModel: run.model.path }, factors);
}
