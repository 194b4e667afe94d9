// `mlora run RECIPE`: the whole job, from a recipe to adapters on disk. The same again on an interrupted run's folder goes on with it.

import { statSync } from "node:fs";
import { join } from "node:path";
import { MloraError, RequestError, RunError, textOf } from "../base/errors.ts";
import { ignoresHangup } from "../base/machine.ts";
import { sum } from "../base/shape.ts";
import { writeStderr, writeStdout } from "../base/terminal.ts";
import { newRunId } from "../bus/subjects.ts";
import { launchStages } from "../cluster/launch.ts";
import { type OpenStages, openProcesses, openStages } from "../cluster/open-stages.ts";
import { announce } from "../cluster/registry.ts";
import { openAppender, writeFileAtomic } from "../files/atomic.ts";
import { modelFingerprint } from "../files/fingerprint.ts";
import { claimOutput } from "../files/output.ts";
import { rewindMetrics, writeRecord } from "../files/record.ts";
import type { Plan } from "../plan/plan.ts";
import { formatRecipe } from "../recipe/load.ts";
import { CHECKPOINTS, type Overrides } from "../recipe/recipe.ts";
import { type CheckpointStore, diskStore } from "../session/checkpoints.ts";
import type { AdapterResult, Observer, RunResult } from "../session/events.ts";
import { localDevices, planOn, readRecipe, readRequest, shortPath } from "../session/prepare.ts";
import { Planner } from "../session/replan.ts";
import { findStored, type Resumed } from "../session/resume.ts";
import { RunControl, withAdded } from "../session/run-control.ts";
import { checkModel } from "../session/sources.ts";
import { Tracer } from "../session/trace.ts";
import { Training } from "../session/training.ts";
import { linkOf } from "./flags.ts";
import { expectRemoteStages, joined, launchOf, type RemoteStageFlags, remoteStagesOf } from "./others.ts";
import { openProgress } from "./progress.ts";
import { readProgress } from "./reading.ts";
import { metricsObserver, patient, summary } from "./results.ts";
import { tracePath, tracing, writeTrace } from "./timeline.ts";

export type RunFlags = Overrides &
  RemoteStageFlags & {
    /** Where a trace goes. */
    readonly trace?: string;
    readonly link?: string;
    /** Only go on with a run that was begun. */
    readonly resume?: boolean;
    /** When all adapters have ended, wait for more. */
    readonly keepOpen?: boolean;
  };

export async function run(recipePath: string, flags: RunFlags): Promise<void> {
  const trace = flags.trace === undefined ? null : tracePath(`${flags.trace}`);
  const link = linkOf(flags.link);
  const { recipe: written, spec } = readRecipe(recipePath, flags);
  const recipe = withAdded(written);
  const remoteStages = remoteStagesOf(flags, recipe);
  const devices = () => localDevices(recipe, spec, remoteStages?.here);
  const here = devices(); // before the data, which may be long
  const planner = new Planner(devices);
  const stop = new AbortController();
  using _signals = onInterrupt(() => {
    print("\nstopping: what was begun is finished and everything is saved; once more to quit at once");
    stop.abort(new RunError("run.stopped", "stopped before any training"));
  });
  using reading = readProgress();
  const request = await readRequest(recipe, spec, { signal: stop.signal, progress: reading.progress });
  reading[Symbol.dispose]();
  let plan = remoteStages ? null : planOn(request, here);
  const { output, restarts } = recipe.run;
  using claim = claimOutput(output);
  if (flags.resume && !claim.continued)
    throw new RequestError("resume.none", `${output} holds no run to go on with`, "leave --resume out to begin one");

  using _expected = remoteStages && expectRemoteStages(remoteStages);
  await using processes = remoteStages && (await launchStages({ ...launchOf(remoteStages, here), signal: stop.signal }));
  plan ??= planOn(request, joined(processes!));
  const model = modelFingerprint(recipe.model.path);
  const id = processes?.run ?? newRunId();
  using known = announce({ run: id, output });
  const control = new RunControl({ request, stop, known, fixed: processes !== null });
  const job: Job = {
    control,
    planner,
    model,
    trace,
    stop: stop.signal,
    keepOpen: flags.keepOpen ?? false,
    outcomes: new Map(),
    kept: new Map(),
  };
  let resumed = claim.continued ? goOn(job, plan, job.keepOpen) : null;
  print(
    `${plan.adapters.length} ${plan.adapters.length === 1 ? "adapter" : "adapters"} on ${shortPath(recipe.model.path)}, ${deviceText(plan)}`,
  );
  if (plan.slots < plan.adapters.length) print(`  ${plan.slots} of them train at once, the others wait for one to end`);
  for (const notice of request.notices) print(`notice: ${notice}`);
  const paused = plan.adapters
    .map(({ name }) => name)
    .filter((name) => control.paused.includes(name) && !resumed?.ended.has(name));
  const [stay, they] = paused.length === 1 ? ["stays", "it"] : ["stay", "them"];
  if (paused.length > 0) print(`notice: ${paused.join(", ")} ${stay} paused, as before: mlora resume ${id} has ${they} go on`);
  claim.begin({ adapters: plan.adapters.map(({ name }) => name), checkpoints: CHECKPOINTS });
  const copy = join(output, "recipe.toml");
  if (!isSameFile(copy, recipePath)) writeFileAtomic(copy, formatRecipe(recipe));

  const base = { folder: recipe.model.path };
  for (let lost = 0; ; ) {
    const now: Plan = plan;
    const before = stepsKept(job);
    const open = () => (processes ? openProcesses(processes, now, base, link) : openStages(now, base, link, stop.signal, id));
    try {
      const result = await attempt(job, now, open, resumed);
      if (!result.suspended) return conclude(result, now, output);
      print("the stages are opened again, with room for the adapters that came");
    } catch (error) {
      if (processes || stop.signal.aborted) throw error;
      if (isRefusal(error)) {
        planner.refused(now);
        print(`notice: ${textOf(error)}; the run is planned again with less`);
      } else {
        if (stepsKept(job) > before) lost = 0; // what it has come to since is not lost again
        if (lost === restarts || !isLoss(error)) throw error;
        print(`notice: ${textOf(error)}; the stages are started again, ${++lost} of at most ${restarts} times`);
      }
    }
    plan = planner.plan(control.request);
    const { rows } = plan.stages[0]!.sizes;
    print(
      `  ${Math.min(plan.slots, plan.adapters.length)} of ${plan.adapters.length} adapters at once, passes of at most ${rows} rows`,
    );
    resumed = goOn(job, plan, true);
  }
}

