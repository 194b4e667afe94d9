// Random work for pipelines: crowds of adapters with nothing in common, and times that were not chosen.

import { hash, type Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { ScheduleKind, StageAction, Times } from "../../src/schedule/lists.ts";
import { type Joining, type PipelineOptions, pipeline } from "../../src/schedule/pipeline.ts";
import { totalSteps, type Work } from "../../src/schedule/steps.ts";
import type { VerifyOptions } from "../../src/schedule/verify.ts";

/** A few steps of an adapter whose rows are as unequal as they come. */
export function randomWork(rng: Rng): Work {
  const bounded = rng.below(2) === 0;
  return {
    lengths: range(1 + rng.below(17)).map(() => 1 + rng.below(60)),
    batchSize: 1 + rng.below(5),
    accumulation: 1 + rng.below(3),
    epochs: bounded ? null : 1 + rng.below(2),
    steps: bounded ? 1 + rng.below(6) : null,
    shuffle: rng.below(2) === 0,
    seed: rng.bits(),
  };
}

/** A mini-batch of `cuts` micro-batches of `rows` rows each, `steps` times. */
export const equalWork = (cuts: number, rows: number, steps: number): Work => ({
  lengths: new Array<number>(cuts).fill(rows),
  batchSize: 1,
  accumulation: cuts,
  epochs: null,
  steps,
  shuffle: false,
  seed: 0,
});

export const joiningOf = (works: readonly Work[]): Joining[] => works.map((work, adapter) => ({ adapter, work, from: 0 }));

/** Every action takes a time of its own; some pairs of neighbours are far apart. */
export function randomTimes(rng: Rng): Times {
  const seed = rng.bits();
  const uniform = (...of: number[]) => hash(seed, ...of) / 2 ** 32;
  const of = (kind: number, stage: number, rows: number, id: number) =>
    rows * (0.5 + uniform(kind, stage)) * (0.5 + uniform(kind, stage, id));
  const distance = rng.below(3) * rng.uniform();
  return {
    forward: (stage, { rows, id }) => of(1, stage, rows, id),
    backward: (stage, { rows, id }) => of(2, stage, 2 * rows, id),
    step: (stage, steps) => 9 * uniform(3, stage) * steps.length,
    transfer: (link, { rows, id }, direction) => distance * of(direction === "forward" ? 4 : 5, link, rows, id),
  };
}

export type Case = { readonly works: readonly Work[]; readonly options: PipelineOptions };

const KINDS: readonly ScheduleKind[] = ["lorapp", "lorapp", "1f1b", "gpipe"]; // what is used, more often

/** A crowd and a pipeline for it; `changes` go before what is drawn. */
export function randomCase(rng: Rng, changes: Partial<PipelineOptions> = {}): Case {
  const stages = changes.stages ?? 1 + rng.below(8);
  const options: PipelineOptions = {
    kind: KINDS[rng.below(4)]!,
    packing: (["balanced", "filled", "alone"] as const)[rng.below(3)]!,
    stages,
    inFlight: range(stages).map(() => 1 + rng.below(2 * stages)),
    sendBuffers: 1 + rng.below(3),
    times: randomTimes(rng),
    tokensPerMicrobatch: 30 + rng.below(170),
    passRows: 20 + rng.below(400),
    rowTile: 1 + rng.below(9),
    ...changes,
  };
  return { works: range(1 + rng.below(12)).map(() => randomWork(rng)), options };
}

export const actionsOf = ({ works, options }: Case): StageAction[] => [...pipeline(joiningOf(works), options)];

/** What `verify` may hold the lists of a case to: all that is known of them. */
export function limitsOf({ works, options }: Case): VerifyOptions {
  const { kind, stages, inFlight, sendBuffers } = options;
  const limits = kind === "gpipe" ? inFlight.map(() => Number.POSITIVE_INFINITY) : inFlight;
  return { stages, sendBuffers, inFlight: limits, steps: works.map(totalSteps) };
}
