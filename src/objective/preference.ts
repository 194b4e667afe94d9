// Objectives over preferences: functions of how likely the model finds whole answers. Pure numbers, so that the last stage, which needs
// their slopes, and the coordinator, which needs their values, use the same.
//
// A row has two sequences: its own answer and another, less preferred one (of KTO: another row's answer to the same prompt; of CIT: the same answer to a paraphrase). The slopes are
// derivatives of the loss by the sequences' log-probabilities: each target's cross-entropy then counts by minus its sequence's slope.

import type { Preference } from "../base/objective.ts";
import { cit } from "./cit.ts";
import { cpo } from "./cpo.ts";
import { dpo } from "./dpo.ts";
import { kto } from "./kto.ts";
import { orpo } from "./orpo.ts";
import { simpo } from "./simpo.ts";

/** A sequence's targets: the sum of their log-probabilities, and how many there are. */
export type Scored = { readonly logp: number; readonly targets: number };

export type ScoredRow = {
  readonly own: Scored;
  readonly other: Scored;
  /** Log-probabilities of both under the reference; null where the objective has none. */
  readonly reference: readonly [own: number, other: number] | null;
  /** Of KTO: whether the answer is desirable. */
  readonly label: boolean;
  /** Of CIT: cosines of the row's own pooled state with the other one of each row of the micro-batch; else null. */
  readonly similar: readonly number[] | null;
};

/** What the rows of a micro-batch are divided by: rows of the mini-batch, and targets of its preferred answers (of CIT: of all). */
export type Whole = { readonly rows: number; readonly tokens: number };

export type RowLoss = {
  /** The row's part of the mini-batch's loss, and its derivatives by the log-probabilities of both sequences. */
  readonly loss: number;
  readonly slopes: readonly [own: number, other: number];
  /** Scaled log-ratios to the reference, or scaled log-probabilities where there is none; of KTO the other is null; of CIT cosines. */
  readonly rewards: readonly [own: number, other: number | null];
  /** Of CIT: the row's part of the mini-batch's mean contrast, and the derivatives of the loss by its cosines. */
  readonly contrast?: { readonly loss: number; readonly pulls: readonly number[] };
};

/** Of all rows of a micro-batch. Sources: each objective's own file. */
export function preferenceLoss(objective: Preference, rows: readonly ScoredRow[], whole: Whole): RowLoss[] {
  switch (objective.name) {
    case "dpo":
      return rows.map((row) => dpo(objective, row, whole));
    case "cpo":
      return rows.map((row) => cpo(objective, row, whole));
    case "simpo":
      return rows.map((row) => simpo(objective, row, whole));
    case "orpo":
      return rows.map((row) => orpo(objective, row, whole));
    case "kto":
      return kto(objective, rows, whole);
    case "cit":
      return cit(objective, rows, whole);
    default:
      return objective satisfies never;
  }
}

/** Whether a row is judged as it should be: the preferred answer above the other, the desirable one above the reference. */
export const isRight = (row: ScoredRow, { rewards: [own, other] }: RowLoss): boolean =>
  other === null ? own > 0 === row.label : own > other;