type Job = {
  /** Knows what the run does by now. */
  readonly control: RunControl;
  readonly planner: Planner;
  readonly model: string;
  readonly trace: string | null;
  readonly stop: AbortSignal;
  readonly keepOpen: boolean;
  /** Adapters that have ended since this command was given: those that were stopped, or failed, stay so when stages are opened again. */
  readonly outcomes: Map<string, AdapterResult>;
  /** The furthest step that each adapter was kept at, or ended at, since this command was given. */
  readonly kept: Map<string, number>;
};

const stepsKept = ({ kept }: Job): number => sum([...kept.values()]);

/** A keeper that notes how far each adapter was kept. */
const noting = (store: CheckpointStore, kept: Map<string, number>): CheckpointStore => ({
  ...store,
  save: async (plan, adapter, what, which) => {
    await store.save(plan, adapter, what, which);
    reached(kept, adapter.name, what.progress.step);
  },
});

const reached = (kept: Map<string, number>, name: string, step: number): void =>
  void kept.set(name, Math.max(kept.get(name) ?? 0, step));

/** Also where one is a link to the other: what is being read is never written over. */
function isSameFile(a: string, b: string): boolean {
  const [one, other] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false, bigint: true }));
  return one !== undefined && other !== undefined && one.dev === other.dev && one.ino === other.ino;
}

/** Takes the run's folder to where its adapters were kept. Throws RequestErrors where it is another run's. */
function goOn({ control: { request }, model, outcomes }: Job, plan: Plan, open = false): Resumed {
  const { output } = request.recipe.run;
  const { ended, steps } = findStored(output, plan, request.data, model, (text) => print(`notice: ${text}`), open);
  const resumed = { ended: new Map([...ended, ...outcomes]), steps };
  try {
    rewindMetrics(output, (name) => (resumed.ended.has(name) ? null : (resumed.steps.get(name) ?? 0)));
  } catch (error) {
    print(`notice: ${textOf(error)}; it may have lines of steps that are made again`);
  }
  const where = plan.adapters.map(({ name, steps }) => {
    const ended = resumed.ended.get(name);
    return ended ? `${name} is ${ended.status}` : `${name} at step ${resumed.steps.get(name) ?? 0} of ${steps}`;
  });
  if (resumed.ended.size + resumed.steps.size > 0) print(`going on with the run in ${shortPath(output)}: ${where.join(", ")}`);
  return resumed;
}

/** A stage or the server is gone; what is wrong with the work itself would go wrong again. */
const isLoss = (error: unknown): boolean =>
  error instanceof MloraError &&
  /^(stage\.ended|bus\.(gone|left)|nats\.(ended|silent|closed)|link\.(lost|closed))$/.test(error.code);

/** A device has not the memory that it had when the run was planned: it will do with a plan that takes less. */
const isRefusal = (error: unknown): boolean => error instanceof MloraError && error.code === "device.memory";

