// An adapter while a run goes on: where it stands, and what it has come to.

import { now } from "../base/clock.ts";
import { isQuantised } from "../base/precision.ts";
import type { Progress } from "../files/checkpoint.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { adapterTable } from "../recipe/resolve.ts";
import { type Row, sequencesOf } from "../schedule/pack.ts";
import type { Evaluation } from "./evaluate.ts";
import type { AdapterResult } from "./events.ts";
import type { MiniBatch } from "./executor.ts";
import type { References } from "./references.ts";
import type { Source } from "./sources.ts";

/** The tokenised rows of an adapter, and what else it is made from. */
export type AdapterData = {
  readonly train: readonly Row[];
  readonly eval: readonly Row[];
  readonly sources?: readonly Source[];
};

/**
 * waiting: for a slot. joining: its slot is being filled. active: it trains. held: it has a slot, and the next step waits for an
 * evaluation. leaving: it gives up its slot when the step under way is made. rung: it waits for the others of its sweep. paused: by
 * somebody's wish. ended: it makes no step any more.
 */
export type Status = "waiting" | "joining" | "active" | "held" | "leaving" | "rung" | "paused" | "ended";

export type MadeStep = {
  readonly step: number; // from 1
  readonly loss: number;
  readonly tokens: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly preference: MiniBatch["preference"];
};

/** A copy that goes on from an adapter's state after the step `after`. `isMade`: the state is being kept for it. */
export type Fork = { readonly plan: AdapterPlan; readonly data: AdapterData; readonly after: number; isMade: boolean };

export type AdapterState = {
  readonly plan: AdapterPlan;
  readonly data: AdapterData;
  readonly made: Progress["made"];
  /** Counts up with those that come. */
  arrived: number;
  status: Status;
  /** Where it goes when it has left. */
  nextStatus: "waiting" | "paused" | "rung" | "ended";
  /** It has had a slot before, in this run. */
  known: boolean;
  /** Its place on the stages; null where it has none. */
  slot: number | null;
  /** Mini-batches that were begun, and steps that all stages have been told to make. */
  begun: number;
  steps: number;
  /** Steps that it had made when it was kept, where it has not been on the stages since. */
  savedSteps: number;
  /** The step under way, from when it is decided. */
  step: MadeStep | null;
  tokens: number;
  /** Of its time so far, what earlier runs had, and since when this one counts. */
  secondsBefore: number;
  since: number;
  steppedAt: number;
  savedAt: number;
  saving: boolean;
  /** The save under way, or the last one: it is over, whatever came of it, when this resolves. */
  kept: Promise<void>;
  firstLoss: number | null;
  lastLoss: number | null;
  before: Evaluation | null;
  best: Progress["best"];
  /** What its rows are measured against, where its objective has a reference; filled when it first has a slot. */
  references: References | null;
  /** Its latest evaluation. */
  latest: Evaluation | null;
  /** Tokens a second, lately; null before its second step. */
  rate: number | null;
  /** Copies that go on from it under other names, from its next step, when it has made as many as `after`. */
  readonly forks: Fork[];
  result: AdapterResult | null;
};

export function newAdapterState(plan: AdapterPlan, data: AdapterData, made: Progress["made"], arrived: number): AdapterState {
  const time = now();
  return {
    plan,
    data,
    made,
    arrived,
    status: "waiting",
    nextStatus: "waiting",
    known: false,
    slot: null,
    begun: 0,
    steps: 0,
    savedSteps: 0,
    step: null,
    tokens: 0,
    secondsBefore: 0,
    since: time,
    steppedAt: time,
    savedAt: time,
    saving: false,
    kept: Promise.resolve(),
    firstLoss: null,
    lastLoss: null,
    before: null,
    best: null,
    references: null,
    latest: null,
    rate: null,
    forks: [],
    result: null,
  };
}

export const secondsOf = ({ secondsBefore, since }: AdapterState): number => secondsBefore + (now() - since) / 1000;

