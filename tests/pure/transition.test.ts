// The life of an adapter: the whole machine, written down a second time as a table, and what holds on any way through it.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import {
  initialLifecycle,
  isAdmissible,
  isOnStages,
  isToLeave,
  LIFECYCLE_EVENTS,
  type Lifecycle,
  type LifecycleEvent,
  STATUSES,
  transition,
} from "../../src/session/scheduling/transition.ts";

/** "leaving>rung paused": status, next status, pause. */
const textOf = ({ status, nextStatus, isPaused }: Lifecycle): string =>
  `${status}${nextStatus === null ? "" : `>${nextStatus}`}${isPaused ? " paused" : ""}`;

/**
 * Every state that there is, and what its events make of it; what is not here is not allowed. "ended" is allowed in all but the
 * last.
 */
const MACHINE: Readonly<Record<string, Partial<Record<LifecycleEvent, string>>>> = {
  waiting: { admitted: "joining", pauseRequested: "waiting paused" },
  "waiting paused": { resumeRequested: "waiting" },
  joining: {
    ...{ joined: "active", evaluationDue: "evaluating", withdrawn: "waiting" },
    ...{ pauseRequested: "joining paused", stopRequested: "joining>ended" },
  },
  "joining paused": {
    ...{ joined: "leaving>waiting paused", evaluationDue: "evaluating paused", withdrawn: "waiting paused" },
    ...{ resumeRequested: "joining", stopRequested: "joining>ended" },
  },
  "joining>ended": { joined: "leaving>ended", evaluationDue: "evaluating>ended", stopRequested: "joining>ended" },
  active: {
    ...{ evaluationDue: "evaluating", preempted: "leaving>waiting", turnEnded: "resting" },
    ...{ pauseRequested: "leaving>waiting paused", stopRequested: "leaving>ended" },
  },
  resting: {
    ...{ joined: "active", evaluationDue: "evaluating", preempted: "leaving>waiting" },
    ...{ pauseRequested: "leaving>waiting paused", stopRequested: "leaving>ended" },
  },
  evaluating: {
    ...{ joined: "active", rungReached: "leaving>rung", preempted: "evaluating" },
    ...{ pauseRequested: "evaluating paused", stopRequested: "evaluating>ended" },
  },
  "evaluating paused": {
    ...{ joined: "leaving>waiting paused", rungReached: "leaving>rung paused", preempted: "evaluating paused" },
    ...{ resumeRequested: "evaluating", stopRequested: "evaluating>ended" },
  },
  "evaluating>waiting": {
    ...{ joined: "leaving>waiting", rungReached: "leaving>rung", preempted: "evaluating>waiting" },
    ...{ pauseRequested: "evaluating>waiting paused", stopRequested: "evaluating>ended" },
  },
  "evaluating>waiting paused": {
    ...{ joined: "leaving>waiting paused", rungReached: "leaving>rung paused", preempted: "evaluating>waiting paused" },
    ...{ resumeRequested: "evaluating>waiting", stopRequested: "evaluating>ended" },
  },
  "evaluating>ended": {
    ...{ joined: "leaving>ended", rungReached: "leaving>ended", preempted: "evaluating>ended" },
    stopRequested: "evaluating>ended",
  },
  "leaving>waiting": {
    ...{ left: "waiting", evaluationDue: "evaluating>waiting" },
    ...{ pauseRequested: "leaving>waiting paused", stopRequested: "leaving>ended" },
  },
  "leaving>waiting paused": {
    ...{ left: "waiting paused", evaluationDue: "evaluating>waiting paused" },
    ...{ resumeRequested: "leaving>waiting", stopRequested: "leaving>ended" },
  },
  "leaving>rung": { left: "rung", pauseRequested: "leaving>rung paused", stopRequested: "leaving>ended" },
  "leaving>rung paused": { left: "rung paused", resumeRequested: "leaving>rung", stopRequested: "leaving>ended" },
  "leaving>ended": { evaluationDue: "evaluating>ended", stopRequested: "leaving>ended" },
  rung: { rungPassed: "waiting", pauseRequested: "rung paused" },
  "rung paused": { rungPassed: "waiting paused", resumeRequested: "rung" },
  ended: {},
};

