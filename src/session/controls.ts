// What a run can be told while it goes on: who shall pause, go on or end, who comes, and how it stands. Changes nothing by itself but an
// adapter's standing; where it has a slot, it leaves it between two of its steps.

import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { AdapterStatus } from "../bus/control.ts";
import type { AdapterPlan } from "../plan/plan.ts";
import { nearest } from "../recipe/suggest.ts";
import type { AdapterData, AdapterState } from "./adapter-state.ts";

export type ControlsOptions = {
  readonly all: readonly AdapterState[];
  readonly hasFreeSlot: () => boolean;
  /** Whether the run is at its end, and nothing joins any more. */
  readonly isOver: () => boolean;
  /** Puts an adapter at the end of the run's. */
  readonly enter: (plan: AdapterPlan, data: AdapterData) => void;
  readonly leave: (live: AdapterState, nextStatus: AdapterState["nextStatus"]) => void;
  /** Ends one that has no slot. */
  readonly end: (live: AdapterState) => void;
  /** Makes the copies that wait for an adapter without a slot. */
  readonly fork: (live: AdapterState) => void;
  /** Somebody may have a slot now. */
  readonly settle: () => void;
};

/** Adapters that have a slot, or are on their way out of it. */
const ON_STAGES: readonly AdapterState["status"][] = ["joining", "active", "held", "leaving"];

export class Controls {
  constructor(private readonly options: ControlsOptions) {}

  /** The adapters, as they stand. */
  get adapters(): AdapterStatus[] {
    return this.options.all.map((live) => {
      const { plan, status, nextStatus, steps, savedSteps, lastLoss, tokens, result } = live;
      const going = status === "active" || status === "held";
      const rate = going ? live.rate : null;
      const state = result?.status ?? (ON_STAGES.includes(status) && nextStatus === "paused" ? "pausing" : STATES[status]);
      return {
        name: plan.name,
        state,
        step: result?.steps ?? Math.max(steps, savedSteps),
        steps: plan.steps,
        loss: result?.lastLoss ?? lastLoss,
        tokensPerSecond: rate,
        secondsLeft: rate === null ? null : Math.max(0, plan.tokens - tokens) / rate,
        priority: plan.recipe.priority,
      };
    });
  }

  /** All names that are taken, those of copies that are still to be made among them. */
  get names(): string[] {
    return this.options.all.flatMap(({ plan, forks }) => [plan.name, ...forks.map((fork) => fork.plan.name)]);
  }

  /** Throws a RequestError, `control.ending`, where nothing can join any more. */
  checkOpen(): void {
    if (this.options.isOver()) throw ending();
  }

  get hasFreeSlot(): boolean {
    return this.options.hasFreeSlot();
  }

  /** Tokens that are still to be trained. */
  get tokensLeft(): number {
    return sum(this.options.all.map(({ plan, tokens, result }) => (result ? 0 : Math.max(0, plan.tokens - tokens))));
  }

  /** Ends an adapter after the step under way; what it has learned is saved. */
  stop(name: string): string {
    const live = this.#find(name);
    if (live.status === "ended") throw already(live, "has ended");
    if (ON_STAGES.includes(live.status)) this.options.leave(live, "ended");
    else this.options.end(live);
    return `${name} ends after ${stepsText(live)}, and is saved`;
  }

  /** Adapters leave the stages and wait there until they are resumed; null for all. */
  pause(name: string | null): string {
    const chosen = this.#chosen(name, (live) => live.status !== "ended" && !isPaused(live), "is paused, or has ended");
    for (const live of chosen)
      if (ON_STAGES.includes(live.status)) this.options.leave(live, "paused");
      else if (live.status === "waiting") live.status = "paused";
      else live.nextStatus = "paused"; // it waits for others of its sweep
    this.options.settle();
    return `${namesOf(chosen)}: paused until resumed`;
  }

  resume(name: string | null): string {
    const chosen = this.#chosen(name, isPaused, "is not paused");
    for (const live of chosen) {
      live.nextStatus = "waiting";
      if (live.status === "paused") live.status = "waiting";
    }
    this.options.settle();
    return `${namesOf(chosen)}: resumed`;
  }

  /** Adapters come to the run. */
  add(adapters: readonly AdapterPlan[], data: readonly AdapterData[]): string {
    this.checkOpen();
    for (const [i, adapter] of adapters.entries()) this.options.enter(adapter, data[i]!);
    this.options.settle();
    return `${adapters.map((adapter) => adapter.name).join(", ")}: added`;
  }

  /** The step under way of an adapter, or its last one. */
  stepOf(name: string): number {
    const { steps, begun, savedSteps } = this.#find(name);
    return Math.max(steps, begun, savedSteps);
  }

  /** A copy of an adapter, `plan`, goes on beside it from the step that it has come to, or comes to: `after`. */
  fork(name: string, plan: AdapterPlan, after = this.stepOf(name)): string {
    this.checkOpen();
    const live = this.#find(name);
    if (live.status === "ended") throw already(live, "has ended: continue it by `from`, in a recipe of its own");
    if (plan.steps <= after)
      throw new RequestError(
        "control.fork",
        `'${name}' has made ${after} steps, '${plan.name}' would end after ${plan.steps}`,
        "give it more steps",
      );
    live.forks.push({ plan, data: live.data, after, isMade: false });
    if (!ON_STAGES.includes(live.status)) this.options.fork(live);
    return `${plan.name}: goes on from ${name}, after step ${after}`;
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

  /** The adapters that are meant: one that must be so, or all that are. */
  #chosen(name: string | null, is: (live: AdapterState) => boolean, otherwise: string): AdapterState[] {
    if (name === null) return this.options.all.filter(is);
    const live = this.#find(name);
    if (!is(live)) throw already(live, otherwise);
    return [live];
  }
}

export const ending = (): RequestError =>
  new RequestError(
    "control.ending",
    "the run ends: nothing is added to it any more",
    "add it when the run goes on, or to another",
  );

const STATES: Readonly<Record<AdapterState["status"], string>> = {
  waiting: "waiting",
  joining: "starting",
  active: "training",
  held: "evaluating",
  leaving: "leaving",
  rung: "at a rung",
  paused: "paused",
  ended: "saving",
};

const isPaused = ({ status, nextStatus }: AdapterState): boolean =>
  status === "paused" || (status !== "ended" && nextStatus === "paused");
const stepsText = ({ steps, begun }: AdapterState): string => `step ${Math.max(steps, begun)}`;
const namesOf = (chosen: readonly AdapterState[]): string =>
  chosen.length === 0 ? "no adapter" : chosen.map(({ plan }) => plan.name).join(", ");
const already = ({ plan }: AdapterState, what: string): RequestError =>
  new RequestError("control.adapter", `'${plan.name}' ${what}`);
