// Plays lists of actions by the rules that stages keep, and tells when each action begins and ends.
//
// A stage does its list in order. It waits for what an action receives, and takes messages in the order in which they were
// sent. A send costs the stage nothing while the link has a free buffer; else the stage waits until its neighbour takes one. A
// step waits for the last backward on all stages. These rules only ever wait for what has happened, so the order in which
// stages are looked at changes neither whether the play comes to its end nor any time.

import {
  type Direction,
  describeAction,
  endsOf,
  type PackedBatch,
  type PipelineAction,
  type StageAction,
  sameBatch,
  type Times,
} from "./lists.ts";

/** An action as it happened. */
export type Played = StageAction & { readonly start: number; readonly end: number };

export type PlayOptions = {
  readonly stages: number;
  readonly times: Times;
  /** Messages that a stage may have sent to a neighbour and that the neighbour has not begun to use. */
  readonly sendBuffers: number;
};

/** What a list does wrong, found while it is played. */
export class ScheduleFault extends Error {}

type Message = { readonly pass: PackedBatch; readonly at: number };

/** One direction between two stages. */
type Channel = { readonly waiting: Message[]; sent: number; carrying: number; readonly taken: number[]; takenBefore: number };

type StageState = {
  free: number;
  readonly list: PipelineAction[];
  /** Computed, but not sent for want of a buffer. */
  unsent: { readonly pass: PackedBatch; readonly direction: Direction } | null;
};

/** A mini-batch's end: on how many stages its last backward is done, when the last of them ended, how many have stepped. */
type Ended = { stages: number; at: number; stepped: number };

/**
 * Yields actions in an order in which each comes after those it depends on. Pulls from `actions` only what it needs to
 * continue.
 */
export function* play(actions: Iterable<StageAction>, { stages, times, sendBuffers }: PlayOptions): Generator<Played> {
  const source = actions[Symbol.iterator]();
  const states = Array.from({ length: stages }, (): StageState => ({ free: 0, list: [], unsent: null }));
  const channel = (): Channel => ({ waiting: [], sent: 0, carrying: 0, taken: [], takenBefore: 0 });
  const links = Array.from({ length: stages - 1 }, () => ({ forward: channel(), backward: channel() }));
  const ended = new Map<string, Ended>();

  /** Where `stage` sends in a direction, and where it receives from. */
  const outOf = (stage: number, direction: Direction) => links[direction === "forward" ? stage : stage - 1]?.[direction];
  const into = (stage: number, direction: Direction) => links[direction === "forward" ? stage - 1 : stage]?.[direction];

  /** Sends what the stage has computed; false while there is no buffer. */
  function send(stage: number): boolean {
    const state = states[stage]!;
    if (!state.unsent) return true;
    const { pass, direction } = state.unsent;
    const out = outOf(stage, direction)!;
    const before = out.sent - sendBuffers; // the message whose buffer this one takes
    if (before >= 0) {
      if (before - out.takenBefore >= out.taken.length) return false;
      state.free = Math.max(state.free, out.taken[before - out.takenBefore]!);
      out.taken.splice(0, before - out.takenBefore + 1);
      out.takenBefore = before + 1;
    }
    const link = direction === "forward" ? stage : stage - 1;
    out.carrying = Math.max(out.carrying, state.free) + times.transfer(link, pass, direction);
    out.waiting.push({ pass, at: out.carrying });
    out.sent++;
    state.unsent = null;
    return true;
  }

  /** When what the action waits for is there; Infinity while it is not. */
  function readyAt(stage: number, action: PipelineAction): number {
    if (action.kind === "step") {
      const of = action.steps.map(({ adapter, step }) => ended.get(`${adapter}.${step}`));
      return of.every((end) => end?.stages === stages) ? Math.max(0, ...of.map((end) => end!.at)) : Number.POSITIVE_INFINITY;
    }
    const from = into(stage, action.kind);
    if (!from) return 0;
    const first = from.waiting[0];
    if (!first) return Number.POSITIVE_INFINITY;
    if (!sameBatch(first.pass, action.pass))
      throw new ScheduleFault(`stage ${stage} expects the ${describeAction(action)}, but is next sent ${sayPass(first.pass)}`);
    return first.at;
  }

  /** The stage's next action, if it can be done. */
  function advance(stage: number): Played | null {
    const state = states[stage]!;
    if (!send(stage)) return null;
    const action = state.list[0];
    if (!action) return null;
    const ready = readyAt(stage, action);
    if (ready === Number.POSITIVE_INFINITY) return null;
    state.list.shift();
    const start = Math.max(state.free, ready);
    if (action.kind === "step") {
      state.free = start + times.step(stage, action.steps);
      for (const { adapter, step } of action.steps) {
        const end = ended.get(`${adapter}.${step}`)!;
        if (++end.stepped === stages) ended.delete(`${adapter}.${step}`);
      }
      return { stage, action, start, end: state.free };
    }
    const { kind, pass } = action;
    const from = into(stage, kind);
    from?.waiting.shift();
    if (sendBuffers < Number.POSITIVE_INFINITY) from?.taken.push(start);
    state.free = start + times[kind](stage, pass);
    const end = state.free;
    if (kind === "backward") for (const { adapter, step } of endsOf(pass)) note(`${adapter}.${step}`, end);
    if (outOf(stage, kind)) state.unsent = { pass, direction: kind };
    send(stage);
    return { stage, action, start, end };
  }

  function note(miniBatch: string, at: number): void {
    const end = ended.get(miniBatch) ?? { stages: 0, at: 0, stepped: 0 };
    ended.set(miniBatch, { ...end, stages: end.stages + 1, at: Math.max(end.at, at) });
  }

  for (;;) {
    let moved = false;
    for (const stage of states.keys())
      for (let played = advance(stage); played; played = advance(stage)) {
        moved = true;
        yield played;
      }
    if (moved) continue;
    const { value, done } = source.next();
    if (done) break;
    states[value.stage]!.list.push(value.action);
  }
  const stuck = states.flatMap(({ list, unsent }, stage) => {
    if (unsent) return [`stage ${stage} has no buffer to send ${sayPass(unsent.pass)} ${unsent.direction}`];
    return list[0] ? [`stage ${stage} waits to begin the ${describeAction(list[0])}`] : [];
  });
  if (stuck.length > 0) throw new ScheduleFault(`nothing can continue: ${stuck.join("; ")}`);
  for (const [link, { forward, backward }] of links.entries()) {
    if (forward.waiting[0])
      throw new ScheduleFault(`stage ${link + 1} never takes ${sayPass(forward.waiting[0].pass)} forward`);
    if (backward.waiting[0]) throw new ScheduleFault(`stage ${link} never takes ${sayPass(backward.waiting[0].pass)} backward`);
  }
}

const sayPass = ({ id, segments }: PackedBatch): string =>
  `pass ${id} (adapters ${segments.map(({ adapter }) => adapter).join(", ")})`;