/** All states that events lead to from the first, by their text. */
function reachable(): Map<string, Lifecycle> {
  const found = new Map<string, Lifecycle>();
  const open = [initialLifecycle(false)];
  for (let life = open.pop(); life; life = open.pop()) {
    if (found.has(textOf(life))) continue;
    found.set(textOf(life), life);
    for (const event of LIFECYCLE_EVENTS) {
      const next = attempt(life, event);
      if (next) open.push(next);
    }
  }
  return found;
}

function attempt(life: Lifecycle, event: LifecycleEvent): Lifecycle | null {
  try {
    return transition(life, event);
  } catch {
    return null;
  }
}

test("every event in every state leads where the table says, or is refused by an error that names both", () => {
  const states = reachable();
  expect([...states.keys()].sort()).toEqual(Object.keys(MACHINE).sort());
  expect(new Set([...states.values()].map(({ status }) => status))).toEqual(new Set(STATUSES));
  for (const [text, life] of states)
    for (const event of LIFECYCLE_EVENTS) {
      const expected = event === "ended" && text !== "ended" ? "ended" : MACHINE[text]![event];
      if (expected !== undefined) expect(textOf(transition(life, event)), `${text}, ${event}`).toBe(expected);
      else {
        const refused = () => transition(life, event);
        expect(refused, `${text}, ${event}`).toThrow(`'${event}'`);
        expect(refused).toThrow(`"status":"${life.status}"`);
      }
    }
});

test("an adapter that an earlier run has ended stays so", () => {
  expect(textOf(initialLifecycle(true))).toBe("ended");
  expect(textOf(initialLifecycle(false))).toBe("waiting");
});

test("on any way, a slot is given and taken in turn, requests are kept, and an end is final", () => {
  for (let seed = 0; seed < 300; seed++) {
    const rng = new Rng(seed);
    let life = initialLifecycle(false);
    let [hasSlot, isPaused, isStopped] = [false, false, false];
    for (let i = 0; i < 60 && life.status !== "ended"; i++) {
      const events = LIFECYCLE_EVENTS.filter((event) => event !== "ended" || rng.below(20) === 0);
      const event = events[rng.below(events.length)]!;
      const next = attempt(life, event);
      if (next === null) continue;
      if (event === "admitted") [hasSlot] = [!hasSlot];
      if (event === "left" || event === "withdrawn" || event === "ended") hasSlot = false;
      if (event === "pauseRequested") isPaused = true;
      if (event === "stopRequested") isStopped = true;
      if (event === "resumeRequested" || isStopped || event === "ended") isPaused = false;
      life = next;
      expect(isOnStages(life), textOf(life)).toBe(hasSlot);
      expect(life.isPaused).toBe(isPaused);
      // A paused adapter is neither admitted nor trained; one that is stopped trains no more and gets no other slot.
      if (isPaused || isStopped) expect([isAdmissible(life), life.status === "active"]).toEqual([false, false]);
      if (isStopped && life.status !== "ended") expect(life.nextStatus).toBe("ended");
      if (life.status === "leaving") expect(life.nextStatus).not.toBeNull();
      if (!hasSlot) expect(life.nextStatus).toBeNull();
      expect(isToLeave(life)).toBe(hasSlot && (life.status === "leaving" || isPaused || life.nextStatus !== null));
    }
    if (life.status === "ended") for (const event of LIFECYCLE_EVENTS) expect(attempt(life, event)).toBeNull();
  }
});

test("no other file changes where an adapter stands", async () => {
  const folder = `${import.meta.dir}/../../src`;
  const assignment = /\.(status|nextStatus|isPaused)\s*=(?![=>])/;
  const found: string[] = [];
  for (const path of new Bun.Glob("**/*.ts").scanSync(folder))
    if (assignment.test(await Bun.file(`${folder}/${path}`).text())) found.push(path);
  expect(found).toEqual([]);
});
