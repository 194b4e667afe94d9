// One attempt at a run: from opened stages to closed ones, with all that is written meanwhile.

import { join } from "node:path";
import { lazyAppender, openAppender } from "../../base/atomic.ts";
import { textOf } from "../../base/errors.ts";
import type { StageSetup } from "../../bus/messages.ts";
import type { StageProcesses } from "../../cluster/launch.ts";
import { type OpenStages, openProcesses, openStages } from "../../cluster/open-stages.ts";
import { COMPLETIONS } from "../../files/record.ts";
import type { Plan } from "../../plan/plan.ts";
import type { RunControl } from "../control/run-control.ts";
import { type AdapterResult, type EventOf, type Listener, noticeEvent, type RunResult } from "../events/events.ts";
import { metricsListener, patient } from "../events/metrics.ts";
import type { Estimate } from "../planning/estimate.ts";
import type { Planner } from "../preparation/replan.ts";
import { completionLines } from "../rollouts/scalars.ts";
import { type CheckpointStore, diskStore } from "../state/checkpoints.ts";
import { checkModel } from "../state/sources.ts";
import { tracing, writeTrace } from "../tracing/chrome-trace.ts";
import type { LiveSpans } from "../tracing/live-spans.ts";
import { Tracer } from "../tracing/trace.ts";
import { trackersOf } from "../trackers/trackers.ts";
import { Training } from "../training/training.ts";
import type { RunAdapters } from "./adapters.ts";
import type { EarlyStart } from "./early-start.ts";
import { reached, recording } from "./recording.ts";
import { type Resumed, rewindTold } from "./resume.ts";

/** What all attempts at a run have in common. */
export type Job = {
  /** The run's id. */
  readonly run: string;
  /** The current plan. */
  plan: Plan;
  /** Stages that were started elsewhere; null where this run opens its own. */
  readonly processes: StageProcesses | null;
  readonly link: StageSetup["link"];
  readonly adapters: RunAdapters;
  readonly planner: Planner;
  /** Answers requests from other processes; null where the run takes none. */
  readonly control: RunControl | null;
  /** The base model's fingerprint. */
  readonly model: string;
  /** How long the run will take, where that is known before it begins, or when all rows are read. */
  estimate: Estimate | null;
  /** Where training began before all rows were read. */
  early: EarlyStart | null;
  /** The file of a trace. */
  readonly trace: string | null;
  readonly keepOpen: boolean;
  /** For those who watch the run. */
  readonly spans: LiveSpans;
  /** This process has other work that stages must not hold up. */
  readonly isBusy: boolean;
  readonly stop: AbortController;
  readonly emit: Listener;
  /** Adapters that have ended in this session: stopped and failed ones are not trained again when stages are opened again. */
  readonly outcomes: Map<string, AdapterResult>;
  /** The last step at which each adapter was saved, or ended, in this session. */
  readonly saved: Map<string, number>;
};

/** Opens stages, trains on them and closes them. Throws what a stage failed with. */
export async function attempt(job: Job, resumed: Resumed | null): Promise<RunResult> {
  const { plan } = job;
  await using stages = await open(job);
  checkModel(plan.recipe.model.path, job.model);
  job.emit(openedEvent(plan, stages, resumed));
  await job.planner.measure(plan, stages.bus);
  using _control = stages.control && job.control && (await job.control.serve(stages.control));
  return await train(job, stages, resumed);
}

function open({ processes, plan, link, stop, control, run, isBusy, early }: Job): Promise<OpenStages> {
  const base = { folder: plan.recipe.model.path };
  if (processes) return openProcesses(processes, plan, base, link);
  const over = early ? AbortSignal.any([stop.signal, early.over]) : stop.signal;
  return openStages(plan, base, link, over, control && run, isBusy && plan.device.kind === "cpu");
}

