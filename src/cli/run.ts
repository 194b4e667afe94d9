// `mlora run RECIPE`: the whole job, from a recipe to adapters on disk.

import { join as joinPath } from "node:path";
import { environment } from "../base/env.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { describeAddress, parseAddress } from "../bus/address.ts";
import { newRunId, runId } from "../bus/subjects.ts";
import { openAppender, writeFileAtomic } from "../files/atomic.ts";
import { claimOutput } from "../files/output.ts";
import type { Plan, StageDevice } from "../plan/plan.ts";
import { formatRecipe } from "../recipe/load.ts";
import type { Overrides, Recipe } from "../recipe/recipe.ts";
import { type Crew, type CrewOptions, gatherCrew } from "../run/crew.ts";
import type { Observer, RunResult } from "../run/events.ts";
import { run as train } from "../run/run.ts";
import { Tracer } from "../run/trace.ts";
import { linkOf, wholeNumber } from "./flags.ts";
import { localDevices, planOn, type Request, readRecipe, readRequest, shortPath } from "./prepare.ts";
import { openProgress } from "./progress.ts";
import { metricsObserver, summary } from "./results.ts";
import { type OpenStages, openCrew, openStages } from "./stages.ts";
import { tracePath, tracing, writeTrace } from "./timeline.ts";

export type RunFlags = Overrides & {
  /** Where a trace goes. */
  readonly trace?: string;
  /** A NATS server that stages on other machines reach; without one the run has its own. */
  readonly nats?: string;
  /** Instead: where the run's own server listens for them, "host:port". */
  readonly listen?: string;
  /** The run's id on that server. */
  readonly run?: string;
  /** With `nats` or `listen`: stages that are started on this machine. */
  readonly here?: number;
  readonly link?: string;
};

/** How long stages on other machines may take to join. */
const JOIN_MS = 600_000;

export async function run(recipePath: string, flags: RunFlags): Promise<void> {
  const trace = flags.trace === undefined ? null : tracePath(`${flags.trace}`);
  const link = linkOf(flags.link);
  const { recipe, spec } = readRecipe(recipePath, flags);
  const others = othersOf(flags, recipe);
  const devices = localDevices(recipe, spec, others?.here); // before the data, which may be long
  const request = readRequest(recipe, spec);
  const here = others ? null : planOn(request, devices);
  const { output } = recipe.run;
  using _claim = claimOutput(output);

  const stop = new AbortController();
  using _signals = onInterrupt(() => {
    say("\nstopping: what was begun is finished and everything is saved; once more to quit at once");
    stop.abort(new RunError("run.stopped", "stopped before any training"));
  });
  await using crew = others && (await gatherCrew({ ...crewOf(others, devices), signal: stop.signal }));
  const plan = here ?? planOn(request, joined(crew!));
  say(`${plan.adapters.length} adapters on ${shortPath(recipe.model.path)}, ${deviceText(plan)}`);
  writeFileAtomic(joinPath(output, "recipe.toml"), formatRecipe(recipe));
  const model = { folder: recipe.model.path };
  await using stages = crew ? await openCrew(crew, plan, model, link) : await openStages(plan, model, link, stop.signal);
  for (const line of stageLines(plan, stages)) say(line);

  const result = await observed(request, plan, stages, stop.signal, trace);
  process.stdout.write(`${summary(result, output).join("\n")}\n`);
  const failed = result.adapters.filter(({ status }) => status === "failed");
  if (failed.length > 0)
    throw new RunError(
      "run.failed",
      `${failed.length} of ${result.adapters.length} adapters failed: ${failed.map(({ name }) => name).join(", ")}`,
    );
  if (result.stopped) throw new RunError("run.stopped", `stopped before the end; what was trained is in ${shortPath(output)}`);
}

/** Trains, with progress drawn, metrics kept and, where `trace` names a file, everything timed. */
async function observed(
  { recipe, data }: Request,
  plan: Plan,
  stages: OpenStages,
  stop: AbortSignal,
  trace: string | null,
): Promise<RunResult> {
  const { output } = recipe.run;
  const { bus } = stages;
  const tracer = trace === null ? null : await Tracer.open(bus);
  const traceFault = (error: unknown) => say(`the trace is not whole: ${textOf(error)}`);
  using metrics = openAppender(joinPath(output, "metrics.jsonl"));
  using progress = openProgress(plan, process.stderr);
  const observers = [progress, metricsObserver(plan, metrics.append)];
  if (tracer) observers.push(tracing(plan, tracer, traceFault));
  const samples = data.map(({ train, eval: held }) => ({ train, eval: held }));
  try {
    const result = await train({ plan, data: samples, bus, output, observer: together(observers), lost: stages.lost, stop });
    if (tracer) {
      await tracer.record({ passes: false, kernels: false });
      writeTrace(trace!, plan, tracer.traces);
    }
    return result;
  } catch (error) {
    throw await stages.causeOf(error);
  }
}

