// Opens the stages of a plan: within this process where there is one, else as processes that are started here or join from elsewhere.

import { sleep } from "../base/clock.ts";
import { MloraError } from "../base/errors.ts";
import type { Bus } from "../bus/bus.ts";
import type { BaseModel, StageSetup } from "../bus/messages.ts";
import type { Plan } from "../plan/plan.ts";
import { type Crew, gatherCrew } from "../run/crew.ts";
import { setupsOf } from "../run/setup.ts";
import { openLocalStages } from "../stage/local.ts";

export type OpenStages = AsyncDisposable & {
  readonly bus: Bus;
  /** Aborted when a stage is gone; null where there is none that could be. */
  readonly lost: AbortSignal | null;
  /** Of each stage, which links it has to its neighbours and why. */
  readonly links: readonly (readonly string[])[];
  /** What the run really failed with, where this is only what came of it. */
  readonly causeOf: (error: unknown) => Promise<unknown>;
};

/** A stage that is gone is noticed within this time, and with it why the others failed. */
const NOTICED_MS = 6_000;

/** On this machine alone. */
export async function openStages(
  plan: Plan,
  model: BaseModel,
  link: StageSetup["link"],
  signal: AbortSignal,
): Promise<OpenStages> {
  const here = plan.stages.map(({ device: { kind, compute, ordinal } }) => ({ kind, compute, ordinal }));
  if (here.length > 1) return openCrew(await gatherCrew({ stages: here.length, here, join: null, signal }), plan, model, link);
  const bus = await openLocalStages(setupsOf(plan, model, link));
  return {
    bus,
    lost: null,
    links: [],
    causeOf: (error) => Promise.resolve(error),
    [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
  };
}

/** With stages that have joined; they belong to the result, also where it fails. */
export async function openCrew(crew: Crew, plan: Plan, model: BaseModel, link: StageSetup["link"]): Promise<OpenStages> {
  const { bus } = crew;
  const causeOf = async (error: unknown): Promise<unknown> => {
    if (!(error instanceof MloraError) || !/^(link|bus)\./.test(error.code)) return error;
    for (let waited = 0; waited < NOTICED_MS && !bus.lost.aborted; waited += 50) await sleep(50);
    return bus.lost.aborted ? bus.lost.reason : error;
  };
  await using opened = new AsyncDisposableStack();
  opened.use(crew);
  try {
    const setups = setupsOf(plan, model, link);
    const links = await Promise.all(setups.map((setup, stage) => bus.request(stage, { type: "open", setup })));
    const kept = opened.move();
    return { bus, lost: bus.lost, links, causeOf, [Symbol.asyncDispose]: () => kept.disposeAsync() };
  } catch (error) {
    throw await causeOf(error);
  }
}
