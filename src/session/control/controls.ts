// Runtime controls: pause, resume and stop adapters, add new ones and copies, report their status. Adapters leave their slots
// between two steps.

import { sleep } from "../../base/clock.ts";
import { RequestError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { count, counted } from "../../base/units.ts";
import type { AdapterStatus } from "../../bus/control.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import { nearest } from "../../recipe/suggest.ts";
import type { Row } from "../../schedule/pack.ts";
import { type AdapterData, type AdapterState, apply, takeRows } from "../scheduling/adapter-state.ts";
import { isOnStages, type LifecycleEvent } from "../scheduling/transition.ts";

export type ControlsOptions = {
  readonly all: readonly AdapterState[];
  readonly hasRoomFor: (late: readonly AdapterPlan[]) => boolean;
  /** Whether the run is ending, so that nothing joins it. */
  readonly isOver: () => boolean;
  /** Appends an adapter to the run's. */
  readonly enter: (plan: AdapterPlan, data: AdapterData) => void;
  /** Has an adapter leave its slot. */
  readonly leave: (adapter: AdapterState, event: Extract<LifecycleEvent, "pauseRequested" | "stopRequested">) => void;
  /** Ends an adapter that has no slot. */
  readonly end: (adapter: AdapterState) => void;
  /** Makes the copies of an adapter that has no slot. */
  readonly fork: (adapter: AdapterState) => void;
  /** Admits adapters that may have a slot now. */
  readonly settle: () => void;
  /** The likeliest token after these, by the adapter in a slot. */
  readonly nextToken: (slot: number, ids: readonly number[]) => Promise<number>;
};

/** Counts from 1: the step that the rows are of. */
export type LatestRows = { readonly step: number; readonly rows: readonly Row[] };
/** `step`: of the weights that found it. */
export type FoundToken = { readonly token: number; readonly step: number };

export class Controls {
  constructor(private readonly options: ControlsOptions) {}

  /** The adapters as `mlora ps` shows them. */
  get adapters(): AdapterStatus[] {
    return this.options.all.map((adapter) => {
      const { plan, status, steps, savedSteps, lastLoss, tokens, result } = adapter;
      const rate = status === "active" || status === "evaluating" ? adapter.rate : null;
      return {
        name: plan.name,
        state: result?.status ?? stateOf(adapter),
        step: result?.steps ?? Math.max(steps, savedSteps),
        steps: plan.steps,
        loss: result?.lastLoss ?? lastLoss,
        tokensPerSecond: rate,
        secondsLeft: rate === null ? null : Math.max(0, plan.tokens - tokens) / rate,
        priority: plan.recipe.priority,
      };
    });
  }

  /** Rows of the micro-batch of an adapter that has begun last, and its step; null before the first. */
  latestRows(name: string): LatestRows | null {
    const { latestRows, data, rollouts, begun } = this.#find(name);
    const rows = rollouts?.rows ?? data.train;
    return latestRows.length === 0 ? null : { step: begun, rows: latestRows.map((row) => rows[row]!) };
  }

  /** All rows of the first adapters, which began before these were read. */
  takeRows(plan: Plan, data: readonly AdapterData[]): void {
    for (const [i, of] of data.entries()) takeRows(this.options.all[i]!, plan, of);
  }

  /** Adapters that can be asked for a token now. */
  get answering(): string[] {
    return this.options.all.filter(isAnswering).map(({ plan }) => plan.name);
  }

  /**
   * The likeliest token after these, by an adapter as it is between two of its steps. Throws a RequestError, `control.prompt`,
   * where it is not on the stages.
   */
  async nextToken(name: string, ids: readonly number[]): Promise<FoundToken> {
    const adapter = this.#find(name);
    while (isAnswering(adapter) && adapter.step !== null) await sleep(1); // some stages have made the step, and others have not
    if (!isAnswering(adapter))
      throw new RequestError(
        "control.prompt",
        `'${name}' is not on the stages now, so it cannot answer`,
        "ask it while it trains, or use mlora generate with what it has saved",
      );
    const { slot, steps: step } = adapter;
    return { token: await this.options.nextToken(slot!, ids), step };
  }

  /** All names that are taken, also by copies that are still to be made. */
  get names(): string[] {
    return this.options.all.flatMap(({ plan, forks }) => [plan.name, ...forks.map((fork) => fork.plan.name)]);
  }

  /** Names of adapters that are paused, wherever they stand. */
  get paused(): string[] {
    return this.options.all.flatMap(({ plan, isPaused }) => (isPaused ? [plan.name] : []));
  }

  /** Throws a RequestError, `control.ending`, where nothing joins any more. */
  checkOpen(): void {
    if (this.options.isOver()) throw ending();
  }

  /** Whether these could begin at once. */
  hasRoomFor(late: readonly AdapterPlan[]): boolean {
    return this.options.hasRoomFor(late);
  }

  /** Tokens left to train. */
  get tokensLeft(): number {
    return sum(this.options.all.map(({ plan, tokens, result }) => (result ? 0 : Math.max(0, plan.tokens - tokens))));
  }

  /** Ends an adapter after the step under way; what it has learned is saved. A stop is final. */
  stop(name: string): string {
    const adapter = this.#find(name);
    if (adapter.status === "ended") throw already(adapter, "has ended");
    if (isOnStages(adapter)) this.options.leave(adapter, "stopRequested");
    else this.options.end(adapter);
    return `${name} ends after ${stepsText(adapter)}, and is saved`;
  }

  /** Has an adapter, or (null) all, leave the stages until it is resumed. */
  pause(name: string | null): string {
    if (name !== null && this.#find(name).nextStatus === "ended")
      throw already(this.#find(name), "ends after its step under way");
    const chosen = this.#chosen(name, canPause, "is paused, or has ended");
    for (const adapter of chosen)
      if (!canPause(adapter))
        continue; // a listener has paused it
      else if (isOnStages(adapter)) this.options.leave(adapter, "pauseRequested");
      else apply(adapter, "pauseRequested");
    this.options.settle();
    return `${namesOf(chosen)}: paused until resumed`;
  }

  resume(name: string | null): string {
    const chosen = this.#chosen(name, ({ isPaused }) => isPaused, "is not paused");
    for (const adapter of chosen) apply(adapter, "resumeRequested");
    this.options.settle();
    return `${namesOf(chosen)}: resumed`;
  }

  /** Adds adapters to the run. */
  add(adapters: readonly AdapterPlan[], data: readonly AdapterData[]): string {
    this.checkOpen();
    for (const [i, adapter] of adapters.entries()) this.options.enter(adapter, data[i]!);
    this.options.settle();
    return `${adapters.map((adapter) => adapter.name).join(", ")}: added`;
  }

  /** The step of an adapter that is under way, or its last one. */
  stepOf(name: string): number {
    const { steps, begun, savedSteps } = this.#find(name);
    return Math.max(steps, begun, savedSteps);
  }

  /** Adds `plan`, a copy of an adapter that continues from its step `after`. */
  fork(name: string, plan: AdapterPlan, after = this.stepOf(name)): string {
    this.checkOpen();
    const adapter = this.#find(name);
    if (adapter.status === "ended") throw already(adapter, "has ended: continue it by `from`, in a recipe of its own");
    if (plan.steps <= after)
      throw new RequestError(
        "control.fork",
        `'${name}' has made ${counted(after, "step")}, '${plan.name}' would end after ${count(plan.steps)}`,
        "give it more steps",
      );
    adapter.forks.push({ plan, data: adapter.data, after, isMade: false });
    if (!isOnStages(adapter)) this.options.fork(adapter);
    return `${plan.name}: continues from ${name}, after step ${after}`;
  }

  #find(name: string): AdapterState {
    const names = this.options.all.map(({ plan }) => plan.name);
    const found = this.options.all.find(({ plan }) => plan.name === name);
    if (found) return found;
    const meant = nearest(name, names);
    const hint = meant
      ? `did you mean '${meant}'?`
      : `it has ${names.slice(0, 8).join(", ")}${names.length > 8 ? ", ..." : ""}`;
    throw new RequestError("control.adapter", `the run has no adapter '${name}'`, hint);
  }

  /** The named adapter, for which `is` must hold, or (null) all for which it holds. */
  #chosen(name: string | null, is: (adapter: AdapterState) => boolean, otherwise: string): AdapterState[] {
    if (name === null) return this.options.all.filter(is);
    const adapter = this.#find(name);
    if (!is(adapter)) throw already(adapter, otherwise);
    return [adapter];
  }
}

export const ending = (): RequestError =>
  new RequestError(
    "control.ending",
    "the run ends: nothing is added to it any more",
    "add it when the run has been resumed, or to another run",
  );

const STATES: Readonly<Record<AdapterState["status"], string>> = {
  waiting: "waiting",
  joining: "starting",
  active: "training",
  resting: "between turns",
  evaluating: "evaluating",
  leaving: "leaving",
  rung: "at a rung",
  ended: "saving",
};

function stateOf(adapter: AdapterState): string {
  if (adapter.isPaused && isOnStages(adapter)) return "pausing";
  return adapter.isPaused && adapter.status === "waiting" ? "paused" : STATES[adapter.status];
}

const isAnswering = ({ status }: AdapterState): boolean => status === "active" || status === "evaluating";
const canPause = ({ status, nextStatus, isPaused }: AdapterState): boolean =>
  status !== "ended" && nextStatus !== "ended" && !isPaused;
const stepsText = ({ steps, begun }: AdapterState): string => `step ${Math.max(steps, begun)}`;
const namesOf = (chosen: readonly AdapterState[]): string =>
  chosen.length === 0 ? "no adapter" : chosen.map(({ plan }) => plan.name).join(", ");
const already = ({ plan }: AdapterState, what: string): RequestError =>
  new RequestError("control.adapter", `'${plan.name}' ${what}`);
