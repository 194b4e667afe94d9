// The life of an adapter in a run: where it stands next, as one pure function of where it stands and of what happens.
//
//              admitted            joined                preempted,
//    waiting -----------> joining --------> active ---------------------> leaving
//     ^   ^                  |               ^   |   a pause, a stop       ^  |  |
//     |   | rungPassed       | evaluationDue |   | evaluationDue           |  |  |
//     |   |                  |        joined |   v         evaluationDue   |  |  |
//     |  rung                '------------> evaluating <-------------------|--'  |
//     |   ^                                     |                          |     |
//     |   |                                     '--------------------------'     |
//     |   |                        rungReached, or joined after a request to leave
//     |   |                                                                      |
//     '---'----------------------------------------------------------------------'
//                                          left
//    every status -- ended --> ended
//
//    active -- turnEnded --> resting -- joined --> active: it keeps its slot, and waits in host memory for its next turn on the
//    devices. A request to leave, or an evaluation, finds it as it finds an active one.
//
// A pause is a flag: a paused adapter leaves the stages and is not admitted until it is resumed. At a rung it is still compared
// with the others.

export const STATUSES = [
  "waiting", // it has no slot
  "joining", // its slot is being filled
  "active", // it trains
  "resting", // it has a slot, and after the step under way it waits for its turn on the devices
  "evaluating", // it has a slot, and an evaluation decides what comes next
  "leaving", // it gives up its slot after the step under way
  "rung", // it waits for the other adapters of its sweep
  "ended", // it makes no further step
] as const;
export type Status = (typeof STATUSES)[number];

export type Lifecycle = {
  readonly status: Status;
  /** What it becomes when it leaves its slot; null while it keeps its slot, or has no slot. */
  readonly nextStatus: "waiting" | "rung" | "ended" | null;
  /** Paused on request: it trains again only after a resume. */
  readonly isPaused: boolean;
};

export const LIFECYCLE_EVENTS = [
  "admitted", // it is given a slot
  "joined", // it may train, or leave if it has been asked to
  "withdrawn", // it gives back its slot before it could begin, as the stages close
  "turnEnded", // it makes room on the devices for another
  "evaluationDue", // its next step depends on an evaluation
  "rungReached", // the evaluation at a rung is known
  "preempted", // its slot is needed for another adapter, or the stages close
  "left", // it is saved, and its slot is free
  "rungPassed", // it is among the better ones of its sweep
  "ended",
  "pauseRequested",
  "resumeRequested",
  "stopRequested",
] as const;
export type LifecycleEvent = (typeof LIFECYCLE_EVENTS)[number];

/** What changes; null where the event is not allowed. */
type Rule = (of: Lifecycle) => Partial<Lifecycle> | null;

const to =
  (status: Status): Rule =>
  () => ({ status });
const leaveFor = (nextStatus: Lifecycle["nextStatus"]) => ({ status: "leaving", nextStatus }) as const;

const trainOrLeave: Rule = ({ nextStatus, isPaused }) =>
  nextStatus === null && !isPaused ? { status: "active" } : leaveFor(nextStatus ?? "waiting");
/** A stop is final: a later pause does not turn it into a wait. */
const pause: Rule = ({ nextStatus, isPaused }) => (isPaused || nextStatus === "ended" ? null : { isPaused: true });
const resume: Rule = ({ isPaused }) => (isPaused ? { isPaused: false } : null);
const stop: Rule = () => ({ nextStatus: "ended", isPaused: false });
const end: Rule = () => ({ status: "ended", nextStatus: null, isPaused: false });

const RULES: Readonly<Record<LifecycleEvent, Readonly<Partial<Record<Status, Rule>>>>> = {
  admitted: { waiting: ({ isPaused }) => (isPaused ? null : { status: "joining" }) },
  joined: { joining: trainOrLeave, resting: trainOrLeave, evaluating: trainOrLeave },
  withdrawn: { joining: ({ nextStatus }) => (nextStatus === "ended" ? null : { status: "waiting" }) },
  turnEnded: { active: to("resting") },
  // Also during the last step before it leaves: what an evaluation decides must not depend on the other adapters of the run.
  evaluationDue: {
    ...{ joining: to("evaluating"), active: to("evaluating"), resting: to("evaluating") },
    leaving: ({ nextStatus }) => (nextStatus === "rung" ? null : { status: "evaluating" }),
  },
  rungReached: { evaluating: ({ nextStatus }) => leaveFor(nextStatus === "ended" ? "ended" : "rung") },
  // During an evaluation it keeps its slot; it may be preempted when it trains again.
  preempted: { active: () => leaveFor("waiting"), resting: () => leaveFor("waiting"), evaluating: () => ({}) },
  left: {
    leaving: ({ nextStatus }) =>
      nextStatus === null || nextStatus === "ended" ? null : { status: nextStatus, nextStatus: null },
  },
  rungPassed: { rung: to("waiting") },
  pauseRequested: {
    ...{ waiting: pause, joining: pause, evaluating: pause, leaving: pause, rung: pause },
    active: () => ({ ...leaveFor("waiting"), isPaused: true }),
    resting: () => ({ ...leaveFor("waiting"), isPaused: true }),
  },
  resumeRequested: { waiting: resume, joining: resume, evaluating: resume, leaving: resume, rung: resume },
  // An adapter without a slot ends at once.
  stopRequested: {
    ...{ joining: stop, evaluating: stop, leaving: stop },
    ...{ active: () => leaveFor("ended"), resting: () => leaveFor("ended") },
  },
  ended: { waiting: end, joining: end, active: end, resting: end, evaluating: end, leaving: end, rung: end },
};

/** Where an adapter stands after an event. Throws an Error, a fault of this program, where the event is not allowed. */
export function transition({ status, nextStatus, isPaused }: Lifecycle, event: LifecycleEvent): Lifecycle {
  const before = { status, nextStatus, isPaused };
  const change = RULES[event][status]?.(before) ?? null;
  if (change === null) throw new Error(`an adapter cannot be '${event}' while it is ${JSON.stringify(before)}`);
  return { ...before, ...change };
}

/** Where an adapter stands when the run opens; `hasEnded`: an earlier run has ended it. */
export const initialLifecycle = (hasEnded: boolean): Lifecycle => ({
  status: hasEnded ? "ended" : "waiting",
  nextStatus: null,
  isPaused: false,
});

/** Whether a free slot may be given to it. */
export const isAdmissible = ({ status, isPaused }: Lifecycle): boolean => status === "waiting" && !isPaused;

/** Whether it has a slot, or is giving it up. */
export const isOnStages = ({ status }: Pick<Lifecycle, "status">): boolean =>
  status === "joining" || isInTraining({ status }) || status === "leaving";

/** Whether it trains as soon as its turn comes, unless an evaluation decides otherwise. */
export const isInTraining = ({ status }: Pick<Lifecycle, "status">): boolean =>
  status === "active" || status === "resting" || status === "evaluating";

/** Whether it is giving up its slot, or will when its admission or evaluation is over. */
export const isToLeave = (of: Lifecycle): boolean =>
  of.status === "leaving" || (isOnStages(of) && (of.nextStatus !== null || of.isPaused));
