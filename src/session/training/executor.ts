// Executes the actions of all stages: sends each to its stage without waiting for the previous one, so that a stage always has
// its next work at hand, and collects the replies: losses from the last stage, sums of squares from all.

import { invariant } from "../../base/errors.ts";
import { range, sum } from "../../base/shape.ts";
import type { Bus } from "../../bus/bus.ts";
import type { OptimizerStep, SequenceLoss } from "../../bus/messages.ts";
import { scoreGroup, scoreSegment } from "../../objectives/loss-weights.ts";
import { isCorrect } from "../../objectives/registry.ts";
import { endsOf, type PackedBatch, type StepRef } from "../../schedule/lists.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";
import type { SegmentRef } from "../../schedule/segments.ts";
import { sumShared } from "./shared-rows.ts";

/** Requests to one stage that may be unanswered. */
const AHEAD = 6;

/** The result of a mini-batch. */
export type MiniBatch = {
  readonly loss: number;
  readonly tokens: number;
  /** Sums of squares of the gradients, tensor by tensor, for each stage in order. */
  readonly squares: readonly Float32Array[];
  readonly preference: Judgement | null;
  /** Of completions of groups. */
  readonly group: GroupScore | null;
  /** The share of its tokens' rows that the busiest experts got, in the mean over layers; null without experts. */
  readonly busiest: number | null;
};

/** Of preferences: the share of rows judged correctly, and the mean margin of their rewards; of CIT also the mean contrast. */
export type Judgement = { readonly accuracy: number; readonly margin: number; readonly contrast: number | null };

/** Of completions, means over their targets: the divergence from the reference, and the shares of ratios that are clipped. */
export type GroupScore = { readonly kl: number; readonly low: number; readonly high: number };

type Sum = Judged & {
  loss: number;
  tokens: number;
  readonly squares: Promise<Float32Array>[];
  busiest: number;
  routed: number;
  readonly group: { kl: number; low: number; high: number; ratios: number; targets: number; sequences: number };
};
/** Of preferences: rows, those judged correctly, and the sum of their rewards' margins; of CIT also the contrast, else null. */
type Judged = { rows: number; correct: number; margin: number; contrast: number | null };

export class Executor {
  readonly #batches = new Map<number, MicroBatch>();
  readonly #sums = new Map<string, Sum>();
  /** Resolves when the losses of all passes that the last stage was sent are counted. */
  #counted: Promise<unknown> = Promise.resolve();
  /** For each stage, the requests that it has not answered. */
  readonly #ahead: number[];
  #changed = Promise.withResolvers<void>();
  #failure: { readonly error: unknown } | null = null;

  /**
   * `batchOf` packs a batch, `tokensOf` counts a segment's tokens, `slotOf` is an adapter's slot, `needsSum` as in
   * shared-rows.ts.
   */
  constructor(
    private readonly bus: Bus,
    private readonly batchOf: (pass: PackedBatch) => MicroBatch,
    private readonly tokensOf: (segment: SegmentRef) => number,
    private readonly slotOf: (adapter: number) => number,
    private readonly needsSum: (adapter: number) => boolean = () => false,
    private readonly hasExperts = false,
  ) {
    this.#ahead = range(bus.stages).map(() => 0);
  }

  async forward(stage: number, pass: PackedBatch): Promise<void> {
    const batch = this.#batches.get(pass.id) ?? this.batchOf(pass);
    this.#batches.set(pass.id, batch);
    if (this.bus.stages > 1) await this.#send(stage, this.bus.request(stage, { type: "forward", pass: pass.id, batch }));
  }

