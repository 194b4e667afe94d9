// Ways to damage the lists of a pipeline, each of which changes what is trained or makes stages wait for ever.

import type { Rng } from "../../src/base/rng.ts";
import { maxOf, range } from "../../src/base/shape.ts";
import type { PackedBatch, PipelineAction } from "../../src/schedule/lists.ts";
import type { SegmentRef } from "../../src/schedule/segments.ts";
import type { VerifyOptions } from "../../src/schedule/verify.ts";

export type Lists = readonly (readonly PipelineAction[])[];
/** Lists and what is asked of them, with the stage that was damaged; null where the whole of them was. */
type Damaged = { readonly lists: Lists; readonly limits: VerifyOptions; readonly stage: number | null };
/** Damages lists; null where these have nothing to damage so. */
type Damage = (lists: Lists, limits: VerifyOptions, rng: Rng) => Damaged | null;

export const pick = <T>(rng: Rng, from: readonly T[]): T | undefined => from[rng.below(from.length)];
const indices = (list: readonly PipelineAction[], wanted: (action: PipelineAction) => boolean): number[] =>
  list.flatMap((action, i) => (wanted(action) ? [i] : []));
const has = (action: PipelineAction, adapters: readonly number[]): boolean =>
  action.kind !== "step" && action.pass.segments.some(({ adapter }) => adapters.includes(adapter));

/** Changes the list of one stage. */
const inOneStage =
  (change: (list: PipelineAction[], rng: Rng) => readonly PipelineAction[] | null): Damage =>
  (lists, limits, rng) => {
    const stage = rng.below(lists.length);
    const changed = change([...lists[stage]!], rng);
    return changed && { lists: lists.with(stage, changed), limits, stage };
  };

function exchanged(list: PipelineAction[], a: number | undefined, b: number | undefined): PipelineAction[] | null {
  if (a === undefined || b === undefined || a === b) return null;
  return list.with(a, list[b]!).with(b, list[a]!);
}

/** Moves an action to where `to` is in the list without it. */
function moved(list: PipelineAction[], from: number, to: (rest: PipelineAction[]) => number): PipelineAction[] | null {
  const [action] = list.splice(from, 1);
  const at = to(list);
  return at < 0 ? null : list.toSpliced(at, 0, action!);
}

const steps = (list: readonly PipelineAction[]) => indices(list, ({ kind }) => kind === "step");
const adaptersOf = (action: PipelineAction): number[] =>
  action.kind === "step" ? action.steps.map(({ adapter }) => adapter) : [];

const LIST_DAMAGES: Readonly<Record<string, Damage>> = {
  "an action is left out": inOneStage((list, rng) => list.toSpliced(rng.below(list.length), 1)),
  "an action is there twice": inOneStage((list, rng) =>
    list.toSpliced(rng.below(list.length + 1), 0, list[rng.below(list.length)]!),
  ),
  // On one stage alone the order of passes without a common adapter would mean nothing.
  "two passes are exchanged on one of several stages": (lists, limits, rng) => {
    const kind = pick(rng, ["forward", "backward"] as const)!;
    const of = (list: readonly PipelineAction[]) =>
      pick(
        rng,
        indices(list, (action) => action.kind === kind),
      );
    return lists.length === 1 ? null : inOneStage((list) => exchanged(list, of(list), of(list)))(lists, limits, rng);
  },
  "a backward comes before its forward": inOneStage((list, rng) => {
    const forward = pick(
      rng,
      indices(list, ({ kind }) => kind === "forward"),
    )!;
    const { pass } = list[forward] as { pass: PackedBatch };
    return exchanged(
      list,
      forward,
      list.findIndex((action) => action.kind === "backward" && action.pass === pass),
    );
  }),
  "a step comes before the last backward of its mini-batch": inOneStage((list, rng) => {
    const at = pick(rng, steps(list))!;
    const adapters = adaptersOf(list[at]!);
    return moved(list, at, (rest) =>
      rest.findLastIndex((action, i) => i < at && action.kind === "backward" && has(action, adapters)),
    );
  }),
  "a step comes after its adapter's next forward": inOneStage((list, rng) => {
    const at = pick(rng, steps(list))!;
    const adapters = adaptersOf(list[at]!);
    return moved(list, at, (rest) => {
      const next = rest.findIndex((action, i) => i >= at && has(action, adapters));
      return next < 0 ? next : next + 1;
    });
  }),
  "a step has another's number": inOneStage((list, rng) => {
    const at = pick(rng, steps(list))!;
    const action = list[at] as Extract<PipelineAction, { kind: "step" }>;
    const which = rng.below(action.steps.length);
    const { adapter, step } = action.steps[which]!;
    const wrong = pick(rng, [
      { adapter, step: step + 1 },
      { adapter, step: step - 1 },
      { adapter: 99, step },
    ])!;
    return list.with(at, { kind: "step", steps: action.steps.with(which, wrong) });
  }),
  "a stage has memory for one pass less": (lists, limits, rng) => {
    const stage = rng.below(lists.length);
    let inFlight = 0;
    const peak = maxOf(lists[stage]!.map(({ kind }) => (inFlight += kind === "forward" ? 1 : kind === "backward" ? -1 : 0)));
    return { lists, limits: { ...limits, inFlight: limits.inFlight.with(stage, peak - 1) }, stage };
  },
  "an adapter is to make one step more or less": (lists, limits, rng) => {
    const wanted = limits.steps!;
    const adapter = rng.below(wanted.length);
    const other = wanted[adapter]! + (rng.below(2) === 0 ? 1 : -1);
    return { lists, limits: { ...limits, steps: wanted.with(adapter, other) }, stage: null };
  },
  "an adapter's gradients are summed in another order on all stages": (lists, limits, rng) => {
    const backwards = indices(lists[0]!, ({ kind }) => kind === "backward").map(
      (i) => (lists[0]![i] as { pass: PackedBatch }).pass,
    );
    const pairs = backwards.flatMap((a) =>
      backwards
        .filter((b) =>
          a.segments.some((segment) =>
            b.segments.some((other) => sameMiniBatch(segment, other) && other.firstRow > segment.firstRow),
          ),
        )
        .map((b) => [a, b]),
    );
    const pair = pick(rng, pairs);
    if (!pair) return null;
    const at = (list: readonly PipelineAction[], pass: PackedBatch) =>
      list.findIndex((action) => action.kind === "backward" && action.pass === pass);
    return { lists: lists.map((list) => exchanged([...list], at(list, pair[0]!), at(list, pair[1]!))!), limits, stage: null };
  },
  "an action is for a stage that is not there": (lists, limits, rng) => {
    const fewer = { ...limits, stages: lists.length - 1, inFlight: limits.inFlight.slice(1) };
    return lists.length === 1
      ? null
      : { lists, limits: rng.below(2) === 0 ? fewer : { ...fewer, inFlight: limits.inFlight }, stage: null };
  },
};

