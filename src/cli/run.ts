// `mlora run RECIPE`: the whole job, from a recipe to adapters on disk. The same command continues an interrupted run.

import { RunError } from "../base/errors.ts";
import { writeStderr, writeStdout } from "../base/terminal.ts";
import { shortPath } from "../base/units.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { Overrides } from "../recipe/recipe.ts";
import type { RunResult } from "../session/events.ts";
import type { RemoteStageOptions } from "../session/remote-stages.ts";
import { openSession } from "../session/session.ts";
import { fileOf, LINKS, oneOf, wholeNumber } from "./flags.ts";
import { summary } from "./results.ts";
import { openPrinter } from "./run-lines.ts";
import { onInterrupt } from "./signals.ts";

export type RunFlags = Overrides &
  RemoteStageOptions & {
    /** The file of a trace. */
    readonly trace?: string;
    readonly link?: string;
    /** Only continue a run. */
    readonly resume?: boolean;
    /** When all adapters have ended, wait for more. */
    readonly keepOpen?: boolean;
  };

/** Trains, and prints what happens. Throws what the run failed with; a RunError where it was stopped, or adapters failed. */
export async function run(recipePath: string, flags: RunFlags): Promise<void> {
  const trace = flags.trace === undefined ? null : fileOf("trace", `${flags.trace}`);
  const link = oneOf("link", flags.link ?? "auto", LINKS);
  const recipe = loadRecipe(recipePath, flags);
  const remoteStages = { ...flags, ...(flags.here === undefined ? {} : { here: wholeNumber("here", flags.here, 0) }) };
  const { resume = false, keepOpen = false } = flags;
  const stop = new AbortController();
  using _signals = onInterrupt(() => {
    writeStderr("\nstopping: what was begun is finished and everything is saved; press Ctrl-C again to quit immediately\n");
    stop.abort();
  });
  using printer = openPrinter();
  const options = { trace, link, remoteStages, resume, keepOpen, signal: stop.signal, onEvent: printer.print };
  const session = await openSession(recipe, options);
  const result = await session.done;
  printer[Symbol.dispose]();
  const { output } = recipe.run;
  writeStdout(`${summary(result, session.plan, output, session.estimate).join("\n")}\n`);
  checkResult(result, output);
}

function checkResult({ adapters, stopped }: RunResult, output: string): void {
  const failed = adapters.filter(({ status }) => status === "failed");
  if (failed.length > 0)
    throw new RunError(
      "run.failed",
      `${failed.length} of ${adapters.length} adapters failed: ${failed.map(({ name }) => name).join(", ")}`,
    );
  if (stopped)
    throw new RunError(
      "run.stopped",
      `stopped before the end; what was trained is in ${shortPath(output)}`,
      "the same command continues it",
    );
}
