// What a person sees while a run goes: on a terminal one bar for the run and one for each adapter, else a plain line now and
// then. Draws only; decides nothing.

import { MultiBar, Presets, type SingleBar } from "cli-progress";
import { now } from "../base/clock.ts";
import { sum } from "../base/shape.ts";
import { visible, visibleLine } from "../base/terminal.ts";
import { count, duration } from "../base/units.ts";
import { isPreference } from "../objectives/registry.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { EvaluationEvent, Observer, StepEvent } from "../session/events.ts";

/** Between plain lines of one adapter, in ms. */
const LINE_EVERY = 10_000;
/** Adapters with a bar of their own; those beyond share the run's. Bars that do not all fit on the screen could not be drawn anew. */
const mostBars = ({ rows }: NodeJS.WriteStream): number => Math.min(24, Math.max(0, (rows || 24) - 2));

export type Progress = Observer & Disposable;

/** Tokens a second and time left, of each adapter and of all, from what was done here and what is to come. */
class Pace {
  #done = 0;
  readonly #doneBy: number[] = [];
  readonly #left: number[] = [];
  readonly #tokens: number[] = [];
  readonly #started = now();

  constructor(adapters: readonly AdapterPlan[], ended: (name: string) => boolean) {
    for (const adapter of adapters) this.join(adapter, ended(adapter.name));
  }

  join({ tokens }: AdapterPlan, ended = false): void {
    this.#tokens.push(tokens);
    this.#doneBy.push(0);
    this.#left.push(ended ? 0 : tokens);
  }

  stepped({ adapter, step, steps, tokens }: StepEvent): void {
    this.#done += tokens;
    this.#doneBy[adapter]! += tokens;
    this.#left[adapter] = this.#tokens[adapter]! * (1 - step / steps);
  }

  ended(adapter: number): void {
    this.#left[adapter] = 0;
  }

  get total(): number {
    return sum(this.#tokens);
  }
  /** Tokens that need no training any more, those of adapters that ended early among them. */
  get behind(): number {
    return Math.round(this.total - sum(this.#left));
  }
  get rate(): number {
    return (1000 * this.#done) / Math.max(1, now() - this.#started);
  }
  get left(): string {
    return this.#time(sum(this.#left), this.#done);
  }
  leftOf(adapter: number): string {
    return this.#time(this.#left[adapter]!, this.#doneBy[adapter]!);
  }

  #time(left: number, done: number): string {
    if (done === 0) return "?";
    return duration((left * Math.max(1, now() - this.#started)) / 1000 / done);
  }
}

const rightText = ({ adapters }: Plan, { adapter, exact, rows }: EvaluationEvent) =>
  `${exact}/${rows} ${isPreference(adapters[adapter]!.recipe.objective) ? "judged right" : "exact"}`;

/** `ended`: whether an adapter had ended before, where a run goes on. */
export function openProgress(plan: Plan, stream: NodeJS.WriteStream, ended: (name: string) => boolean = () => false): Progress {
  const pace = new Pace(plan.adapters, ended);
  return stream.isTTY ? bars(plan, pace, stream) : lines(plan, pace, stream);
}

function bars(plan: Plan, pace: Pace, stream: NodeJS.WriteStream): Progress {
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
  const barOf = ({ name, steps, index }: AdapterPlan): SingleBar | undefined =>
    index < most ? multi.create(steps, 0, { name: visibleLine(name).padEnd(width), unit: "steps", ...start }) : undefined;
  const adapterBars = plan.adapters.map(barOf);
  const print = (line: string) => multi.log(`${visible(line)}\n`);
  let open = true; // stopping twice would draw the bars again, below the table
  return {
    joined: (adapter) => {
      pace.join(adapter);
      adapterBars.push(barOf(adapter));
      runBar.setTotal(pace.total);
    },
    stepped: (event) => {
      pace.stepped(event);
      const detail = `loss ${event.loss.toFixed(4)}  ${count(event.tokensPerSecond)} tokens/s  ${pace.leftOf(event.adapter)} left`;
      adapterBars[event.adapter]?.update(event.step, { detail });
      runBar.update(pace.behind, { detail: `${count(pace.rate)} tokens/s  ${pace.left} left` });
    },
    ended: (adapter) => pace.ended(adapter),
    evaluated: (event) => print(evaluationLine(plan, event)),
    saved: ({ adapter, folder }) => adapterBars[adapter]?.update({ detail: `saved ${visibleLine(folder)}` }),
    failed: (adapter, message) => print(`${plan.adapters[adapter]!.name}: failed: ${message}`),
    noticed: (adapter, text) => print(noticeLine(plan, adapter, text)),
    [Symbol.dispose]: () => {
      if (open) multi.stop();
      open = false;
    },
  };
}

const noticeLine = (plan: Plan, adapter: number | null, text: string): string =>
  `notice: ${adapter === null ? "" : `${plan.adapters[adapter]!.name}: `}${text}`;

const evaluationLine = (plan: Plan, event: EvaluationEvent): string =>
  `${plan.adapters[event.adapter]!.name}: step ${event.step}, held-out loss ${event.loss.toFixed(4)}, ${rightText(plan, event)}`;

const stepLine = (plan: Plan, event: StepEvent, left: string): string =>
  `${plan.adapters[event.adapter]!.name}: step ${event.step}/${event.steps}, loss ${event.loss.toFixed(4)}, ` +
  `${count(event.tokensPerSecond)} tokens/s, ${left} left`;

function lines(plan: Plan, pace: Pace, stream: NodeJS.WriteStream): Progress {
  const saidAt = plan.adapters.map(() => Number.NEGATIVE_INFINITY);
  const print = (line: string) => stream.write(`${visible(line)}\n`);
  return {
    joined: (joined) => {
      pace.join(joined);
      const { name } = joined;
      saidAt.push(Number.NEGATIVE_INFINITY);
      print(`${name}: joins the run`);
    },
    stepped: (event) => {
      const { adapter } = event;
      pace.stepped(event);
      if (event.step < event.steps && now() - saidAt[adapter]! < LINE_EVERY) return;
      saidAt[adapter] = now();
      print(stepLine(plan, event, pace.leftOf(adapter)));
    },
    evaluated: (event) => print(evaluationLine(plan, event)),
    saved: ({ adapter, folder }) => print(`${plan.adapters[adapter]!.name}: saved ${folder}`),
    failed: (adapter, message) => print(`${plan.adapters[adapter]!.name}: failed: ${message}`),
    noticed: (adapter, text) => print(noticeLine(plan, adapter, text)),
    [Symbol.dispose]: () => undefined,
  };
}
