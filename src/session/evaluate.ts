// The loss of an adapter on held-out rows, and how many of them are correct.

import { sum } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import { scoreSegment } from "../objectives/loss-weights.ts";
import { isCorrect, isPreference, type Objective } from "../objectives/registry.ts";
import type { Plan } from "../plan/plan.ts";
import type { MicroBatch } from "../schedule/micro-batch.ts";
import { inputLength, pack, type Row } from "../schedule/pack.ts";
import { cut } from "../schedule/steps.ts";
import { countTargets, evaluationSegment, totalsOf } from "./batches.ts";
import type { RowReferences } from "./references.ts";

/** Batches in flight at most. */
const AHEAD = 16;

export type Evaluation = {
  /** Mean loss over all targets; of preferences, over all rows. */
  readonly loss: number;
  /**
   * Rows whose every target is the most likely token (greedy decoding reproduces them). Of preferences, rows judged correctly.
   */
  readonly exact: number;
  readonly rows: number;
  /** Of a program of the recipe, by name. */
  readonly metrics?: Readonly<Record<string, number>>;
};

export type EvaluationWork = {
  readonly slot: number;
  readonly samples: readonly Row[];
  /** Indices of the samples to use; all when left out. */
  readonly rows?: readonly number[];
  /** Rows in a batch at most, where it matters to their losses. */
  readonly batchSize: number;
  readonly objective: Objective;
  readonly references: RowReferences | null;
  /** Whether losses have the log-probability of each target, too. */
  readonly logProbs?: boolean;
  /** Of the distribution whose log-probabilities they are; left out, 1. */
  readonly temperature?: number;
};

/** A batch that has been evaluated: its rows, and the losses of its sequences. */
export type Evaluated = {
  readonly rows: readonly number[];
  readonly batch: MicroBatch;
  readonly losses: readonly SequenceLoss[];
};

/** Work under way. Once `sent` has resolved, training the adapter further does not change the result. */
export type Evaluating<T> = { readonly sent: Promise<void>; readonly result: Promise<T> };

/**
 * Runs rows through the adapter in a slot, or, for -1, through the base model alone, in its state after all requests so far.
 * Each batch is sent to all stages at once, so that all have it at the same place in their order of work and no stage waits for
 * a request that another has not been sent.
 */
export function runThrough(bus: Bus, plan: Plan, work: EvaluationWork): Evaluating<Evaluated[]> {
  const { slot, samples, rows = [...samples.keys()], objective, references, logProbs, temperature = 1 } = work;
  const batches = batchesOf(plan, work, rows);
  const totals = totalsOf(samples, objective);
  const evaluated: Promise<Evaluated>[] = [];
  const send = async (): Promise<void> => {
    for (const [i, of] of batches.entries()) {
      if (i >= AHEAD) await evaluated[i - AHEAD];
      const segment = { ...evaluationSegment(slot, samples, of, totals, objective, references), temperature };
      const batch = pack([segment], plan.slots, plan.device.rowTile);
      const reply = requestAll(bus, { type: "evaluate", batch, ...(logProbs ? { logProbs } : {}) }).then((all) => ({
        rows: of,
        batch,
        losses: all.at(-1)!,
      }));
      reply.catch(() => undefined); // `result` rejects, too
      evaluated.push(reply);
    }
  };
  const sent = send();
  const result = sent.then(() => Promise.all(evaluated));
  result.catch(() => undefined); // it may fail before the caller awaits it
  return { sent, result };
}

/**
 * Rows of each batch. What a pass has room for follows from all adapters of a run, so only those rows come by whole passes, as
 * few as there is room for, but one for each stage, whose losses are the same bits in any: on CPUs with products of our own,
 * which also pack tables (device-report.ts).
 */
function batchesOf(
  { stages, tokensPerMicrobatch }: Plan,
  { samples, batchSize, objective }: EvaluationWork,
  rows: readonly number[],
) {
  const lengths = samples.map(inputLength);
  const isFree = stages.every(({ device }) => device.packsTables === true) && !isPreference(objective);
  if (!isFree) return cut(rows, lengths, batchSize, tokensPerMicrobatch);
  const room = Math.min(tokensPerMicrobatch, ...stages.map(({ sizes }) => sizes.rows));
  return cut(rows, lengths, Math.max(1, Math.ceil(rows.length / stages.length)), room);
}

/** The adapter's loss on the rows, and how many of them are correct. */
export function evaluate(bus: Bus, plan: Plan, work: EvaluationWork): Evaluating<Evaluation> {
  const { sent, result } = runThrough(bus, plan, work);
  const { objective, samples } = work;
  const found = result.then((all): Evaluation => {
    let [loss, exact] = [0, 0];
    const lossOfRow = new Float64Array(samples.length); // added in the order of the rows, whatever the batches were
    for (const { rows, batch, losses } of all)
      if (!isPreference(objective))
        for (const [i, sequence] of losses.entries()) {
          lossOfRow[rows[i]!] = sequence.loss;
          if (sequence.correct === batch.sequences[i]!.targets) exact++;
        }
      else
        for (const preference of batch.preferences) {
          const { rows, found } = scoreSegment(batch, preference, losses);
          loss += sum(found.map((row) => row.loss));
          exact += rows.filter((row, i) => isCorrect(row, found[i]!)).length;
        }
    for (const of of lossOfRow) loss += of;
    const divisor = isPreference(objective) ? 1 : sum(samples.map(countTargets));
    return { loss: loss / divisor, exact, rows: samples.length };
  });
  found.catch(() => undefined);
  return { sent, result: found };
}
