// All that a page shows of a run or of a server's jobs, and the pages that look at it. Each gets everything first, and then
// what has changed, twice a second: however fast steps are, what is sent is bounded by the number of adapters.

import { wallTime } from "../base/clock.ts";
import { VERSION } from "../base/version.ts";
import { Curve, type Point } from "./curve.ts";
import type { Ability, AdapterState, All, Change, HeldOut, Notice, RunState } from "./wire.ts";

const EVERY_MS = 500;
/** Points of a curve that are kept, and that are sent of all curves together at first. */
const [MOST_POINTS, ALL_POINTS, LEAST_POINTS] = [256, 80_000, 24];
/** Points of a curve in one change: what a page adds to those that it has. */
const CHANGED_POINTS = 16;
const [MOST_NOTICES, MOST_HELD_OUT] = [200, 128];

type Entry = {
  state: AdapterState;
  readonly curve: Curve;
  /** Not yet sent. */
  fresh: Point[];
  heldOuts: HeldOut[];
  freshHeldOuts: HeldOut[];
};

/** A page that looks: `send` returns false where it takes no more for now: it gets everything again when it does. */
export type Viewer = {
  readonly send: (event: "all" | "change", data: object) => boolean;
  /** Nothing comes any more. */
  readonly close: () => void;
};

export type BoardOptions = {
  readonly title: string;
  /** The run as it is now. */
  readonly run: () => RunState;
  /** Brings the board up to date; called before something is sent. */
  readonly refresh: (board: Board) => void;
};

const NEW: Omit<AdapterState, "name" | "label"> = {
  ...{ state: "waiting", step: 0, steps: 0, loss: null, gradNorm: null, learningRate: null, tokensPerSecond: null },
  ...{ secondsLeft: null, heldOut: null, bestHeldOut: null, note: null },
};

export class Board implements Disposable {
  readonly #entries = new Map<string, Entry>();
  readonly #changed = new Set<Entry>();
  /** Whether each has missed a change. */
  readonly #viewers = new Map<Viewer, boolean>();
  #isClosed = false;
  #notices: Notice[] = [];
  #freshNotices: Notice[] = [];
  #timer: Timer | null = null;

  constructor(private readonly options: BoardOptions) {}

  /** What is known of an adapter. */
  get(name: string): AdapterState {
    return this.#entry(name).state;
  }

  /** Changes what is known of an adapter; a name that is new is added. */
  set(name: string, more: Partial<Omit<AdapterState, "name">>): void {
    const entry = this.#entry(name);
    const isNews = Object.entries(more).some(([key, value]) => entry.state[key as keyof AdapterState] !== value);
    if (!isNews) return;
    entry.state = { ...entry.state, ...more };
    this.#changed.add(entry);
  }

  step(name: string, point: Point): void {
    const entry = this.#entry(name);
    entry.curve.add(point);
    entry.fresh.push(point);
    if (entry.fresh.length > MOST_POINTS) entry.fresh = reducedTo(CHANGED_POINTS, entry.fresh);
    const [step, loss, gradNorm] = point;
    entry.state = { ...entry.state, step, loss, gradNorm };
    this.#changed.add(entry);
  }

  heldOut(name: string, step: number, loss: number): void {
    const entry = this.#entry(name);
    const { bestHeldOut } = entry.state;
    entry.heldOuts = [...entry.heldOuts.filter(([of]) => of < step), [step, loss] as const].slice(-MOST_HELD_OUT);
    entry.freshHeldOuts.push([step, loss]);
    entry.state = { ...entry.state, heldOut: loss, bestHeldOut: Math.min(loss, bestHeldOut ?? loss) };
    this.#changed.add(entry);
  }

  notice(adapter: string | null, text: string, isError = false, time = wallTime()): void {
    const notice = { time, adapter, text, isError };
    this.#notices = [...this.#notices, notice].slice(-MOST_NOTICES);
    this.#freshNotices = [...this.#freshNotices, notice].slice(-MOST_NOTICES);
  }

  /** Sends to a viewer until it is disposed; at once what is there now. `abilities`: what this viewer may do. */
  watch({ send, close }: Viewer, abilities: readonly Ability[]): Disposable {
    this.#tick(); // others get their changes, so that nothing is sent twice to this one
    const viewer: Viewer = { send: (event, data) => send(event, event === "all" ? { ...data, abilities } : data), close };
    this.#viewers.set(viewer, !viewer.send("all", this.#all()));
    if (!this.#isClosed) this.#timer ??= setInterval(() => this.#tick(), EVERY_MS);
    return {
      [Symbol.dispose]: () => {
        this.#viewers.delete(viewer);
        if (this.#viewers.size > 0 || !this.#timer) return;
        clearInterval(this.#timer);
        this.#timer = null;
      },
    };
  }

  /** Sends what has changed, and closes all viewers. */
  [Symbol.dispose](): void {
    this.#tick();
    this.#isClosed = true;
    for (const { close } of [...this.#viewers.keys()]) close();
  }

  #entry(name: string): Entry {
    const found = this.#entries.get(name);
    if (found) return found;
    const entry: Entry = {
      state: { ...NEW, name, label: name },
      ...{ curve: new Curve(MOST_POINTS), fresh: [], heldOuts: [], freshHeldOuts: [] },
    };
    this.#entries.set(name, entry);
    this.#changed.add(entry);
    return entry;
  }

  #all(): Omit<All, "abilities"> {
    const entries = [...this.#entries.values()];
    const each = Math.max(LEAST_POINTS, Math.floor(ALL_POINTS / Math.max(1, entries.length)));
    return {
      ...{ title: this.options.title, version: VERSION, run: this.options.run(), notices: this.#notices },
      adapters: entries.map(({ state, curve, heldOuts }) => {
        const { points, stride } = curve.reduced(each);
        return { ...state, points, stride, heldOuts };
      }),
    };
  }

  #tick(): void {
    this.options.refresh(this);
    const adapters = [...this.#changed].map((entry) => {
      const { state, fresh, freshHeldOuts } = entry;
      [entry.fresh, entry.freshHeldOuts] = [[], []];
      return { ...state, points: reducedTo(CHANGED_POINTS, fresh), heldOuts: freshHeldOuts };
    });
    this.#changed.clear();
    const change: Change = { run: this.options.run(), adapters, notices: this.#freshNotices };
    this.#freshNotices = [];
    for (const [viewer, isLate] of this.#viewers)
      this.#viewers.set(viewer, isLate ? !viewer.send("all", this.#all()) : !viewer.send("change", change));
  }
}

function reducedTo(most: number, points: readonly Point[]): Point[] {
  if (points.length <= most) return [...points];
  const each = Math.ceil(points.length / most);
  return Array.from({ length: Math.ceil(points.length / each) }, (_, i) => meanOf(points.slice(i * each, (i + 1) * each)));
}

function meanOf(points: readonly Point[]): Point {
  const mean = (at: 1 | 2 | 3) => {
    const values = points.flatMap((point) => point[at] ?? []);
    return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  return [points.at(-1)![0], mean(1), mean(2), mean(3)];
}
