// `mlora run RECIPE`: the whole job, from a recipe to adapters on disk.

import { join } from "node:path";
import { RunError } from "../base/errors.ts";
import { openAppender, writeFileAtomic } from "../files/atomic.ts";
import { claimOutput } from "../files/output.ts";
import type { Plan } from "../plan/plan.ts";
import { formatRecipe } from "../recipe/load.ts";
import type { Overrides } from "../recipe/recipe.ts";
import type { AdapterResult, Observer, RunResult } from "../run/events.ts";
import { run as runPlan } from "../run/run.ts";
import { baseModelWeights } from "../stage/base.ts";
import { openLocalStage } from "../stage/local.ts";
import { prepare, shortPath } from "./prepare.ts";
import { openProgress } from "./progress.ts";
import { count, duration, table } from "./table.ts";
import { traceObserver, tracePath } from "./timeline.ts";

/** `trace`: a file for one step's kernels, or null. */
export async function run(recipePath: string, options: Overrides, trace: string | null): Promise<void> {
  if (trace !== null) tracePath(trace);
  const { recipe, plan, data } = await prepare(recipePath, options);
  const { output } = recipe.run;
  using _claim = claimOutput(output);
  say(`${plan.adapters.length} adapters on ${shortPath(recipe.model.path)}, ${deviceText(plan)}`);
  writeFileAtomic(join(output, "recipe.toml"), formatRecipe(recipe));

  const stop = new AbortController();
  using _signals = onInterrupt(() => {
    say("\nstopping: the step under way is finished and everything is saved; once more to quit at once");
    stop.abort();
  });
  let tracing: Observer | null = null;
  await using bus = await openLocalStage(plan, (device) => {
    if (trace !== null) tracing = traceObserver(plan, device, trace);
    return baseModelWeights(recipe.model.path, plan.spec, device);
  });
  using metrics = openAppender(join(output, "metrics.jsonl"));
  using progress = openProgress(plan, process.stderr);
  const observer = together(
    progress,
    metricsObserver(plan, (line) => metrics.append(line)),
    ...(tracing ? [tracing] : []),
  );
  const samples = data.map(({ train, eval: held }) => ({ train, eval: held }));
  const result = await runPlan({ plan, data: samples, bus, output, observer, stop: stop.signal });
  progress[Symbol.dispose]();
  process.stdout.write(`${summary(result, output).join("\n")}\n`);
  const failed = result.adapters.filter(({ status }) => status === "failed");
  if (failed.length > 0)
    throw new RunError(
      "run.failed",
      `${failed.length} of ${result.adapters.length} adapters failed: ${failed.map(({ name }) => name).join(", ")}`,
    );
  if (result.stopped) throw new RunError("run.stopped", `stopped before the end; what was trained is in ${shortPath(output)}`);
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
const together = (...observers: readonly Observer[]): Observer => ({
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
});

/** metrics.jsonl: an object a line, `type` first. */
function metricsObserver(plan: Plan, append: (line: string) => void): Observer {
  const write = (type: string, adapter: number, values: object) =>
    append(JSON.stringify({ type, adapter: plan.adapters[adapter]!.name, ...values }));
  return {
    stepped: ({ adapter, step, epoch, loss, learningRate, gradNorm, tokens, tokensPerSecond }) =>
      write("step", adapter, {
        step,
        epoch,
        loss,
        learning_rate: learningRate,
        grad_norm: gradNorm,
        tokens,
        tokens_per_second: Math.round(tokensPerSecond * 10) / 10,
      }),
    evaluated: ({ adapter, step, loss, exact, rows }) => write("evaluation", adapter, { step, loss, exact, rows }),
    saved: ({ adapter, step, folder }) => write("saved", adapter, { step, folder }),
    failed: (adapter, message) => write("failed", adapter, { message }),
  };
}

/** The table at the end: what each adapter learned, and where it lies. */
function summary({ adapters, seconds, tokens }: RunResult, output: string): string[] {
  const change = (before: string | null, after: string | null) => `${before ?? "-"} -> ${after ?? "-"}`;
  const percent = (of: AdapterResult["before"]) => (of ? `${((100 * of.exact) / of.rows).toFixed(0)} %` : null);
  const held = adapters.some(({ before, after }) => before ?? after);
  const loss = (value: number | null | undefined) => value?.toFixed(4) ?? null;
  const right = { align: "right" } as const;
  const lines = table<AdapterResult>(
    [
      { title: "adapter", of: ({ name }) => name },
      { title: "status", of: ({ status }) => status },
      { title: "steps", of: ({ steps }) => count(steps), ...right },
      held
        ? { title: "held-out loss", of: ({ before, after }) => change(loss(before?.loss), loss(after?.loss)), ...right }
        : { title: "training loss", of: ({ firstLoss, lastLoss }) => change(loss(firstLoss), loss(lastLoss)), ...right },
      ...(held
        ? [{ title: "exact match", of: (a: AdapterResult) => change(percent(a.before), percent(a.after)), ...right }]
        : []),
      { title: "tokens", of: (a) => count(a.tokens), ...right },
      { title: "seconds", of: (a) => a.seconds.toFixed(0), ...right },
      { title: "saved in", of: ({ folder }) => (folder ? shortPath(folder) : "-") },
    ],
    adapters,
  );
  const rate = `${count(tokens)} tokens in ${duration(seconds)}`;
  return ["", ...lines, "", `${rate}; metrics in ${shortPath(join(output, "metrics.jsonl"))}`];
}
