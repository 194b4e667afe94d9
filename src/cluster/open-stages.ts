// Opens the stages of a plan: a single one within this process, several as processes, here or on other machines.

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
  /** Aborted when a stage is gone; null for a single stage, which is in this process. */
  readonly lost: AbortSignal | null;
  /** Of each stage, the kinds of its links to its neighbours and why these were chosen. */
  readonly links: readonly (readonly string[])[];
  /** The first cause of an error: a link fails, for instance, because the stage at its other end is gone. */
  readonly causeOf: (error: unknown) => Promise<unknown>;
  /** Where the run takes requests of other processes; null where there is no server. */
  readonly control: { readonly connection: SealedConnection; readonly run: string } | null;
};

/** A stage that is gone is noticed within this time, and with it the cause of the others' failures. */
const NOTICED_MS = 6_000;

/**
 * All stages on this machine. `run` is the id under which the run takes requests; null: a single stage takes none. `isApart`: a
 * single stage is a process of its own, too, so that what it computes does not hold up this one.
 */
export async function openStages(
  plan: Plan,
  model: BaseModel,
  link: StageSetup["link"],
  signal: AbortSignal,
  run: string | null = null,
  isApart = false,
): Promise<OpenStages> {
  const here = plan.stages.map(({ device: { kind, compute, ordinal } }) => ({ kind, compute, ordinal }));
  if (here.length > 1 || isApart) {
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

/** A single stage needs a server for requests alone: without one it trains, too. */
async function openControl(run: string, opened: AsyncDisposableStack): Promise<OpenStages["control"]> {
  try {
    const { address } = opened.use(await startServer());
    return { connection: opened.use(await connectSealed(address, `mlora ${run}`, newRunKey())), run };
  } catch (error) {
    log(0, () => `notice: this run cannot be watched or told anything from elsewhere: ${textOf(error)}`);
    return null;
  }
}

/** Opens stages that have joined; these belong to the result, also where opening fails. */
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
