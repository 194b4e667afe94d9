// `mlora run RECIPE`: the whole job, from a recipe to adapters on disk. The same command continues an interrupted run.

import { basename } from "node:path";
import { RunError } from "../base/errors.ts";
import { writeStderr, writeStdout } from "../base/terminal.ts";
import { counted, shortPath } from "../base/units.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { Overrides, Recipe } from "../recipe/recipe.ts";
import type { RunPageFlags } from "../serve/run-page.ts";
import { isFailure, type RunResult, type SessionEvent } from "../session/events/events.ts";
import type { RemoteStageOptions } from "../session/run/remote-stages.ts";
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
    /** Where the live page is: host:port, a port, or true. */
    readonly web?: RunPageFlags["web"];
    readonly webCertificate?: string;
    readonly webCertificateKey?: string;
  };

/** Trains, and prints what happens. Throws what the run failed with; a RunError where it was stopped, or adapters failed. */
export async function run(recipePath: string, flags: RunFlags): Promise<void> {
  const trace = flags.trace === undefined ? null : fileOf("trace", `${flags.trace}`);
  const link = oneOf("link", flags.link ?? "auto", LINKS);
  const recipe = loadRecipe(recipePath, flags);
  const { web, insecure, ...others } = flags;
  const pageFlags = web === undefined ? null : { ...flags, web };
  const forStages = insecure && (pageFlags === null || flags.listen !== undefined);
  const remoteStages = {
    ...others,
    ...(forStages ? { insecure } : {}),
    ...(flags.here === undefined ? {} : { here: wholeNumber("here", flags.here, 0) }),
  };
  const { resume = false, keepOpen = false } = flags;
  const stop = new AbortController();
  using _signals = onInterrupt(() => {
    writeStderr("\nstopping: what was begun is finished and everything is saved; press Ctrl-C again to quit immediately\n");
    stop.abort();
  });
  using printer = openPrinter();
  await using page = pageFlags && (await openPage(recipe, pageFlags));
  const onEvent = (event: SessionEvent) => {
    page?.source.take(event);
    printer.print(event);
  };
  const isBusy = page !== null;
  const options = { trace, link, remoteStages, resume, keepOpen, isBusy, signal: stop.signal, onEvent };
  const session = await openSession(recipe, options);
  page?.source.attach(session);
  const result = await session.done;
  printer[Symbol.dispose]();
  const { output } = recipe.run;
  writeStdout(`${summary(result, session.plan, output, session.estimate).join("\n")}\n`);
  checkResult(result, output);
}

/** The live page, whose links are printed; loaded here, as few runs have one. */
async function openPage(recipe: Recipe, flags: RunPageFlags) {
  const [{ openRunPage, pagePlace }, { runSource }] = await Promise.all([
    import("../serve/run-page.ts"),
    import("../web/run-source.ts"),
  ]);
  const place = pagePlace(flags);
  const { output } = recipe.run;
  const source = runSource(basename(output), output);
  const page = openRunPage(source, place);
  writeStderr(`live page: ${page.url}\n  to look only: ${page.viewUrl}\n`);
  return { source, [Symbol.asyncDispose]: () => page[Symbol.asyncDispose]() };
}

function checkResult({ adapters, stopped }: RunResult, output: string): void {
  const failed = adapters.filter(isFailure);
  if (failed.length > 0)
    throw new RunError(
      "run.failed",
      `${failed.length} of ${counted(adapters.length, "adapter")} failed: ${failed.map(({ name }) => name).join(", ")}`,
      failed.some(({ status }) => status === "stopped")
        ? "fix what the notices name, and give the same command again: it continues what has stopped"
        : "fix what the lines above name: the same command tries again what has failed, a changed recipe needs another output",
    );
  if (stopped)
    throw new RunError(
      "run.stopped",
      `stopped before the end; what was trained is in ${shortPath(output)}`,
      "the same command continues it",
    );
}
