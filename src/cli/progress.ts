// What a person sees of a run: on a terminal one bar for the run and one for each adapter, else a plain line now and then.

import { MultiBar, Presets, type SingleBar } from "cli-progress";
import { now } from "../base/clock.ts";
import { sum } from "../base/shape.ts";
import { visible, visibleLine } from "../base/terminal.ts";
import { count, duration } from "../base/units.ts";
import type { AdapterPlan } from "../plan/plan.ts";
import type { EventOf, Listener, SessionEvent } from "../session/events/events.ts";

/** Between plain lines of one adapter, in ms. */
const LINE_EVERY = 10_000;
/** Adapters with a bar of their own; the others share the run's. Bars that do not fit on the screen could not be redrawn. */
const mostBars = ({ rows }: NodeJS.WriteStream): number => Math.min(24, Math.max(0, (rows || 24) - 2));

export type Progress = Disposable & { readonly report: Listener };

/** Less time than this says little of how fast work goes, in ms. */
const LEAST = 1_000;

/** How fast work goes from its first step on: opening and the first evaluation come before, and do not come again. */
class Clock {
  #first: number | null = null;
  #done = 0;

  step(tokens: number): void {
    if (this.#first === null) this.#first = now();
    else this.#done += tokens;
  }

  /** Tokens a second; null while too little is known. */
  get rate(): number | null {
    const elapsed = this.#first === null ? 0 : now() - this.#first;
    return this.#done === 0 || elapsed < LEAST ? null : (1000 * this.#done) / elapsed;
  }
}

/** Tokens a second and time left, of each adapter and of all, from what has been trained here and what is left. */
class Pace {
  readonly #all = new Clock();
  readonly #clocks: Clock[] = [];
  readonly #left: number[] = [];
  readonly #tokens: number[] = [];

  constructor({ adapters }: Planned, ended: (name: string) => boolean) {
    for (const { name, tokens } of adapters) this.#join(tokens, ended(name));
  }

  count(event: SessionEvent): void {
    if (event.type === "joined") this.#join(event.tokens, false);
    if (event.type === "step") this.#step(event);
    if (event.type === "ended") this.#left[event.index] = 0;
  }

  #join(tokens: number, ended: boolean): void {
    this.#tokens.push(tokens);
    this.#clocks.push(new Clock());
    this.#left.push(ended ? 0 : tokens);
  }

