// What a run tells while it goes: the command line draws it, metrics.jsonl keeps it.

import type { Outcome } from "../files/record.ts";
import type { AdapterPlan } from "../plan/plan.ts";
import type { Evaluation } from "./evaluate.ts";
import type { Judgement } from "./executor.ts";

export type StepEvent = {
  readonly adapter: number;
  readonly step: number; // from 1
  readonly steps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly learningRate: number;
  readonly gradNorm: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  readonly preference: Judgement | null;
};

export type EvaluationEvent = Evaluation & { readonly adapter: number; readonly step: number };

export type SavedEvent = { readonly adapter: number; readonly step: number; readonly folder: string };

/** What a run tells, each by its own function. */
export type Events = {
  readonly stepped: (event: StepEvent) => void;
  readonly evaluated: (event: EvaluationEvent) => void;
  readonly saved: (event: SavedEvent) => void;
  readonly failed: (adapter: number, message: string) => void;
  /** It makes no further step. */
  readonly ended: (adapter: number, result: AdapterResult) => void;
  /** It has come while the run went on: the plan has it now. */
  readonly joined: (adapter: AdapterPlan) => void;
  /** Something that people should know of, of an adapter or (null) of the run. */
  readonly noticed: (adapter: number | null, text: string) => void;
};
/** Hears what it wants to. */
export type Observer = Partial<Events>;

/** One observer that tells several. */
export const together = (observers: readonly Observer[]): Events => ({
  stepped: (event) => {
    for (const { stepped } of observers) stepped?.(event);
  },
  evaluated: (event) => {
    for (const { evaluated } of observers) evaluated?.(event);
  },
  saved: (event) => {
    for (const { saved } of observers) saved?.(event);
  },
  failed: (adapter, message) => {
    for (const { failed } of observers) failed?.(adapter, message);
  },
  ended: (adapter, result) => {
    for (const { ended } of observers) ended?.(adapter, result);
  },
  joined: (adapter) => {
    for (const { joined } of observers) joined?.(adapter);
  },
  noticed: (adapter, text) => {
    for (const { noticed } of observers) noticed?.(adapter, text);
  },
});

/**
 * How an adapter came out. done: all its steps; early: its evaluations got no better; dropped: others of its sweep were better; stopped:
 * by somebody's wish.
 */
export type AdapterResult = Outcome;

export type RunResult = {
  readonly adapters: readonly AdapterResult[];
  /** What was trained here, and for how long: of a run that was gone on with, not what came before. */
  readonly seconds: number;
  readonly tokens: number;
  readonly stopped: boolean;
  /** It has not ended: its stages are to be opened otherwise, and it goes on there. */
  readonly suspended: boolean;
};
