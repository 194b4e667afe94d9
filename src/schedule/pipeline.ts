// Lists of actions for the stages of a pipeline.
//
// Every stage runs the passes' forwards in one and the same order, and their backwards too; what differs is how a stage
// interleaves the two. An adapter steps on a stage directly before a forward that the first stage begins after the adapter's
// last backward there: by then all stages have done that backward, so no stage waits for another's norms. What follows from the
// norms is decided elsewhere, so where others have work, the first stage does some of that first, and the step is known when it
// comes to it. Where no forward comes any more, all steps left stand at the end.
//
// The lists come from playing the pipeline with estimated times. They hold for any times: these decide how good, not how right.

import { memberOf, type Packing, Pool, targetRows } from "./balance.ts";
import type { GradientNeeds } from "./gradients.ts";
import {
  endsOf,
  type Limits,
  type PackedBatch,
  type PipelineAction,
  ROW_TIMES,
  type ScheduleKind,
  type StageAction,
  type StepRef,
  type Times,
} from "./lists.ts";
import type { Work } from "./steps.ts";

export type PipelineOptions = Limits & {
  readonly kind: ScheduleKind;
  readonly packing: Packing;
  readonly stages: number;
  /** For each stage, the passes between forward and backward that it has memory for, 1 at least; gpipe takes what it needs. */
  readonly inFlight: readonly number[];
  /** Messages that a stage may have sent to a neighbour and that the neighbour has not begun to use, 1 at least. */
  readonly sendBuffers: number;
  /** Estimates of what work takes; each row the same on each stage unless given. */
  readonly times?: Times;
  /** Left out, any number of adapters may be in a step. */
  readonly gradients?: GradientNeeds;
  /** Asked before each pass: an adapter that has left gets no new mini-batch. */
  readonly left?: (adapter: number) => boolean;
  /** The number of the first pass. */
  readonly firstPass?: number;
  /** The share of passes that balance.ts leaves out, where another is tried. */
  readonly spare?: number;
};

/**
 * Passes that a stage is ahead of those that its followers need, where it has the memory: times are estimates, and a stage
 * whose neighbour takes longer than thought, as over a larger rank, works on one of these meanwhile.
 */
const LEAD = 1;

/** An adapter that is to be trained from its step `from` on; its first is 0. */
export type Joining = { readonly adapter: number; readonly work: Work; readonly from: number; readonly priority?: number };

/** A pass on its way to a stage, with the steps to be made before its forward. */
type Arriving = { readonly pass: PackedBatch; readonly steps: readonly StepRef[]; readonly at: number };

type StageState = {
  free: number;
  inFlight: number;
  /** The newest forward. */
  newest: PackedBatch | null;
  readonly forwards: Arriving[];
  readonly backwards: Arriving[];
};

type Choice = { readonly stage: number; readonly kind: "forward" | "backward"; readonly at: number };

/**
 * The actions of all stages, ordered so that each comes after those it depends on. Pulled as the run proceeds: what is pulled
 * is decided, the rest is planned with what is known by then. Takes from `joining`, whenever one is there: an adapter that
 * joins is in the next passes. Ends when no work is left and all stages are drained.
 */