const openedEvent = (plan: Plan, { links }: OpenStages, resumed: Resumed | null): EventOf<"opened"> => ({
  type: "opened",
  stages: plan.stages.map(({ layerRange: { from, to }, device: { host, kind, ordinal } }, stage) => {
    const link = stage + 1 < plan.stages.length ? links[stage]!.at(-1)! : null;
    return { from, to, host, device: `${kind} ${ordinal}`, link };
  }),
  adapters: plan.adapters.map(({ name, index, steps, tokens }) => {
    return { name, index, steps, tokens, isEnded: resumed?.ended.has(name) ?? false };
  }),
});

/** Trains; writes checkpoints, metrics, results and, where a file is named, a trace. */
async function train(job: Job, stages: OpenStages, resumed: Resumed | null): Promise<RunResult> {
  const { plan, adapters, model, trace, stop, keepOpen, emit, early } = job;
  const { output, checkpoint } = plan.recipe.run;
  const { bus, lost } = stages;
  const notice = (text: string) => emit(noticeEvent(null, text));
  const tracer = trace === null ? null : await Tracer.open(bus);
  await using disk = diskStore(output, checkpoint?.keep ?? 1);
  openAppender(join(output, "metrics.jsonl"))[Symbol.dispose](); // where it cannot be written, that shows before training
  using metrics = lazyAppender(join(output, "metrics.jsonl"));
  const lines = patient(metrics.append, notice);
  using completions = lazyAppender(join(output, COMPLETIONS));
  const answers = patient(completions.append, notice);
  using record = recording(job, output, resumed);
  const listeners: Listener[] = [emit, metricsListener(lines.append), record.listener];
  const tracking = trackersOf(plan, resumed, notice);
  listeners.push(...tracking.map(({ listener }) => listener));
  if (tracer) listeners.push(tracing(plan, tracer, (error) => notice(`the trace is not whole: ${textOf(error)}`)));
  const training = new Training({
    plan,
    data: adapters.request.data.map(({ train, eval: heldOut, sources }) => ({ train, eval: heldOut, sources })),
    bus,
    spans: job.spans.names,
    output,
    emit: (event) => {
      for (const listener of listeners) listener(event);
    },
    recordAnswers: (adapter, rollouts) => {
      for (const line of completionLines(adapter, rollouts)) answers.append(line);
    },
    recordJoin: (adapter) => {
      adapters.joined(adapter);
      if (!resumed?.left.has(adapter.name)) return;
      for (const kept of [lines, answers]) kept.flush();
      for (const file of [metrics, completions]) file.release();
      rewindTold(output, (name) => (name === adapter.name ? 0 : null), notice); // of an earlier one of its name
    },
    lost: early ? AbortSignal.any([early.over, ...(lost ? [lost] : [])]) : lost,
    ...(early ? { whole: early.taken } : {}),
    stop: stop.signal,
    suspend: adapters.renewSuspend(),
    keepOpen,
    store: noting(disk, job.saved, async () => {
      for (const { write } of tracking) write();
      await early?.taken;
    }),
    saveEvery: checkpoint,
    model,
    resumed: resumed?.ended ?? new Map(),
    steps: resumed?.steps ?? new Map(),
  });
  using _attended = adapters.attend(training, plan);
  const own = job.isBusy && tracer === null ? await Tracer.open(bus) : null;
  using _watched = job.spans.attend(bus, { whole: tracer, own });
  try {
    const result = await training.run();
    if (!result.suspended) record.end(result);
    if (tracer) {
      await tracer.record({ passes: false, kernels: false });
      writeTrace(trace!, plan, tracer, job.spans.names);
    }
    return result;
  } catch (error) {
    throw await stages.causeOf(error);
  } finally {
    lines.flush();
    for (const { flush } of tracking) flush();
    answers.flush();
  }
}

/** The store, with a note of the last step at which each adapter was saved; `before` comes before each save. */
const noting = (store: CheckpointStore, saved: Map<string, number>, before: () => Promise<void>): CheckpointStore => ({
  ...store,
  save: async (plan, adapter, what, which) => {
    await before();
    await store.save(plan, adapter, what, which);
    reached(saved, adapter.name, what.progress.step);
  },
});
