// A stage in this process that generates, with saved adapters in its slots.

import { shortPositions } from "../../base/spec.ts";
import type { Bus } from "../../bus/bus.ts";
import type { BaseModel } from "../../bus/messages.ts";
import { openLocalStages } from "../../cluster/local-stage.ts";
import { setupsOf } from "../../cluster/setup.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import type { FactorTensor } from "../../methods/layout.ts";
import { type GenerationPlan, tileOf } from "../../plan/generation.ts";
import { engineOver, type GenerationEngine } from "../decoding/generate.ts";
import { isFollowed, stagesFollow } from "../decoding/generation-engine.ts";
import { readingOn } from "../decoding/reading.ts";
import { blocksOf } from "../state/parameters.ts";

/** An adapter with all its parameters. */
export type LoadedAdapter = PoolAdapter & { readonly factors: readonly FactorTensor[] };

/** Opens the stage and puts the adapters into slots from 0 on. */
export async function openGeneration(
  plan: GenerationPlan,
  model: BaseModel,
  adapters: readonly LoadedAdapter[],
): Promise<GenerationEngine & AsyncDisposable & { readonly bus: Bus }> {
  const bus = await openLocalStages(setupsOf(plan, model));
  await using opened = new AsyncDisposableStack();
  opened.use(bus);
  for (const [slot, { factors, ...loaded }] of adapters.entries()) {
    const { rank, scale, targets, places, tables, method = "lora" } = loaded;
    const where = { ...(places ? { places } : {}), ...(tables ? { tables } : {}) };
    const adapter = { rank, scale, targets, method, seed: 0, init: null, ...where };
    const [params] = blocksOf(plan, { rank, targets, method, ...where }, factors);
    await bus.request(0, { type: "admit", slot, adapter });
    await bus.request(0, { type: "write", slot, blocks: { params: params! } });
  }
  const [{ sizes, device }] = plan.stages;
  const kept = opened.move();
  return {
    bus,
    ...engineOver(bus, {
      sizes,
      tile: tileOf(device),
      shortPositions: shortPositions(plan.spec),
      ...readingOn(plan),
      follows: stagesFollow(plan) && adapters.every(isFollowed),
    }),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}
