// What an objective is: its keys in a recipe, the rows that it learns from, and its loss. Each stands in a file of its own,
// and all of them in registry.ts.
//
// Losses are functions of how likely the model finds whole answers. Pure numbers, so that the last stage, which needs their
// slopes, and the coordinator, which needs their values, use the same.

import * as v from "valibot";
import type { CamelKeys } from "../base/case.ts";
import { place } from "../base/check.ts";
import { count, type Output } from "../base/schema.ts";

/**
 * Adapters as they are before their first step ("start": the base model, or the adapter that is continued), the
 * base, or a PEFT folder.
 */
export type Reference = "start" | "base" | { readonly folder: string };

/** The key of objectives that measure against a reference: "start", "base" or the folder of a PEFT adapter. */
export const reference = v.optional(place, "start");

/**
 * An answer; two, of which the first is preferred; one that is desirable or not; the same answer to an
 * instruction and to its paraphrase; a prompt without an answer, which the adapter gives itself.
 */
export type RowKind = "single" | "paired" | "labelled" | "paraphrased" | "prompt";

/** A sequence's targets: the sum of their log-probabilities, and how many there are. */
export type Scored = { readonly logp: number; readonly targets: number };

/**
 * A row has two sequences: its own answer and another, less preferred one (labelled: another row's answer to
 * the same prompt).
 */
export type ScoredRow = {
  readonly own: Scored;
  readonly other: Scored;
  /** Log-probabilities of both under the reference; null where the objective has none. */
  readonly reference: readonly [own: number, other: number] | null;
  /** Of labelled rows: whether the answer is desirable. */
  readonly label: boolean;
  /** Where states are pooled: cosines of the row's own state with the other one of each row of the micro-batch; else null. */
  readonly similar: readonly number[] | null;
};

/**
 * What the rows of a micro-batch are divided by: rows of the mini-batch, and targets of the answers that are
 * learned themselves.
 */
export const batchTotals = v.strictObject({ rows: count, tokens: count });
export type BatchTotals = Output<typeof batchTotals>;

export type RowLoss = {
  /** The row's part of the mini-batch's loss, and its derivatives by the log-probabilities of both sequences. */
  readonly loss: number;
  readonly gradients: readonly [own: number, other: number];
  /**
   * Scaled log-ratios to the reference, or scaled log-probabilities where there is none; of labelled rows the other is null;
   * of pooled states cosines.
   */
  readonly rewards: readonly [own: number, other: number | null];
  /** Of pooled states: the row's part of the mini-batch's mean contrast, and the derivatives of the loss by its cosines. */
  readonly contrast?: { readonly loss: number; readonly gradients: readonly number[] };
};

/** An objective as a run has it: its keys in camelCase, a reference's folder by its whole path. */
export type SettingsOf<N extends string, E extends v.ObjectEntries> = { readonly name: N } & CamelKeys<{
  readonly [K in keyof E]: K extends "reference" ? Reference : v.InferOutput<E[K]>;
}>;

/** What an objective may have to agree with in its adapter: tokens of a row, and whether it continues a saved adapter. */
export type TableContext = { readonly maxLength: number; readonly isContinued: boolean };

export type Definition<N extends string, E extends v.ObjectEntries> = {
  readonly name: N;
  /** Schemas with defaults, in snake_case as in a recipe. */
  readonly keys: E;
  readonly rows: RowKind;
  /**
   * Of all rows of a micro-batch; null: each target's cross-entropy, over the targets of the mini-batch, or, of prompts, what
   * their completions come to (group-policy.ts).
   */
  readonly loss: ((settings: SettingsOf<N, E>, rows: readonly ScoredRow[], totals: BatchTotals) => RowLoss[]) | null;
  /** What is wrong with settings that each are right; null for nothing. */
  readonly fault?: (settings: SettingsOf<N, E>, of: TableContext) => string | null;
  /**
   * Where a row's instruction is compared with those of the micro-batch: what stands for it, its last token's
   * hidden state or the mean of all.
   */
  readonly pooling?: (settings: SettingsOf<N, E>) => "last" | "mean";
};

export const define = <const N extends string, const E extends v.ObjectEntries>(of: Definition<N, E>): Definition<N, E> => of;

/** A loss of rows that do not depend on each other. */
export const eachRow =
  <S>(loss: (settings: S, row: ScoredRow, totals: BatchTotals) => RowLoss) =>
  (settings: S, rows: readonly ScoredRow[], totals: BatchTotals): RowLoss[] =>
    rows.map((row) => loss(settings, row, totals));
