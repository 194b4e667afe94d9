// A run as an object: opened from a recipe, it trains until its adapters have ended or it is stopped, and takes requests.

import { onAbort } from "../base/abort.ts";
import { now, sleep } from "../base/clock.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { RunStatus } from "../bus/control.ts";
import type { StageSetup } from "../bus/messages.ts";
import { newRunId } from "../bus/subjects.ts";
import type { StageProcesses } from "../cluster/launch.ts";
import { type Announcement, announce } from "../cluster/registry.ts";
import { devicesOf, inviteStages, launchRemoteStages, type RemoteStages } from "../cluster/remote-stages.ts";
import { modelFingerprint } from "../files/fingerprint.ts";
import { claimOutput } from "../files/output.ts";
import { type Plan, type StageDevice, totalBytes, totalMemory } from "../plan/plan.ts";
import { CHECKPOINTS, type Recipe } from "../recipe/recipe.ts";
import type { FoundToken, LatestRows } from "./control/controls.ts";
import type { ForkRequest } from "./control/late-requests.ts";
import { RunControl } from "./control/run-control.ts";
import { tokensBefore } from "./evaluation/next-token.ts";
import { checkMetrics } from "./evaluation/own-metrics.ts";
import { EventStream } from "./events/event-stream.ts";
import { type EventOf, type Listener, noticeEvent, type RunResult, type SessionEvent } from "./events/events.ts";
import { type Notifier, notifierOf } from "./events/notify.ts";
import { type Estimate, keepRunSpeed, knownEstimate } from "./planning/estimate.ts";
import { localDevices, planOn, specFor, withLocalModel } from "./preparation/prepare.ts";
import { Planner } from "./preparation/replan.ts";
import { settingNotices } from "./preparation/setting-notices.ts";
import { checkRewards } from "./rollouts/rewards.ts";
import { type AddOptions, RunAdapters } from "./run/adapters.ts";
import type { Job } from "./run/attempt.ts";
import { beginRequest, type EarlyOptions } from "./run/early-start.ts";
import { withAdded, writeRecipe } from "./run/folder.ts";
import { type RemoteStageOptions, remoteStagesOf } from "./run/remote-stages.ts";
import type { Resumed } from "./run/resume.ts";
import { resumeFrom, trainToEnd } from "./run/retry.ts";
import { type LiveSpan, LiveSpans } from "./tracing/live-spans.ts";
import { MlflowSender } from "./trackers/mlflow-sender.ts";
import { mlflowServer } from "./trackers/mlflow-server.ts";

export type SessionOptions = {
  /** Stages on other machines; left out, or empty, where all are on this one. */
  readonly remoteStages?: RemoteStageOptions;
  /** How activations go between stages. */
  readonly link?: StageSetup["link"];
  /** A file for a trace of the run, in Chrome's trace format. */
  readonly trace?: string | null;
  /** Only continue a run: a RequestError, `resume.none`, where the output folder holds none. */
  readonly resume?: boolean;
  /** When all adapters have ended, wait for more until the session is stopped. */
  readonly keepOpen?: boolean;
  /** This process has other work, as a page to serve: a stage on a CPU then has a process of its own. Default: false. */
  readonly isBusy?: boolean;
  /** `mlora ps` lists the run, and other processes of this user control it. Default: true. */
  readonly isReachable?: boolean;
  /** When training begins before all rows are read. */
  readonly early?: Pick<EarlyOptions, "patienceMs">;
  /** Aborted: the same as `stop`, also while the session is being opened. */
  readonly signal?: AbortSignal;
  /** Called with each event, from the first of the opening on. */
  readonly onEvent?: Listener;
};

/**
 * Reads the data, plans the run, claims its output folder and continues the run in it, if there is one; then the session
 * trains by itself. Throws RequestErrors for what is wrong with the request, and a RunError, `run.stopped`, where `signal` is
 * aborted.
 */
