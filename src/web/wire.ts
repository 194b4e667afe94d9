// What the page and its server say to each other, as types alone: both sides are of one version.

import type { Point } from "./curve.ts";

/** An adapter, or a job of a server. */
export type AdapterState = {
  /** What requests name it by, and what is shown. */
  readonly name: string;
  readonly label: string;
  readonly state: string;
  readonly step: number;
  readonly steps: number;
  readonly loss: number | null;
  readonly gradNorm: number | null;
  readonly learningRate: number | null;
  readonly tokensPerSecond: number | null;
  readonly secondsLeft: number | null;
  /** The loss on held-out rows that was measured last, and the least. */
  readonly heldOut: number | null;
  readonly bestHeldOut: number | null;
  /** How it ended, in words; why it failed. */
  readonly note: string | null;
};
/** By the step after which it was measured. */
export type HeldOut = readonly [step: number, loss: number];

export type RunState = {
  /** "training", "waiting", "starting", "stopping", "over". */
  readonly state: string;
  readonly model: string;
  readonly device: string;
  readonly slots: number;
  readonly seconds: number;
  readonly secondsLeft: number | null;
  readonly tokensPerSecond: number;
  readonly stages: readonly StageFacts[];
};
export type StageFacts = {
  readonly name: string;
  /** Bytes as planned, by what they are for. */
  readonly memory: Readonly<Record<string, number>>;
  /** Of its device, free before the run. */
  readonly free: number | null;
};

export type Notice = {
  readonly time: number;
  readonly adapter: string | null;
  readonly text: string;
  readonly isError: boolean;
};

/** What this server can do for whoever has the key. */
export type Ability = "pause" | "stop" | "stopAll" | "fork" | "answer" | "rows" | "spans" | "link";

type Curves = { readonly points: readonly Point[]; readonly heldOuts: readonly HeldOut[] };

/** The first event, `all`; a point stands for `stride` steps. */
export type All = {
  readonly title: string;
  readonly version: string;
  readonly abilities: readonly Ability[];
  readonly run: RunState;
  readonly adapters: readonly (AdapterState & Curves & { readonly stride: number })[];
  readonly notices: readonly Notice[];
};
/** Each later event, `change`: what is new since the one before. `points` are added to those that are there. */
export type Change = {
  readonly run: RunState;
  readonly adapters: readonly (AdapterState & Curves)[];
  readonly notices: readonly Notice[];
};

/** A text of a row's tokens that are all trained on, or all only read. */
export type RowPart = { readonly isLearned: boolean; readonly text: string };
export type RowsAnswer = { readonly step: number; readonly rows: readonly (readonly RowPart[])[] } | null;

/** `adapters` by index in `names`; times in ms. */
export type SpansAnswer = {
  readonly names: readonly string[];
  readonly stages: readonly (readonly {
    readonly kind: string;
    readonly start: number;
    readonly end: number;
    readonly adapters: readonly number[];
  }[])[];
};

export type ControlAsked =
  | { readonly action: "pause" | "resume" | "stop"; readonly adapter: string | null }
  | { readonly action: "fork"; readonly adapter: string; readonly name: string; readonly set: string };

/** A piece of an answer; `model` is one of those asked. The last of each has an end; `note`: what it was made with. */
export type AnswerPiece = {
  readonly model: string;
  readonly text: string;
  readonly end: string | null;
  readonly note?: string;
};