/** Stages that join on a server of yours, some of them started here. */
type Others = Pick<NonNullable<CrewOptions["join"]>, "server" | "run"> & { readonly stages: number; readonly here: number };

function othersOf({ nats, listen, run: id, here }: RunFlags, { run }: Recipe): Others | null {
  if (nats !== undefined && listen !== undefined)
    throw new RequestError(
      "cli.flag",
      "--nats and --listen exclude each other",
      "name a server, or where the run's own listens",
    );
  if (nats === undefined && listen === undefined) {
    const flag = id !== undefined ? "run" : here !== undefined ? "here" : null;
    if (flag !== null)
      throw new RequestError("cli.flag", `--${flag} goes with --nats or --listen`, "give one of them, or leave it out");
    return null;
  }
  if (run.stages === "auto")
    throw new RequestError(
      "cli.flag",
      "it is not said how many stages will join",
      "give --stages N, or run.stages in the recipe",
    );
  const stages = typeof run.stages === "number" ? run.stages : run.stages.length;
  const started = here === undefined ? 0 : wholeNumber("here", here, 0);
  if (started > stages)
    throw new RequestError("cli.flag", `--here is ${started}, of ${stages} stages`, "start no more than there are");
  const server = nats === undefined ? listenOf(`${listen}`) : { address: parseAddress(`${nats}`) };
  return { server, run: id === undefined ? newRunId() : runId(`${id}`), stages, here: started };
}

/** Where our own server listens; its token is the one that others are given in their environment. */
function listenOf(listen: string): { host: string; port: number; token: string } {
  const [, host, port] = /^([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})$/.exec(listen) ?? [];
  const token = environment("MLORA_NATS_TOKEN");
  if (host === undefined || Number(port) > 65535)
    throw new RequestError("cli.flag", `--listen ${listen}: wants host:port`, "as in --listen 10.0.0.1:4222");
  if (token === undefined || token.length < 16)
    throw new RequestError(
      "nats.token",
      `--listen lets other machines in, by a token: MLORA_NATS_TOKEN is ${token === undefined ? "not set" : "shorter than 16 characters"}`,
      "set it to the same long random text here and where stages are started",
    );
  return { host, port: Number(port), token };
}

function crewOf({ server, run, stages, here }: Others, devices: readonly StageDevice[]): Omit<CrewOptions, "signal"> {
  const missing = stages - here;
  const where = "address" in server ? describeAddress(server.address) : `${server.host}:${server.port}`;
  if (missing > 0)
    say(
      `waiting for ${missing} ${missing === 1 ? "stage" : "stages"}: on each machine, start\n` +
        `  mlora stage --nats ${where} --run ${run}`,
    );
  const started = devices.slice(0, here).map(({ kind, compute, ordinal }) => ({ kind, compute, ordinal }));
  return { stages, here: started, join: { server, run, joinMs: JOIN_MS } };
}

const joined = ({ bus }: Crew): StageDevice[] => bus.infos.map(({ report, host }) => ({ ...report, host }));

/** Where each stage is, and how it is linked to the next. */
function stageLines({ stages }: Plan, { links }: OpenStages): string[] {
  if (stages.length === 1) return [];
  return stages.flatMap(({ part, device }, stage) => {
    const where = device.host === "" ? `${device.kind} ${device.ordinal}` : `${device.host}, ${device.kind} ${device.ordinal}`;
    const next = stage + 1 < stages.length ? `; to stage ${stage + 1} by ${links[stage]!.at(-1)}` : "";
    return `  stage ${stage}: layers ${part.from} to ${part.to - 1} on ${where}${next}`;
  });
}

const deviceText = ({ device: { kind, name, compute, note } }: Plan): string =>
  `${kind} (${name}) in ${compute}${note === null ? "" : `; ${note}`}`;

const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};

/** Calls `stop` at the first Ctrl-C or SIGTERM; a second ends the process as if nobody listened. */
function onInterrupt(stop: () => void): Disposable {
  const signals = ["SIGINT", "SIGTERM"] as const;
  const release = () => {
    for (const signal of signals) process.off(signal, handle);
  };
  const handle = () => {
    release();
    stop();
  };
  for (const signal of signals) process.on(signal, handle);
  return { [Symbol.dispose]: release };
}

/** One observer that tells several. */
const together = (observers: readonly Observer[]): Observer => ({
  stepped: (event) => {
    for (const { stepped } of observers) stepped(event);
  },
  evaluated: (event) => {
    for (const { evaluated } of observers) evaluated(event);
  },
  saved: (event) => {
    for (const { saved } of observers) saved(event);
  },
  failed: (adapter, message) => {
    for (const { failed } of observers) failed(adapter, message);
  },
  noticed: (adapter, text) => {
    for (const { noticed } of observers) noticed(adapter, text);
  },
});