export const progressOf = (live: AdapterState): Progress => ({
  adapter: live.plan.name,
  step: live.steps,
  tokens: live.tokens,
  seconds: secondsOf(live),
  firstLoss: live.firstLoss,
  lastLoss: live.lastLoss,
  before: live.before,
  best: live.best,
  made: live.made,
});

/** The copies that can be made of it as it is now, and from now on are; they stay among its copies, so that their names are taken, until they have joined. */
export function dueForks(live: AdapterState): Fork[] {
  const due = live.forks.filter(({ after, isMade }) => !isMade && after <= madeBy(live));
  for (const fork of due) fork.isMade = true;
  return due;
}

/** A copy has joined, or was not made. */
export const endFork = (live: AdapterState, fork: Fork): void => void live.forks.splice(live.forks.indexOf(fork), 1);

/** Steps that it has made, whether it is on the stages or not. */
const madeBy = ({ steps, savedSteps }: AdapterState): number => Math.max(steps, savedSteps);

/** Puts an adapter where it stood. */
export function restore(live: AdapterState, progress: Progress): void {
  const { step, tokens, seconds, firstLoss, lastLoss, before, best } = progress;
  Object.assign(live, { begun: step, steps: step, tokens, firstLoss, lastLoss, before, best });
  live.secondsBefore = seconds;
  live.since = now();
}

/** Keys of an adapter that decide only when and where it is trained; its data is compared by its content. */
const BESIDE = ["data", "priority", "eval_every"];

/** What decides an adapter's numbers: its settings, as text that can be compared key by key, its data, its base model, saved adapters. */
export function madeOf(
  { tokensPerMicrobatch, recipe: run }: Plan,
  { recipe }: AdapterPlan,
  data: AdapterData,
  model: string,
): Progress["made"] {
  const { precision } = run.model;
  const base = isQuantised(precision) ? { precision } : {}; // else the base is what its files say
  const settings = Object.entries({ ...adapterTable(recipe), ...base, tokens_per_microbatch: tokensPerMicrobatch });
  const deciding = Object.fromEntries(settings.filter(([key]) => !BESIDE.includes(key)));
  const adapters = Object.fromEntries((data.sources ?? []).map((source) => [source.key, source.fingerprint]));
  const named = Object.keys(adapters).length > 0 ? { adapters } : {};
  return { settings: JSON.stringify(deciding), data: fingerprint(data), model, ...named };
}

function fingerprint({ train, eval: heldOut }: AdapterData): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const rows of [train, heldOut]) {
    hasher.update(`${rows.length};`);
    for (const row of rows) {
      for (const { ids, mask } of sequencesOf(row)) hasher.update(`${ids.length};`).update(ids).update(mask);
      if (row.label !== undefined) hasher.update(`${row.label};`);
    }
  }
  return hasher.digest("hex");
}

/** Whether its evaluation after this step counts for its patience. */
export const isCounted = ({ plan: { recipe } }: Pick<AdapterState, "plan">, step: number): boolean =>
  recipe.patience !== null && recipe.evalEvery !== null && step > 0 && step % recipe.evalEvery === 0;

/** Whether it has come to a rung of its sweep. */
export const isRung = ({ plan: { recipe, steps } }: Pick<AdapterState, "plan">, step: number): boolean =>
  recipe.halving !== null && step > 0 && step < steps && step % recipe.halving.rung === 0;

/** Whether it is evaluated after this step: before its first, every so many, and at rungs; after its last is another matter. */
export const isEvaluated = (live: Pick<AdapterState, "plan">, step: number): boolean => {
  const { recipe, steps } = live.plan;
  return step === 0 || isRung(live, step) || (recipe.evalEvery !== null && step < steps && step % recipe.evalEvery === 0);
};

/** Whether the adapter's next step waits for the evaluation after this one. */
export const waitsForEvaluation = (live: Pick<AdapterState, "plan">, step: number): boolean =>
  isCounted(live, step) || isRung(live, step);