  #step({ index, step, steps, tokens }: EventOf<"step">): void {
    this.#all.step(tokens);
    this.#clocks[index]!.step(tokens);
    this.#left[index] = this.#tokens[index]! * (1 - step / steps);
  }

  get total(): number {
    return sum(this.#tokens);
  }
  /** Tokens that need no training any more, those of adapters that ended early among them. */
  get behind(): number {
    return Math.round(this.total - sum(this.#left));
  }
  /** "120 tokens/s", and from when on that is known "2 min 05 s left". */
  get text(): string {
    const { rate } = this.#all;
    return rate === null ? "" : `${count(rate)} tokens/s  ${timeLeft(sum(this.#left), rate)}`;
  }
  /** "2 min 05 s left"; null while that is not known. */
  leftOf(adapter: number): string | null {
    const { rate } = this.#clocks[adapter]!;
    return rate === null ? null : timeLeft(this.#left[adapter]!, rate);
  }
}

const timeLeft = (tokens: number, rate: number): string => `${duration(tokens / rate)} left`;

/** What is drawn of a plan. */
type Planned = { readonly adapters: readonly Pick<AdapterPlan, "name" | "index" | "steps" | "tokens">[] };

/** `ended`: whether an adapter had ended before, where a run is continued. */
export function openProgress(
  plan: Planned,
  stream: NodeJS.WriteStream,
  ended: (name: string) => boolean = () => false,
): Progress {
  const pace = new Pace(plan, ended);
  const view = stream.isTTY ? bars(plan, pace, stream) : lines(plan, pace, stream);
  return {
    report: (event) => {
      pace.count(event);
      if (event.type === "step") view.step(event);
      else if (event.type === "joined") view.joined(event);
      else if (event.type === "saved") view.saved(event);
      else if (event.type === "evaluation" || event.type === "failed" || event.type === "notice") view.print(lineOf(event));
    },
    [Symbol.dispose]: view.close,
  };
}

type View = {
  readonly step: (event: EventOf<"step">) => void;
  readonly joined: (event: EventOf<"joined">) => void;
  readonly saved: (event: EventOf<"saved">) => void;
  readonly print: (line: string) => void;
  readonly close: () => void;
};

function bars(plan: Planned, pace: Pace, stream: NodeJS.WriteStream): View {
  const names = ["all adapters", ...plan.adapters.map(({ name }) => visibleLine(name))];
  const width = Math.max(...names.map((name) => name.length));
  const most = mostBars(stream);
  const multi = new MultiBar(
    {
      stream,
      format: "{name}  {bar}  {value}/{total} {unit}  {detail}",
      barsize: 20,
      hideCursor: true,
      clearOnComplete: false,
      stopOnComplete: false,
      forceRedraw: true,
      linewrap: false,
      gracefulExit: false, // Ctrl-C is the run's to answer
      emptyOnZero: true,
    },
    Presets.shades_classic,
  );
  const start = { detail: "evaluating" };
  const runBar = multi.create(pace.total, pace.behind, { name: names[0]!.padEnd(width), unit: "tokens", ...start });
  const barOf = (name: string, steps: number, index: number): SingleBar | undefined =>
    index < most ? multi.create(steps, 0, { name: visibleLine(name).padEnd(width), unit: "steps", ...start }) : undefined;
  const adapterBars = plan.adapters.map(({ name, steps, index }) => barOf(name, steps, index));
  let open = true; // stopping twice would draw the bars again, below the table
  const step = (event: EventOf<"step">): void => {
    const parts = [learnedText(event), `${count(event.tokensPerSecond)} tokens/s`, pace.leftOf(event.index) ?? ""];
    adapterBars[event.index]?.update(event.step, { detail: parts.join("  ") });
    runBar.update(pace.behind, { detail: pace.text });
  };
  return {
    step,
    joined: ({ adapter, steps, index }) => {
      adapterBars.push(barOf(adapter, steps, index));
      runBar.setTotal(pace.total);
    },
    saved: ({ index, folder }) => adapterBars[index]?.update({ detail: `saved ${visibleLine(folder)}` }),
    print: (line) => multi.log(`${visible(line)}\n`),
    close: () => {
      if (open) multi.stop();
      open = false;
    },
  };
}

function lines(plan: Planned, pace: Pace, stream: NodeJS.WriteStream): View {
  const shownAt = plan.adapters.map(() => Number.NEGATIVE_INFINITY);
  const print = (line: string) => void stream.write(`${visible(line)}\n`);
  const step = (event: EventOf<"step">): void => {
    const { adapter, index, step, steps } = event;
    if (step < steps && now() - shownAt[index]! < LINE_EVERY) return;
    shownAt[index] = now();
    const left = step < steps ? pace.leftOf(index) : null;
    const parts = [`step ${step}/${steps}`, learnedText(event), `${count(event.tokensPerSecond)} tokens/s`, left ?? []].flat();
    print(`${adapter}: ${parts.join(", ")}`);
  };
  return {
    step,
    joined: ({ adapter }) => {
      shownAt.push(Number.NEGATIVE_INFINITY);
      print(`${adapter}: joins the run`);
    },
    saved: ({ adapter, folder }) => print(`${adapter}: saved ${folder}`),
    print,
    close: () => undefined,
  };
}

/** A step's loss or, of answers with rewards, whose loss says little, their mean reward. */
function learnedText({ loss, rollouts }: EventOf<"step">): string {
  const reward = rollouts?.["reward"];
  return reward === undefined ? `loss ${loss.toFixed(4)}` : `reward ${reward.toFixed(4)}`;
}

/** A line that is printed with bars and without. */
function lineOf(event: EventOf<"evaluation" | "failed" | "notice">): string {
  if (event.type === "failed") return `${event.adapter}: failed: ${event.message}`;
  if (event.type === "notice") return `notice: ${event.adapter === null ? "" : `${event.adapter}: `}${event.text}`;
  const { adapter, step, loss, exact, rows, isPreference } = event;
  const heldOutLoss = (loss ?? Number.NaN).toFixed(4);
  return `${adapter}: step ${step}, held-out loss ${heldOutLoss}, ${exact}/${rows} ${isPreference ? "judged right" : "exact"}`;
}