export function* pipeline(joining: Joining[], options: PipelineOptions): Generator<StageAction> {
  const { stages, inFlight, times = ROW_TIMES, left = () => false, firstPass = 0 } = options;
  const pool = new Pool(options);
  const states = inFlight.slice(0, stages).map((): StageState => {
    return { free: 0, inFlight: 0, newest: null, forwards: [], backwards: [] };
  });
  let fresh: readonly StepRef[] = []; // of the first stage's last backward, where nothing came after it
  let due: StepRef[] = []; // steps that the first stage may make
  let made: StepRef[] = []; // steps that it has made: the others make them before the next pass

  let targeted = { of: pool.waiting, rows: 0 };
  /** Looks at all adapters only where others wait than before. */
  const target = (): number => {
    const { waiting } = pool;
    if (targeted.of !== waiting) targeted = { of: waiting, rows: targetRows(waiting, stages, options.passRows, options.spare) };
    return targeted.rows;
  };

  /** They are made before all that begins from here on. */
  const ripen = (): void => {
    for (const { adapter } of fresh) pool.stepped(adapter);
    due.push(...fresh);
    fresh = [];
  };

  for (let [id, now] = [firstPass, 0]; ; ) {
    pool.sift(left); // first: an adapter that has left may join again
    for (const { adapter, work, from, priority } of joining.splice(0))
      if (!left(adapter)) pool.add(memberOf(adapter, work, from, options, priority));
    // Whoever waits for the room that their gradients have could wait for ever.
    if (fresh.length > 0 && pool.readyAt() === Number.POSITIVE_INFINITY) ripen();
    const choice = earliest(states, options, pool, now);
    if (!choice) break;
    const { stage, at } = choice;
    now = at;
    const state = states[stage]!;
    const place = (action: PipelineAction): StageAction => ({ stage, action });
    if (choice.kind === "backward") {
      const { pass } = state.backwards.shift()!;
      yield place({ kind: "backward", pass });
      state.free = at + times.backward(stage, pass);
      state.inFlight--;
      if (stage > 0) {
        const arrives = state.free + times.transfer(stage - 1, pass, "backward");
        states[stage - 1]!.backwards.push({ pass, steps: [], at: arrives });
        continue;
      }
      ripen();
      fresh = endsOf(pass);
      for (const { adapter } of fresh) pool.release(adapter, state.free);
      continue;
    }
    const undecided = new Set(fresh.map(({ adapter }) => adapter));
    if (stage === 0 && fresh.length > 0 && (stages === 1 || !pool.hasOther(at, undecided))) ripen();
    if (stage === 0 && due.length > 0) {
      // Whoever reads the list decides at this step what has ended: only then is the pass after it put together.
      yield place({ kind: "step", steps: due });
      state.free = at + times.step(0, due);
      made = [...made, ...due];
      due = [];
      continue;
    }
    let begin = at;
    if (stage === 0) {
      state.forwards.push({
        pass: { id: id++, ...pool.take(at, target(), undecided) },
        steps: made,
        at,
      });
      made = [];
      ripen();
    }
    const { pass, steps } = state.forwards.shift()!;
    if (stage > 0 && steps.length > 0) {
      yield place({ kind: "step", steps });
      begin += times.step(stage, steps);
    }
    yield place({ kind: "forward", pass });
    state.free = begin + times.forward(stage, pass);
    state.inFlight++;
    state.newest = pass;
    if (stage + 1 === stages) state.backwards.push({ pass, steps: [], at: state.free });
    else states[stage + 1]!.forwards.push({ pass, steps, at: state.free + times.transfer(stage, pass, "forward") });
  }
  for (const stage of states.keys()) {
    const last = [...due, ...fresh];
    const steps = stage === 0 ? last : [...made, ...last];
    if (steps.length > 0) yield { stage, action: { kind: "step", steps } };
  }
}

/** Which stage does something next, the first of those that begin earliest. */
function earliest(states: readonly StageState[], options: PipelineOptions, pool: Pool, now: number): Choice | null {
  let best: Choice | null = null;
  for (const stage of states.keys()) {
    const choice = choose(states, stage, options, pool, now);
    if (choice && (!best || choice.at < best.at)) best = choice;
  }
  return best;
}

/**
 * What a stage does next. It fills the pipeline after it first (a forward while it has fewer passes in flight than stages
 * follow, itself among them, and its lead), then prefers backward; while it would wait for one, it begins another forward if
 * it has the memory. It begins nothing whose result it could not send, so some stage can always continue.
 */
function choose(
  states: readonly StageState[],
  stage: number,
  options: PipelineOptions,
  pool: Pool,
  now: number,
): Choice | null {
  const { kind, stages, inFlight: limits, sendBuffers } = options;
  const { free, inFlight, newest, forwards, backwards } = states[stage]!;
  // Of passes that only shorten waiting the first stage leaves one, to have work while the step of another is decided.
  const spares = stage > 0 || inFlight <= stages || pool.leavesWork();
  const room = kind === "gpipe" || (inFlight < limits[stage]! && spares);
  const mayForward = room && (states[stage + 1]?.forwards.length ?? 0) < sendBuffers;
  const flushing = kind !== "gpipe" || newest?.segments.some(({ last }) => last);
  const mayBackward = flushing && (states[stage - 1]?.backwards.length ?? 0) < sendBuffers;
  const arrival = stage === 0 ? pool.readyAt() : (forwards[0]?.at ?? Number.POSITIVE_INFINITY);
  const from = Math.max(now, free); // never before now: a buffer or memory that is free now was not free before
  const forward = mayForward ? Math.max(from, arrival) : Number.POSITIVE_INFINITY;
  const backward = mayBackward && backwards[0] ? Math.max(from, backwards[0].at) : Number.POSITIVE_INFINITY;
  const at = Math.min(forward, backward);
  if (at === Number.POSITIVE_INFINITY) return null;
  const lead = kind === "lorapp" && stage + 1 < stages ? LEAD : 0;
  const fill = kind === "gpipe" || inFlight < stages - stage + lead;
  const forwardNow = forward === backward ? fill : forward < backward;
  return { stage, kind: forwardNow ? "forward" : "backward", at };
}
