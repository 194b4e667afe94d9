// The live page of a server: the jobs of one key, from the tables, where they survive everything.

import { now } from "../base/clock.ts";
import { promptOf } from "../session/generation/text-model.ts";
import type { Primitives } from "../session/primitives/primitives.ts";
import { LiveSpans } from "../session/tracing/live-spans.ts";
import type { Tracer } from "../session/tracing/trace.ts";
import { Board } from "../web/board.ts";
import { rowsAnswer, spansAnswer, stageFacts } from "../web/live.ts";
import type { Source } from "../web/source.ts";
import type { Ability, ControlAsked, RunState } from "../web/wire.ts";
import { badRequest } from "./errors.ts";
import type { EventRow, JobRow, JobStore, Status } from "./job-store.ts";
import type { Jobs } from "./jobs.ts";
import { type AnswersOptions, prepareAnswers } from "./openai/answers.ts";

const ABILITIES: readonly Ability[] = ["pause", "stop", "answer", "rows", "spans", "link"];
/** Jobs that a page shows, and events that are read at a time. */
const [MOST_JOBS, MOST_EVENTS] = [1000, 5000];
/** The share of the last measurement in a rate. */
const NEW_SHARE = 0.3;

/** As pages say it. */
const STATES: Readonly<Record<Status, string>> = {
  ...{ validating_files: "checking", queued: "waiting", running: "training", paused: "paused" },
  ...{ succeeded: "done", failed: "failed", cancelled: "stopped" },
};

export type JobPagesOptions = {
  readonly engine: Primitives;
  readonly store: JobStore;
  readonly jobs: Jobs;
  readonly answers: AnswersOptions;
  readonly title: string;
  readonly tracer: Tracer;
};

/** Steps and tokens a second of a job, smoothed, from what comes between two looks. */
type Pace = { at: number; steps: number; tokens: number; stepsPerSecond: number | null; tokensPerSecond: number | null };

export class JobPages implements Disposable {
  readonly #sources = new Map<string, Source>();
  readonly #spans: LiveSpans;
  readonly #attended: Disposable;
  readonly #started = now();

  constructor(private readonly options: JobPagesOptions) {
    const { engine } = options;
    this.#spans = new LiveSpans(engine.names);
    this.#attended = this.#spans.attend(engine.bus, { whole: null, own: options.tracer });
  }