/** From opened stages to closed ones. */
async function attempt(job: Job, plan: Plan, open: () => Promise<OpenStages>, resumed: Resumed | null): Promise<RunResult> {
  await using stages = await open();
  checkModel(plan.recipe.model.path, job.model);
  for (const line of stageLines(plan, stages)) print(line);
  await job.planner.measure(plan, stages.bus);
  using _control = stages.control && (await job.control.open(stages.control));
  return await observed(job, plan, stages, resumed);
}

/** Trains, with progress drawn, metrics and results kept and, where `trace` names a file, everything timed. */
async function observed(job: Job, plan: Plan, stages: OpenStages, resumed: Resumed | null): Promise<RunResult> {
  const { control, model, trace, stop, keepOpen } = job;
  const { output, checkpoint } = plan.recipe.run;
  const { bus, lost } = stages;
  const tracer = trace === null ? null : await Tracer.open(bus);
  await using disk = diskStore(output, checkpoint?.keep ?? 1);
  const store = noting(disk, job.kept);
  using metrics = openAppender(join(output, "metrics.jsonl"));
  const lines = patient(metrics.append, (text) => print(`notice: ${text}`));
  using progress = openProgress(plan, process.stderr, (name) => resumed?.ended.has(name) ?? false);
  const recorded = recording(job, output, resumed);
  const observers: Observer[] = [control.observer, progress, metricsObserver(plan, lines.append), recorded];
  if (tracer) observers.push(tracing(plan, tracer, (error) => print(`the trace is not whole: ${textOf(error)}`)));
  const data = control.request.data.map(({ train, eval: heldOut, sources }) => ({ train, eval: heldOut, sources }));
  const kept = {
    store,
    saveEvery: checkpoint,
    model,
    resumed: resumed?.ended ?? new Map(),
    steps: resumed?.steps ?? new Map(),
  };
  const { suspend } = control.renewed();
  const training = new Training({
    ...{ plan, data, bus, output, observers, lost, stop, suspend, keepOpen },
    ...kept,
  });
  using _desk = control.attend(training, plan);
  try {
    const result = await training.run();
    if (tracer) {
      await tracer.record({ passes: false, kernels: false });
      writeTrace(trace!, plan, tracer.traces);
    }
    return result;
  } catch (error) {
    throw await stages.causeOf(error);
  } finally {
    lines.flush();
  }
}

/** Keeps in the run's folder which adapters have ended. */
function recording({ outcomes, kept }: Job, output: string, resumed: Resumed | null): Observer {
  const all = new Map<string, AdapterResult>(resumed?.ended);
  return {
    ended: (_, result) => {
      outcomes.set(result.name, result);
      if (result.status !== "failed") reached(kept, result.name, result.steps);
      all.set(result.name, result);
      writeRecord(output, all.values());
    },
  };
}

function conclude(result: RunResult, plan: Plan, output: string): void {
  writeStdout(`${summary(result, plan, output).join("\n")}\n`);
  const failed = result.adapters.filter(({ status }) => status === "failed");
  if (failed.length > 0)
    throw new RunError(
      "run.failed",
      `${failed.length} of ${result.adapters.length} adapters failed: ${failed.map(({ name }) => name).join(", ")}`,
    );
  if (result.stopped)
    throw new RunError(
      "run.stopped",
      `stopped before the end; what was trained is in ${shortPath(output)}`,
      "the same command goes on with it",
    );
}

/** Where each stage is, and how it is linked to the next. */
function stageLines({ stages }: Plan, { links }: OpenStages): string[] {
  if (stages.length === 1) return [];
  return stages.flatMap(({ layerRange, device }, stage) => {
    const where = device.host === "" ? `${device.kind} ${device.ordinal}` : `${device.host}, ${device.kind} ${device.ordinal}`;
    const next = stage + 1 < stages.length ? `; to stage ${stage + 1} by ${links[stage]!.at(-1)}` : "";
    return `  stage ${stage}: layers ${layerRange.from} to ${layerRange.to - 1} on ${where}${next}`;
  });
}

const deviceText = ({ device: { kind, name, compute, note } }: Plan): string =>
  `${kind} (${name}) in ${compute}${note === null ? "" : `; ${note}`}`;

const print = (line: string): void => {
  writeStderr(`${line}\n`);
};

/** Signals within this time are one: a terminal or a service manager signals a whole group, whose scripts pass theirs on. */
const SAME_MS = 1_000;

/** Calls `stop` at the first Ctrl-C or SIGTERM, or when the terminal is gone (SIGHUP; not under nohup); a second ends the process as if nobody listened. */
function onInterrupt(stop: () => void): Disposable {
  const signals = ["SIGINT", "SIGTERM", ...(ignoresHangup() ? [] : (["SIGHUP"] as const))] as const;
  const release = () => {
    for (const signal of signals) process.off(signal, handle);
  };
  let released: Timer | null = null;
  const handle = () => {
    if (released) return;
    released = setTimeout(release, SAME_MS).unref();
    stop();
  };
  for (const signal of signals) process.on(signal, handle);
  return { [Symbol.dispose]: release };
}
