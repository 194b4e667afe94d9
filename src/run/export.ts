// Saving an adapter, and proving what was saved: it is read back, put in the live one's place, and must give the same loss.

import { RunError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { FactorTensor } from "../bus/messages.ts";
import { readPeftAdapter, writePeftAdapter } from "../files/peft.ts";
import type { Plan } from "../plan/plan.ts";
import type { Tokens } from "../schedule/pack.ts";
import { evaluate } from "./evaluate.ts";

/** Rows whose loss is compared. */
const PROBE_ROWS = 4;
/** f32 is written and read as it is, so that only a wrong file makes a difference. */
const TOLERANCE = 1e-6;

/** All factors of an adapter, over all stages. */
async function gather(bus: Bus, adapter: number): Promise<FactorTensor[]> {
  const parts = await Promise.all(range(bus.stages).map((stage) => bus.request(stage, { type: "read", adapter })));
  return parts.flat();
}

/** Replaces an adapter's factors on all stages; each takes those of its own layers. */
export async function putFactors(bus: Bus, adapter: number, factors: readonly FactorTensor[]): Promise<void> {
  await Promise.all(range(bus.stages).map((stage) => bus.request(stage, { type: "write", adapter, factors })));
}

/** The factors of a PEFT adapter directory, in the order of the layers. */
export function readFactors(folder: string, plan: Plan, adapter: number): FactorTensor[] {
  const { targets } = plan.adapters[adapter]!;
  const saved = readPeftAdapter(folder, plan.spec);
  return Array.from({ length: plan.spec.layers }, (_, layer) =>
    targets.flatMap((linear) =>
      (["A", "B"] as const).map((factor) => ({ layer, linear, factor, values: saved.tensor(layer, linear, factor) })),
    ),
  ).flat();
}

/**
 * Writes `folder` as PEFT would and verifies it on a few of `samples`. A RunError says that the file is not what was trained;
 * the live adapter is left as it was saved.
 */
export async function exportAdapter(
  bus: Bus,
  plan: Plan,
  adapter: number,
  folder: string,
  samples: readonly Tokens[],
): Promise<void> {
  const { recipe, rank, targets, name } = plan.adapters[adapter]!;
  const probe = samples.slice(0, PROBE_ROWS);
  const live = await evaluate(bus, plan, adapter, probe).result;
  const factors = await gather(bus, adapter);
  writePeftAdapter(
    folder,
    { rank, alpha: recipe.alpha, dropout: recipe.dropout, targets, rslora: recipe.rslora, baseModel: plan.recipe.model.path },
    factors,
  );
  await putFactors(bus, adapter, readFactors(folder, plan, adapter));
  const saved = await evaluate(bus, plan, adapter, probe).result;
  if (!(Math.abs(saved.loss - live.loss) <= TOLERANCE * Math.abs(live.loss)))
    throw new RunError(
      "export.mismatch",
      `adapter '${name}': read back from ${folder} it has a loss of ${saved.loss}, in training ${live.loss}`,
      "the disk or the file is not to be trusted; nothing else was overwritten",
    );
}
