// What a person sees while a run goes: on a terminal one bar for the run and one for each adapter, else a plain line now and
// then. Draws only; decides nothing.

import { MultiBar, Presets, type SingleBar } from "cli-progress";
import { now } from "../base/clock.ts";
import { sum } from "../base/shape.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { EvaluationEvent, Observer, StepEvent } from "../run/events.ts";
import { count, duration } from "./table.ts";

/** Between plain lines of one adapter, in ms. */
const LINE_EVERY = 10_000;
/** More bars than this do not fit on a screen: the adapters beyond share the run's bar. */
const MOST_BARS = 24;

export type Progress = Observer & Disposable;

/** Tokens a second and time left from what is done and what is to come. */
class Pace {
  #done = 0;
  readonly #started = now();
  constructor(public total: number) {}
  add(tokens: number): void {
    this.#done += tokens;
  }
  get done(): number {
    return this.#done;
  }
  get rate(): number {
    return (1000 * this.#done) / Math.max(1, now() - this.#started);
  }
  get left(): string {
    return this.#done === 0 ? "?" : duration(Math.max(0, this.total - this.#done) / this.rate);
  }
}

const rightText = ({ adapters }: Plan, { adapter, exact, rows }: EvaluationEvent) =>
  `${exact}/${rows} ${adapters[adapter]!.recipe.objective.name === "sft" ? "exact" : "judged right"}`;

export function openProgress(plan: Plan, stream: NodeJS.WriteStream): Progress {
  return stream.isTTY ? bars(plan, stream) : lines(plan, stream);
}

function bars(plan: Plan, stream: NodeJS.WriteStream): Progress {
  const paces = plan.adapters.map(({ tokens }) => new Pace(tokens));
  const whole = new Pace(sum(plan.adapters.map(({ tokens }) => tokens)));
  const names = ["all adapters", ...plan.adapters.map(({ name }) => name)];
  const width = Math.max(...names.map((name) => name.length));
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
  const runBar = multi.create(whole.total, 0, { name: names[0]!.padEnd(width), unit: "tokens", ...start });
  const barOf = ({ name, steps, index }: AdapterPlan): SingleBar | undefined =>
    index < MOST_BARS ? multi.create(steps, 0, { name: name.padEnd(width), unit: "steps", ...start }) : undefined;
  const adapterBars = plan.adapters.map(barOf);
  const say = (line: string) => multi.log(`${line}\n`);
  let open = true; // stopping twice would draw the bars again, below the table
  return {
    joined: (adapter) => {
      paces.push(new Pace(adapter.tokens));
      adapterBars.push(barOf(adapter));
      whole.total += adapter.tokens;
      runBar.setTotal(whole.total);
    },
    stepped: (event) => {
      const pace = paces[event.adapter]!;
      pace.add(event.tokens);
      whole.add(event.tokens);
      const detail = `loss ${event.loss.toFixed(4)}  ${count(event.tokensPerSecond)} tokens/s  ${pace.left} left`;
      adapterBars[event.adapter]?.update(event.step, { detail });
      runBar.update(whole.done, { detail: `${count(whole.rate)} tokens/s  ${whole.left} left` });
    },
    evaluated: (event) => say(evaluationLine(plan, event)),
    saved: ({ adapter, folder }) => adapterBars[adapter]?.update({ detail: `saved ${folder}` }),
    failed: (adapter, message) => say(`${plan.adapters[adapter]!.name}: failed: ${message}`),
    noticed: (adapter, text) => say(noticeLine(plan, adapter, text)),
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

const stepLine = (plan: Plan, event: StepEvent, pace: Pace): string =>
  `${plan.adapters[event.adapter]!.name}: step ${event.step}/${event.steps}, loss ${event.loss.toFixed(4)}, ` +
  `${count(event.tokensPerSecond)} tokens/s, ${pace.left} left`;

function lines(plan: Plan, stream: NodeJS.WriteStream): Progress {
  const paces = plan.adapters.map(({ tokens }) => new Pace(tokens));
  const saidAt = plan.adapters.map(() => Number.NEGATIVE_INFINITY);
  const say = (line: string) => stream.write(`${line}\n`);
  return {
    joined: ({ name, tokens }) => {
      paces.push(new Pace(tokens));
      saidAt.push(Number.NEGATIVE_INFINITY);
      say(`${name}: joins the run`);
    },
    stepped: (event) => {
      const { adapter } = event;
      paces[adapter]!.add(event.tokens);
      if (event.step < event.steps && now() - saidAt[adapter]! < LINE_EVERY) return;
      saidAt[adapter] = now();
      say(stepLine(plan, event, paces[adapter]!));
    },
    evaluated: (event) => say(evaluationLine(plan, event)),
    saved: ({ adapter, folder }) => say(`${plan.adapters[adapter]!.name}: saved ${folder}`),
    failed: (adapter, message) => say(`${plan.adapters[adapter]!.name}: failed: ${message}`),
    noticed: (adapter, text) => say(noticeLine(plan, adapter, text)),
    [Symbol.dispose]: () => undefined,
  };
}