export async function openSession(asked: Recipe, options: SessionOptions = {}): Promise<Session> {
  const { resume = false, isReachable = true, signal, onEvent } = options;
  const remoteStages = remoteStagesOf(options.remoteStages ?? {}, asked);
  const notifier = notifierOf(asked);
  const tracker = asked.run.tracking.includes("mlflow") ? mlflowServer() : null;
  checkMetrics(asked);
  checkRewards(asked);
  const stream = new EventStream([onEvent, notifier?.listener].filter((listener) => listener !== undefined));
  const { emit } = stream;
  const [stop, ended] = [new AbortController(), new AbortController()];
  await using opened = new AsyncDisposableStack();
  opened.defer(() => stream.close());
  opened.defer(() => ended.abort(stopped())); // rows that are still being read
  if (signal) opened.use(onAbort(signal, () => stop.abort(stopped())));
  const notice = (text: string) => emit(noticeEvent(null, text));
  const progress: AddOptions["progress"] = (of) => emit({ type: "reading", ...of });
  const written = await withLocalModel(asked, { signal: stop.signal, progress }, notice);
  const spec = specFor(written);
  const recipe = withAdded(written);
  const devices = () => localDevices(recipe, spec, remoteStages?.here);
  const here = devices(); // before the data, which may take long to read
  const reading = AbortSignal.any([stop.signal, ended.signal]);
  const { request, early } = await beginRequest(
    [recipe, spec],
    { signal: reading, progress },
    { devices: remoteStages ? null : here, output: recipe.run.output, ...options.early },
  );
  if (early) opened.use(early);
  let plan = remoteStages ? null : planOn(request, here);
  const { output } = recipe.run;
  const claim = opened.use(claimOutput(output));
  if (resume && !claim.continued)
    throw new RequestError("resume.none", `${output} holds no run to continue`, "leave --resume out to begin one");
  const processes = remoteStages && (await joined(remoteStages, here, stop.signal, emit, opened));
  plan ??= planOn(request, devicesOf(processes!));
  const model = modelFingerprint(recipe.model.path);
  const run = processes?.run ?? newRunId();
  const known = isReachable ? opened.use(announce({ run, output })) : null;
  const isFixed = processes !== null;
  const adapters = new RunAdapters(request, { stop: stop.signal, isFixed, notice, ...(early ? { whole: early.whole } : {}) });
  const { trace = null, link = "auto", keepOpen = false, isBusy = false } = options;
  const job: Omit<Job, "control"> = {
    ...{ run, plan, adapters, model, trace, link, keepOpen, isBusy, processes, stop, emit },
    spans: new LiveSpans(),
    estimate: processes || claim.continued || early ? null : knownEstimate(plan, request.data),
    early,
    planner: new Planner(devices),
    outcomes: new Map(),
    saved: new Map(),
  };
  const resumed = claim.continued ? resumeFrom(job, keepOpen) : null;
  early?.follow(job);
  const accepted = acceptedEvent(job, resumed);
  emit(accepted);
  claim.begin({ adapters: accepted.adapters, checkpoints: CHECKPOINTS });
  writeRecipe(recipe);
  if (tracker) opened.use(new MlflowSender(output, tracker, notice));
  else if (recipe.run.tracking.includes("mlflow"))
    notice(`MLFLOW_TRACKING_URI is not set: \`mlora sync ${output}\` sends later`);
  return new Session(job, { resumed, stream, known, notifier, opened: opened.move() });
}

/** Invites the missing stages, and waits until all have joined. */
async function joined(
  remoteStages: RemoteStages,
  here: readonly StageDevice[],
  signal: AbortSignal,
  emit: Listener,
  opened: AsyncDisposableStack,
): Promise<StageProcesses> {
  const { invitation } = opened.use(inviteStages(remoteStages));
  if (invitation) emit({ type: "invitation", ...invitation });
  return opened.use(await launchRemoteStages(remoteStages, here, signal));
}

function acceptedEvent({ run, plan, adapters }: Omit<Job, "control">, resumed: Resumed | null): EventOf<"accepted"> {
  const { recipe, device, slots } = plan;
  const names = plan.adapters.map(({ name }) => name);
  const paused = names.filter((name) => adapters.paused.includes(name) && !resumed?.ended.has(name));
  const notices = [...adapters.request.notices, ...settingNotices(plan.adapters)];
  return {
    type: "accepted",
    run,
    model: recipe.model.path,
    device: deviceText(device),
    adapters: names,
    slots,
    notices,
    paused,
  };
}

const deviceText = ({ kind, name, compute, note }: Plan["device"]): string =>
  `${kind} (${name}) in ${compute}${note === null ? "" : `; ${note}`}`;

type Beginning = {
  readonly resumed: Resumed | null;
  readonly stream: EventStream;
  readonly known: Announcement | null;
  readonly notifier: Notifier | null;
  /** What the run holds until its end. */
  readonly opened: AsyncDisposableStack;
};

/** Made by `openSession`. Requests that throw change nothing; `control.starting`: the stages are being opened. */
export class Session implements AsyncDisposable {
  /** The run's id. */
  readonly run: string;
  /**
   * Resolves with the run's result, also of one that was stopped or has failed adapters, when all that it held is closed.
   * Rejects with what a stage failed with, and with a RunError, `run.stopped`, where the session was stopped before any
   * training.
   */
  readonly done: Promise<RunResult>;
  readonly #job: Job;
  readonly #stream: EventStream;
  readonly #started = now();

