// What a session reports while it trains, as plain data: the command line prints it, metrics.jsonl and the record keep it,
// other readers take it from `events()`. The schema is the single source of what an event holds.

import * as v from "valibot";
import { count } from "../../base/schema.ts";
import { type Outcome, outcomeSchema } from "../../files/record.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import type { Evaluation } from "../evaluation/evaluate.ts";
import { openingEventSchemas } from "./opening-events.ts";

const finite = v.pipe(v.number(), v.finite());
/** Null where the number is not finite: JSON has no other word for that. */
const measured = v.nullable(finite);
/** An adapter by its name and by its index among those of the plan. */
const ofAdapter = { adapter: v.string(), index: count };
/** `metrics`: of a program of the recipe. */
const evaluation = { loss: measured, exact: count, rows: count, metrics: v.exactOptional(v.record(v.string(), finite)) };

/** Of preferences: the share of rows judged correctly, the mean margin of their rewards; of CIT also the mean contrast. */
const preference = v.strictObject({ accuracy: finite, margin: measured, contrast: measured });

export const sessionEventSchema = v.variant("type", [
  ...openingEventSchemas,
  /** An adapter has made its step `step` (from 1) of `steps`. */
  v.strictObject({
    type: v.literal("step"),
    ...ofAdapter,
    step: count,
    steps: count,
    epoch: count,
    loss: finite,
    learningRate: finite,
    gradNorm: finite,
    tokens: count,
    tokensPerSecond: finite,
    preference: v.nullable(preference),
    /** On a mixture of experts, the share of rows that the busiest expert of a layer got, in the mean over layers. */
    busiest: v.exactOptional(finite),
    /** Of answers that it has sampled itself: rewards, lengths and ratios, under TRL's names. */
    rollouts: v.exactOptional(v.record(v.string(), finite)),
  }),
  /** The held-out loss after `step`; `exact` rows are predicted, or, where `isPreference`, judged correctly. */
  v.strictObject({ type: v.literal("evaluation"), ...ofAdapter, step: count, ...evaluation, isPreference: v.boolean() }),
  /** An adapter's files are in `folder`. */
  v.strictObject({ type: v.literal("saved"), ...ofAdapter, step: count, folder: v.string() }),
  v.strictObject({ type: v.literal("failed"), ...ofAdapter, message: v.string() }),
  /** An adapter makes no further step; only notices about it may follow. */
  v.strictObject({
    type: v.literal("ended"),
    ...ofAdapter,
    result: v.strictObject({
      ...outcomeSchema.entries,
      before: v.nullable(v.strictObject(evaluation)),
      after: v.nullable(v.strictObject(evaluation)),
    }),
  }),
  /** An adapter has come to a run under way; `tokens` are those of all its `steps`. */
  v.strictObject({ type: v.literal("joined"), ...ofAdapter, steps: count, tokens: count }),
  /** Something that people should know, of an adapter or (null) of the run. */
  v.strictObject({
    type: v.literal("notice"),
    adapter: v.nullable(v.string()),
    index: v.nullable(count),
    text: v.string(),
  }),
  /** Only to a reader of `events()`: it was too slow, and `count` events before the next one were dropped for it. */
  v.strictObject({ type: v.literal("missed"), count }),
]);

export type SessionEvent = v.InferOutput<typeof sessionEventSchema>;
export type EventOf<T extends SessionEvent["type"]> = Extract<SessionEvent, { readonly type: T }>;
/** Receives every event as it happens, before the session continues; what it throws, the session fails with. */
export type Listener = (event: SessionEvent) => void;

type Named = Pick<AdapterPlan, "name" | "index">;

export const adapterRef = ({ name, index }: Named) => ({ adapter: name, index });

/** A notice about an adapter, or (null) about the run. */
export const noticeEvent = (of: Named | null, text: string): EventOf<"notice"> => ({
  type: "notice",
  adapter: of?.name ?? null,
  index: of?.index ?? null,
  text,
});

export const finiteOrNull = (value: number): number | null => (Number.isFinite(value) ? value : null);

const evaluationData = (of: Evaluation | null) => of && { ...of, loss: finiteOrNull(of.loss) };

export const endedEvent = (plan: Named, result: AdapterResult): EventOf<"ended"> => ({
  type: "ended",
  ...adapterRef(plan),
  result: { ...result, before: evaluationData(result.before), after: evaluationData(result.after) },
});

/** The result in an event, whose losses that are not finite are NaN. */
export const resultOf = ({ result }: EventOf<"ended">): AdapterResult => v.parse(outcomeSchema, result);

/**
 * How an adapter ended. done: all its steps; early: its evaluations got no better; dropped: others of its sweep were better;
 * stopped: on request.
 */
export type AdapterResult = Outcome;

/** Whether an adapter came to less than was asked by a fault, and not on request: it failed, or its rewards did. */
export const isFailure = ({ status, message }: Pick<AdapterResult, "status" | "message">): boolean =>
  status === "failed" || (status === "stopped" && message !== null);

export type RunResult = {
  readonly adapters: readonly AdapterResult[];
  /** What was trained here, and for how long: of a run that was continued, not what came before. */
  readonly seconds: number;
  readonly tokens: number;
  readonly stopped: boolean;
  /** It has not ended: it continues on other stages. */
  readonly suspended: boolean;
};