  async backward(stage: number, pass: PackedBatch): Promise<void> {
    const { bus } = this;
    const batch = this.#batches.get(pass.id);
    invariant(batch, `a backward of pass ${pass.id} without its forward`);
    // A single stage has memory for one batch. No evaluation may come between forward and backward: they are sent together.
    const forward = bus.stages === 1 ? bus.request(stage, { type: "forward", pass: pass.id, batch }) : null;
    const logProbs = batch.groups ? { logProbs: true } : {};
    const backward = bus.request(stage, { type: "backward", pass: pass.id, ...logProbs });
    const last = stage === bus.stages - 1;
    // Replies come in any order. Losses are added in that of the passes, so that sums are the same in every run.
    const counted = last ? Promise.all([backward, this.#counted]).then(([of]) => this.#count(pass, batch, of!)) : backward;
    if (last) {
      this.#counted = counted;
      this.#counted.catch(() => undefined); // `result` rejects, too
    }
    const losses = this.#counted;
    await this.#send(stage, forward ? Promise.all([forward, counted]) : counted);
    const ends = endsOf(pass);
    if (ends.length > 0) {
      const loads = this.hasExperts ? this.#load(stage, ends) : null;
      const squares = bus.request(stage, { type: "squares", adapters: ends.map(({ adapter }) => this.slotOf(adapter)) });
      for (const [i, end] of ends.entries()) {
        const of = Promise.all([squares, loads, losses]).then(([found]) => found[i]!);
        of.catch(() => undefined); // `result` rejects, too
        this.#sumOf(end).squares[stage] = of;
      }
      await this.#send(stage, Promise.all([squares, loads]));
    }
    if (stage === 0) this.#batches.delete(pass.id); // the first stage is the last to need it
  }

  /** Adds how a mini-batch's rows went to the experts of a stage. */
  async #load(stage: number, ends: readonly StepRef[]): Promise<void> {
    const loads = await this.bus.request(stage, { type: "loads", adapters: ends.map(({ adapter }) => this.slotOf(adapter)) });
    for (const [i, end] of ends.entries()) {
      const sum = this.#sumOf(end);
      sum.busiest += loads[i]!.busiest;
      sum.routed += loads[i]!.all;
    }
  }

  /** Waits for a mini-batch's result on all stages; its backward passes must have been sent to all of them. */
  async result(ref: StepRef): Promise<MiniBatch> {
    const found = this.#sumOf(ref);
    invariant(found.squares.length === this.bus.stages, `a step of adapter ${ref.adapter} before its last backward pass`);
    let squares: Float32Array[] | null = null;
    void Promise.all(found.squares).then(
      (all) => {
        squares = all; // and the losses are counted
        this.#wake();
      },
      (error) => this.fail(error),
    );
    await this.#until(() => squares !== null);
    this.#sums.delete(keyOf(ref));
    if (this.needsSum(ref.adapter)) squares = await this.#unlessFailed(sumShared(this.bus, this.slotOf(ref.adapter), squares!));
    const { loss, tokens, rows, correct, margin, contrast, group: of } = found;
    const preference = rows === 0 ? null : { accuracy: correct / rows, margin: margin / rows, contrast };
    const busiest = found.routed > 0 ? found.busiest / found.routed : null;
    const shares = { low: of.low / Math.max(1, of.ratios), high: of.high / Math.max(1, of.ratios) };
    const group = of.sequences === 0 ? null : { kl: of.kl / Math.max(1, of.targets), ...shares };
    return { loss, tokens, squares: squares!, preference, group, busiest };
  }

  async step(stage: number, steps: readonly OptimizerStep[]): Promise<void> {
    await this.#send(stage, this.bus.request(stage, { type: "step", steps }));
  }

  /** Waits until every request is answered. */
  async drain(): Promise<void> {
    await this.#until(() => this.#ahead.every((count) => count === 0));
  }

  /** Ends all waiting with this error; the first one counts. */
  fail(error: unknown): void {
    this.#failure ??= { error };
    this.#wake();
  }

  /** Adds the losses of a pass to those of its adapters' mini-batches. */
  #count(pass: PackedBatch, batch: MicroBatch, losses: readonly SequenceLoss[]): void {
    const preferences = new Map(batch.preferences.map((preference) => [preference.firstSequence, preference]));
    const groups = new Map(batch.groups?.map((group) => [group.firstSequence, group]));
    let at = 0;
    for (const segment of pass.segments) {
      const sums = this.#sumOf(segment);
      sums.tokens += this.tokensOf(segment);
      const preference = preferences.get(at);
      if (preference) {
        const { rows, found } = scoreSegment(batch, preference, losses);
        sums.loss += sum(found.map((row) => row.loss));
        sums.correct += rows.filter((row, i) => isCorrect(row, found[i]!)).length;
        sums.margin += sum(found.map(({ rewards: [own, other] }) => own - (other ?? 0)));
        for (const { contrast } of found) if (contrast) sums.contrast = (sums.contrast ?? 0) + contrast.loss;
        sums.rows += rows.length;
        at += 2 * rows.length;
        continue;
      }
      const group = groups.get(at);
      if (group) {
        for (const { targets, kl, low, high, ratios } of scoreGroup(group, losses)) {
          sums.loss += sum(targets.map(({ loss }) => loss));
          sums.group.kl += kl;
          sums.group.low += low;
          sums.group.high += high;
          sums.group.ratios += ratios;
          sums.group.targets += targets.length;
          sums.group.sequences++;
        }
        at += segment.rows.length;
        continue;
      }
      for (const _ of segment.rows) {
        const { firstTarget, targets } = batch.sequences[at]!;
        if (targets > 0) sums.loss += losses[at]!.loss * batch.weights[firstTarget]!;
        at++;
      }
    }
  }

  #sumOf(ref: StepRef): Sum {
    const key = keyOf(ref);
    const found = this.#sums.get(key) ?? {
      ...{ loss: 0, tokens: 0, squares: [], rows: 0, correct: 0, margin: 0, contrast: null },
      ...{ busiest: 0, routed: 0, group: { kl: 0, low: 0, high: 0, ratios: 0, targets: 0, sequences: 0 } },
    };
    this.#sums.set(key, found);
    return found;
  }

  /** Counts a request under way and waits while there are too many; throws what any of them failed with. */
  async #send(stage: number, reply: Promise<unknown>): Promise<void> {
    this.#ahead[stage]!++;
    void reply
      .catch((error) => this.fail(error))
      .finally(() => {
        this.#ahead[stage]!--;
        this.#wake();
      });
    await this.#until(() => this.#ahead[stage]! <= AHEAD);
  }

  /** Throws what any stage failed with: one that waits for a lost stage would never answer. */
  async #until(condition: () => boolean): Promise<void> {
    while (!condition() && !this.#failure) await this.#changed.promise;
    if (this.#failure) throw this.#failure.error;
  }

  /** What is asked of the stages; throws what any of them failed with. */
  async #unlessFailed<T>(work: Promise<T>): Promise<T> {
    let done: { readonly value: T } | null = null;
    work.then(
      (value) => {
        done = { value };
        this.#wake();
      },
      (error) => this.fail(error),
    );
    await this.#until(() => done !== null);
    return done!.value;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

const keyOf = ({ adapter, step }: StepRef): string => `${adapter}.${step}`;