  constructor(job: Omit<Job, "control">, { resumed, stream, known, notifier, opened }: Beginning) {
    this.run = job.run;
    this.#job = Object.assign(job, { control: known && new RunControl(this, known) });
    this.#stream = stream;
    this.done = this.#train(resumed, opened, notifier);
    this.done.catch(() => undefined); // it may be awaited late, or never
  }

  async #train(resumed: Resumed | null, opened: AsyncDisposableStack, notifier: Notifier | null): Promise<RunResult> {
    await using _opened = opened;
    await sleep(0); // the caller may read events from the first on
    try {
      const result = await trainToEnd(this.#job, resumed);
      keepRunSpeed(this.#job.plan, this.#job.adapters.request.data, result);
      await notifier?.ended(result);
      return result;
    } catch (error) {
      await notifier?.failed(error);
      throw error;
    }
  }

  /** The plan by which the stages are opened; adapters that join are added to it. */
  get plan(): Plan {
    return this.#job.plan;
  }

  /** What was known before the run began. */
  get estimate(): Estimate | null {
    return this.#job.estimate;
  }

  /** All that happens from now on, for each caller; ends with the session. */
  events(): AsyncIterable<SessionEvent> {
    return this.#stream.events();
  }

  status(): RunStatus {
    const { adapters, stop, plan } = this.#job;
    const { statuses, isOpen } = adapters;
    const rates = statuses.flatMap(({ tokensPerSecond }) => tokensPerSecond ?? []);
    const training = statuses.filter(({ state }) => !/^(waiting|paused|done|early|dropped|stopped|failed)$/.test(state)).length;
    // Those before their first step count with the mean of the others: of many, few have a rate at first.
    const expected = rates.length === 0 ? 0 : (sum(rates) * Math.max(training, rates.length)) / rates.length;
    return {
      state: stop.signal.aborted ? "stopping" : !isOpen ? "starting" : training > 0 ? "training" : "waiting",
      stages: plan.stages.length,
      slots: plan.slots,
      memoryBytes: totalBytes(totalMemory(plan)),
      tokensPerSecond: sum(rates),
      seconds: (now() - this.#started) / 1000,
      secondsLeft: expected > 0 ? adapters.tokensLeft / expected : null,
      adapters: statuses,
    };
  }

  /**
   * Ends one adapter after its step under way, or (null) the run; what was trained is saved. This and the following requests
   * return a sentence that says what is done.
   */
  stop(adapter: string | null = null): string {
    if (adapter !== null) return this.#job.adapters.change((controls) => controls.stop(adapter));
    this.#job.stop.abort(stopped());
    return "the run ends: what was begun is finished and everything is saved";
  }

  /** Takes an adapter, or (null) all of them, off the stages until they are resumed. */
  pause(adapter: string | null = null): string {
    return this.#job.adapters.change((controls) => controls.pause(adapter));
  }

  resume(adapter: string | null = null): string {
    return this.#job.adapters.change((controls) => controls.resume(adapter));
  }

  /** Trains a copy of an adapter, next to it and from its next step on, with the changes. */
  fork(request: ForkRequest): string {
    return this.#job.adapters.fork(request);
  }

  /** The rows that an adapter trains on now, as their tokens; null before its first step, and while stages are opened. */
  rows(adapter: string): LatestRows | null {
    return this.#job.adapters.latestRows(adapter);
  }

  /** Adapters that can be asked for a token now, and how many tokens it may follow at most. */
  answering(): { readonly adapters: readonly string[]; readonly most: number } {
    return { adapters: this.#job.adapters.answering, most: tokensBefore(this.plan) };
  }

  /**
   * The likeliest token after these, at most `answering().most`, by an adapter between two of its steps; nothing that is
   * trained depends on it. Throws RequestErrors: `control.prompt` where the adapter is not on the stages.
   */
  nextToken(adapter: string, ids: readonly number[]): Promise<FoundToken> {
    return this.#job.adapters.nextToken(adapter, ids);
  }

  /** What each stage has done in the last seconds; recorded while it is asked for. */
  spans(): Promise<readonly (readonly LiveSpan[])[]> {
    return this.#job.spans.recent();
  }

  /** Adds the adapters of a recipe for the same base model; resolves when they have joined, or stages are opened for them. */
  add(recipe: Recipe, options?: AddOptions): Promise<string> {
    return this.#job.adapters.add(recipe, options);
  }

  /** Stops the run and waits for its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.stop();
    await this.done.catch(() => undefined);
  }
}

const stopped = (): RunError => new RunError("run.stopped", "stopped before any training");