  /** The page of a key's name. */
  sourceOf(tenant: string): Source {
    const known = this.#sources.get(tenant);
    if (known) return known;
    const { jobs, store, answers, title } = this.options;
    const refresh = this.#refresher(tenant);
    const board: Board = new Board({ title, run: () => this.#run(tenant), refresh });
    const source: Source = {
      ...{ board, abilities: ABILITIES },
      control: (asked) => this.#control(tenant, asked),
      rows: (id) => rowsAnswer(jobs.latestRows(tenant, id), answers.texts),
      spans: async () => spansAnswer(await this.#spans.recent(), (name) => ownLabel(store, tenant, name)),
      models: () => this.#models(tenant),
      answer: (asked, got, signal) => this.#answer(tenant, asked, got, signal),
    };
    this.#sources.set(tenant, source);
    return source;
  }

  [Symbol.dispose](): void {
    for (const { board } of this.#sources.values()) board[Symbol.dispose]();
    this.#attended[Symbol.dispose]();
  }

  #run(tenant: string): RunState {
    const { engine, store, title } = this.options;
    const { plan } = engine;
    const isTraining = store.open(tenant).some(({ status }) => status === "running");
    return {
      ...{ state: isTraining ? "training" : "waiting", model: title, device: plan.device.name, slots: plan.slots },
      ...{ seconds: (now() - this.#started) / 1000, secondsLeft: null, tokensPerSecond: 0, stages: stageFacts(plan) },
    };
  }

  /** Reads what is new in the tables into a board. */
  #refresher(tenant: string): (board: Board) => void {
    const { store } = this.options;
    const paces = new Map<string, Pace>();
    let [seq, isFirst] = [0, true];
    return (board) => {
      const shown = store.list(tenant, null, MOST_JOBS).reverse();
      for (const job of shown) board.set(job.id, { label: labelOf(job) });
      const isShown = new Set(shown.map(({ id }) => id));
      const came = new Map<string, { steps: number; tokens: number }>();
      for (;;) {
        const events = store.eventsAfter(tenant, seq, MOST_EVENTS);
        for (const event of events) if (isShown.has(event.job)) readEvent(board, event, paces.get(event.job), came);
        seq = events.at(-1)?.seq ?? seq;
        if (events.length < MOST_EVENTS) break;
      }
      for (const job of shown) {
        const pace = isFirst ? freshPace() : paceAfter(paces.get(job.id) ?? freshPace(), came.get(job.id));
        paces.set(job.id, pace);
        board.set(job.id, stateOf(board, job, pace));
      }
      isFirst = false;
    };
  }

  async #control(tenant: string, asked: ControlAsked): Promise<string> {
    const { jobs, store } = this.options;
    if (asked.action === "fork") throw badRequest("Jobs are not forked: create one with the other's model.", "action");
    const { action, adapter } = asked;
    const act = async (id: string) => {
      await (action === "stop"
        ? jobs.cancel(tenant, id)
        : action === "pause"
          ? jobs.pause(tenant, id)
          : jobs.resume(tenant, id));
    };
    if (adapter !== null) await act(adapter);
    else {
      const open = store.open(tenant).filter(({ status }) => (status === "paused") === (action === "resume"));
      await Promise.all(open.map(({ id }) => act(id)));
    }
    return { pause: "paused", resume: "resumed", stop: "cancelled" }[action];
  }

  #models(tenant: string) {
    const { models } = this.options.answers;
    const own = models.list(tenant).map(({ name }) => ({ name, label: name.split(":").slice(3).join(":") || name }));
    return [{ name: models.base.name, label: "base model" }, ...own.reverse()];
  }

  async #answer(
    tenant: string,
    { prompt, models, maxTokens }: Parameters<Source["answer"]>[0],
    ...more: Answering
  ): Promise<void> {
    const { answers } = this.options;
    const { texts } = answers;
    const [got, signal] = more;
    const ids = promptOf(texts, prompt);
    const room = answers.engine.plan.stages[0]!.sizes.cache!.capacity - ids.length;
    const one = async (model: string) => {
      const body = { model, temperature: 0 };
      const asked = { tenant, prompts: [ids], body, maxTokens: Math.max(1, Math.min(maxTokens, room)), logprobs: null };
      const { run } = await prepareAnswers(asked, answers);
      await run(({ text, end }) => got({ model, text, end }), signal);
    };
    await Promise.all([...new Set(models)].map(one));
  }
}

type Answering = [Parameters<Source["answer"]>[1], Parameters<Source["answer"]>[2]];

const labelOf = ({ id, asked }: JobRow): string => (asked.suffix === "" ? id : `${asked.suffix} ${id.slice(-6)}`);

/** Null of another key's. */
function ownLabel(store: JobStore, tenant: string, name: string): string | null {
  const job = store.known(name);
  return job?.tenant === tenant ? labelOf(job) : null;
}

const freshPace = (): Pace => ({ at: now(), steps: 0, tokens: 0, stepsPerSecond: null, tokensPerSecond: null });

/** What came since the last look counts as soon as something came. */
function paceAfter(pace: Pace, came: { steps: number; tokens: number } | undefined): Pace {
  if (!came) return pace;
  const seconds = Math.max(0.001, (now() - pace.at) / 1000);
  const mean = (before: number | null, value: number) => (before === null ? value : before + NEW_SHARE * (value - before));
  return {
    ...{ at: now(), steps: pace.steps + came.steps, tokens: pace.tokens + came.tokens },
    stepsPerSecond: mean(pace.stepsPerSecond, came.steps / seconds),
    tokensPerSecond: mean(pace.tokensPerSecond, came.tokens / seconds),
  };
}

function readEvent(
  board: Board,
  { job, type, level, message, data, created_at }: EventRow & { readonly job: string },
  pace: Pace | undefined,
  came: Map<string, { steps: number; tokens: number }>,
): void {
  if (type === "message" && level !== "info") board.notice(job, message, level === "error", 1000 * created_at);
  if (type !== "metrics" || data === null) return;
  const { step, total_steps, train_loss, valid_loss, grad_norm, learning_rate, tokens } = data as Record<string, number>;
  board.step(job, [step!, train_loss!, grad_norm ?? null, pace?.tokensPerSecond ?? null]);
  board.set(job, { steps: total_steps!, learningRate: learning_rate ?? null });
  if (valid_loss !== undefined) board.heldOut(job, step!, valid_loss);
  const sum = came.get(job) ?? { steps: 0, tokens: 0 };
  came.set(job, { steps: sum.steps + 1, tokens: sum.tokens + (tokens ?? 0) });
}

function stateOf(board: Board, { id, status, error, fine_tuned_model }: JobRow, pace: Pace) {
  const { step, steps } = board.get(id);
  const isTraining = status === "running";
  const { stepsPerSecond, tokensPerSecond } = pace;
  return {
    ...{ state: STATES[status], note: error?.message ?? fine_tuned_model },
    tokensPerSecond: isTraining ? tokensPerSecond : null,
    secondsLeft: isTraining && stepsPerSecond ? (steps - step) / stepsPerSecond : null,
  };
}
