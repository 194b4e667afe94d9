// Between their steps, adapters that answer prompts themselves make the answers that they learn next, while others train.

import { MloraError, textOf } from "../../base/errors.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import { type AdapterState, isBetweenSteps } from "../scheduling/adapter-state.ts";
import type { BackgroundTasks } from "../scheduling/background.ts";
import type { AdapterScheduler } from "../scheduling/scheduler.ts";
import type { RunAnswers } from "./run-answers.ts";

/** Receives the answers of an adapter when they are made, before it learns them. */
export type RecordAnswers = (adapter: AdapterPlan, rollouts: NonNullable<AdapterState["rollouts"]>) => void;

export type SamplingOptions = {
  /** Called when the first answers are asked for. */
  readonly open: () => RunAnswers;
  readonly scheduler: AdapterScheduler;
  readonly background: BackgroundTasks;
  /** Aborted: no answers are made any more. */
  readonly over: AbortSignal;
  readonly record: RecordAnswers;
  /** Called with an adapter that is to leave now. */
  readonly leaves: (adapter: AdapterState) => void;
  /** Called with an adapter whose rewards cannot be had. */
  readonly stopped: (adapter: AdapterState, message: string) => void;
};

export class Sampling {
  #maker: RunAnswers | null = null;

  constructor(private readonly options: SamplingOptions) {}

  /** Has an adapter make its next answers, and then train on them. A request to leave ends that; they are made again then. */
  start(adapter: AdapterState): void {
    const own = new AbortController();
    adapter.sampling = own;
    this.options.background.start(this.#make(adapter, AbortSignal.any([own.signal, this.options.over])));
  }

  async #make(adapter: AdapterState, signal: AbortSignal): Promise<void> {
    const { open, scheduler, record, leaves, stopped } = this.options;
    let fault: string | null = null;
    try {
      this.#maker ??= open();
      adapter.rollouts = await this.#maker.make(adapter, signal);
      adapter.latestRows = [];
      record(adapter.plan, adapter.rollouts);
    } catch (error) {
      if (!signal.aborted && !isOfReward(error)) throw error;
      fault = signal.aborted ? null : textOf(error);
    } finally {
      adapter.sampling = null;
    }
    if (adapter.status === "ended") return;
    if (fault !== null) return stopped(adapter, fault);
    if (adapter.status === "active" && !signal.aborted) scheduler.train(adapter);
    else if (adapter.status === "resting" && isBetweenSteps(adapter)) scheduler.rest(adapter);
    else if (adapter.status === "leaving" && isBetweenSteps(adapter)) leaves(adapter);
  }
}

const isOfReward = (error: unknown): boolean => error instanceof MloraError && error.code === "reward.failed";
