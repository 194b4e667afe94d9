// What a run tells while it goes: the command line draws it, metrics.jsonl keeps it.

import type { Evaluation } from "./evaluate.ts";

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
};

export type EvaluationEvent = Evaluation & { readonly adapter: number; readonly step: number };

export type SavedEvent = { readonly adapter: number; readonly step: number; readonly folder: string };

export type Observer = {
  readonly stepped: (event: StepEvent) => void;
  readonly evaluated: (event: EvaluationEvent) => void;
  readonly saved: (event: SavedEvent) => void;
  readonly failed: (adapter: number, message: string) => void;
  /** Something that people should know of, of an adapter or (null) of the run. */
  readonly noticed: (adapter: number | null, text: string) => void;
};

/** How an adapter came out. */
export type AdapterResult = {
  readonly name: string;
  readonly status: "done" | "stopped" | "failed";
  readonly message: string | null;
  readonly steps: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly before: Evaluation | null;
  readonly after: Evaluation | null;
  readonly firstLoss: number | null;
  readonly lastLoss: number | null;
  readonly folder: string | null;
};

export type RunResult = {
  readonly adapters: readonly AdapterResult[];
  readonly seconds: number;
  readonly tokens: number;
  readonly stopped: boolean;
};