const sameMiniBatch = (a: SegmentRef, b: SegmentRef): boolean => a.adapter === b.adapter && a.step === b.step;

/** Changes of a micro-batch; null where this one cannot be changed so. */
const SHARE_DAMAGES: Readonly<Record<string, (segment: SegmentRef, rng: Rng) => SegmentRef | null>> = {
  "another adapter": (segment, rng) => ({
    ...segment,
    adapter: pick(
      rng,
      range(14).filter((i) => i !== segment.adapter),
    )!,
  }),
  "another step": (segment, rng) => ({ ...segment, step: segment.step + (rng.below(2) === 0 ? 1 : -1) }),
  "another row": (segment, rng) => ({ ...segment, rows: segment.rows.with(rng.below(segment.rows.length), 99) }),
  "a row less": (segment, rng) => ({ ...segment, rows: segment.rows.toSpliced(rng.below(segment.rows.length), 1) }),
  "a row twice": (segment) => ({ ...segment, rows: [...segment.rows, segment.rows.at(-1)!] }),
  "rows in another order": (segment) => (segment.rows.length < 2 ? null : { ...segment, rows: segment.rows.toReversed() }),
  "another end": (segment) => ({ ...segment, last: !segment.last }),
  // Only the data knows how many tokens came before; the mini-batch tells that there are none.
  "another place": (segment) => ({ ...segment, firstRow: segment.firstRow === 0 ? 7 : 0 }),
  "another mini-batch": (segment, rng) => ({
    ...segment,
    miniBatch: segment.miniBatch.with(rng.below(segment.miniBatch.length), 99),
  }),
  "a longer mini-batch": (segment) => ({ ...segment, miniBatch: [...segment.miniBatch, 99] }),
};

function damagedPass(
  pass: PackedBatch,
  change: (segment: SegmentRef, rng: Rng) => SegmentRef | null,
  rng: Rng,
): PackedBatch | null {
  const which = rng.below(pass.segments.length);
  const segment = change(pass.segments[which]!, rng);
  return segment && { ...pass, segments: pass.segments.with(which, segment) };
}

/** A pass is changed in one action of one stage, or wherever it is. */
const changesPass =
  (change: (pass: PackedBatch, rng: Rng) => PackedBatch | null): Damage =>
  (lists, limits, rng) => {
    const stage = rng.below(lists.length);
    const at = pick(
      rng,
      indices(lists[stage]!, ({ kind }) => kind !== "step"),
    )!;
    const action = lists[stage]![at] as Extract<PipelineAction, { pass: PackedBatch }>;
    const pass = change(action.pass, rng);
    if (!pass) return null;
    if (rng.below(3) > 0) return { lists: lists.with(stage, lists[stage]!.with(at, { ...action, pass })), limits, stage };
    const everywhere = lists.map((list) =>
      list.map((other) => (other.kind !== "step" && other.pass === action.pass ? { ...other, pass } : other)),
    );
    return { lists: everywhere, limits, stage: null };
  };

const PASS_DAMAGES: Readonly<Record<string, Damage>> = {
  ...Object.fromEntries(
    Object.entries(SHARE_DAMAGES).map(([name, change]) => [
      `a micro-batch has ${name}`,
      changesPass((pass, rng) => damagedPass(pass, change, rng)),
    ]),
  ),
  "a pass lacks a micro-batch": changesPass((pass, rng) => ({
    ...pass,
    segments: pass.segments.toSpliced(rng.below(pass.segments.length), 1),
  })),
  "a pass has a micro-batch twice": changesPass((pass, rng) => ({
    ...pass,
    segments: [...pass.segments, pass.segments[rng.below(pass.segments.length)]!],
  })),
};

/** All of them, by what they do. */
export const DAMAGES: Readonly<Record<string, Damage>> = { ...LIST_DAMAGES, ...PASS_DAMAGES };
