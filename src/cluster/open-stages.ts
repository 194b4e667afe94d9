// Opens the stages of a plan: within this process where there is one, else as processes that are started here or join from elsewhere.

import { sleep } from "../base/clock.ts";
import { MloraError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import type { Bus } from "../bus/bus.ts";
import { logged } from "../bus/logged.ts";
import type { BaseModel, StageSetup } from "../bus/messages.ts";
import { connectSealed, newRunKey, type SealedConnection } from "../bus/seal.ts";
import { newRunId } from "../bus/subjects.ts";
import type { Plan } from "../plan/plan.ts";
import { launchStages, type StageProcesses } from "./launch.ts";
import { openLocalStages } from "./local-stage.ts";
import { startServer } from "./server.ts";
import { setupsOf } from "./setup.ts";

export type OpenStages = AsyncDisposable & {
  readonly bus: Bus;
  /** Aborted when a stage is gone; null where there is none that could be. */
  readonly lost: AbortSignal | null;
  /** Of each stage, which links it has to its neighbours and why. */
  readonly links: readonly (readonly string[])[];
  /** What the run really failed with, where this is only what came of it. */
  readonly causeOf: (error: unknown) => Promise<unknown>;
  /** Where the run can be asked and told things; null where there is no server. */
  readonly control: { readonly connection: SealedConnection; readonly run: string } | null;
};

/** A stage that is gone is noticed within this time, and with it why the others failed. */
const NOTICED_MS = 6_000;

/** On this machine alone. `run` is what the run is called where it can be asked things; null for a single stage that cannot. */
export async function openStages(
  plan: Plan,
  model: BaseModel,
  link: StageSetup["link"],
  signal: AbortSignal,
  run: string | null = null,
): Promise<OpenStages> {
  const here = plan.stages.map(({ device: { kind, compute, ordinal } }) => ({ kind, compute, ordinal }));
  if (here.length > 1) {
    const processes = await launchStages({ stages: here.length, here, join: null, run: run ?? newRunId(), signal });
    return openProcesses(processes, plan, model, link);
  }
  await using opened = new AsyncDisposableStack();
  const control = run === null ? null : await openControl(run, opened);
  const bus = opened.use(await openLocalStages(setupsOf(plan, model, link), signal));
  const kept = opened.move();
  const causeOf = (error: unknown) => Promise.resolve(error);
  return { bus: logged(bus), lost: null, links: [], causeOf, control, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** A single stage needs no server to train: without one it only cannot be asked anything. */
async function openControl(run: string, opened: AsyncDisposableStack): Promise<OpenStages["control"]> {
  try {
    const { address } = opened.use(await startServer());
    return { connection: opened.use(await connectSealed(address, `mlora ${run}`, newRunKey())), run };
  } catch (error) {
    log(0, () => `notice: this run cannot be watched or told anything from elsewhere: ${textOf(error)}`);
    return null;
  }
}

/** With stages that have joined; they belong to the result, also where it fails. */
export async function openProcesses(
  processes: StageProcesses,
  plan: Plan,
  model: BaseModel,
  link: StageSetup["link"],
): Promise<OpenStages> {
  const { bus } = processes;
  const causeOf = async (error: unknown): Promise<unknown> => {
    if (!(error instanceof MloraError) || !/^(link|bus)\./.test(error.code)) return error;
    for (let waited = 0; waited < NOTICED_MS && !bus.lost.aborted; waited += 50) await sleep(50);
    return bus.lost.aborted ? bus.lost.reason : error;
  };
  await using opened = new AsyncDisposableStack();
  opened.use(processes);
  try {
    const setups = setupsOf(plan, model, link);
    const links = await Promise.all(setups.map((setup, stage) => bus.request(stage, { type: "open", setup })));
    const kept = opened.move();
    const control = { connection: bus.connection, run: processes.run };
    return { bus: logged(bus), lost: bus.lost, links, causeOf, control, [Symbol.asyncDispose]: () => kept.disposeAsync() };
  } catch (error) {
    throw await causeOf(error);
  }
}
