// Metrics that a program of the recipe computes: it is given the adapter's folder, as PEFT writes it, and prints a JSON object.

import { rmSync } from "node:fs";
import { basename } from "node:path";
import * as v from "valibot";
import { onAbort } from "../../base/abort.ts";
import { RequestError, RunError } from "../../base/errors.ts";
import { newTemporaryFolder } from "../../base/temporary.ts";
import { endWithin, programFault, startProgram } from "../../cluster/spawn.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import type { Evaluation } from "./evaluate.ts";

type OwnMetrics = NonNullable<AdapterRecipe["metrics"]>;
export type MetricsInput = { readonly adapter: string; readonly step: number; readonly model: string };

/** For a program, where the recipe says nothing. */
const SECONDS = 600;

const printed = v.pipe(
  v.string(),
  v.trim(),
  v.parseJson(),
  v.record(v.pipe(v.string(), v.regex(/^[\w./-]{1,64}$/)), v.pipe(v.number(), v.finite())),
);

/** Whether an adapter's best state is kept next to its latest one. */
export const keepsBest = ({ patience, metrics }: Pick<AdapterRecipe, "patience" | "metrics">): boolean =>
  patience !== null || metrics?.best !== undefined;

/** What states of an adapter are compared by, lower is better: the loss, or a metric of its own; null where that is missing. */
export function scoreOf({ metrics }: Pick<AdapterRecipe, "metrics">, { loss, metrics: found }: Evaluation): number | null {
  if (metrics?.best === undefined) return loss;
  const value = found?.[metrics.best];
  return value === undefined ? null : metrics.goal === "min" ? value : -value;
}

/** Throws a RequestError, `metrics.command`, where a program is not there. */
export function checkMetrics({ adapters }: Recipe): void {
  for (const { name, metrics } of adapters) {
    const fault = metrics ? programFault(metrics.command[0]!) : null;
    if (fault !== null)
      throw new RequestError(
        "metrics.command",
        `adapter '${name}': metrics.command: ${fault.message}`,
        `${fault.hint}; or leave metrics out`,
      );
  }
}

/** A folder of its own; disposing removes it. */
export function temporaryFolder(): Disposable & { readonly path: string } {
  const path = newTemporaryFolder("metrics");
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/**
 * Runs the program with the folder as its last argument, and what is asked as JSON on its standard input. Throws a RunError,
 * `metrics.command`, where it fails, takes too long or prints something else than numbers by name, or lacks the best one.
 */
export async function runMetrics(
  { command: [program, ...args], best, seconds = SECONDS }: OwnMetrics,
  folder: string,
  input: MetricsInput,
  stop: AbortSignal,
): Promise<Readonly<Record<string, number>>> {
  const wrong = (what: string) => new RunError("metrics.command", `${program} ${what}`);
  const path = Bun.which(program!);
  if (path === null) throw wrong("is not there any more");
  await using child = startProgram(path, [...args, folder], {
    name: basename(path),
    input: JSON.stringify(input),
    keepsOutput: true,
  });
  using _stopped = onAbort(stop, () => child.kill());
  const { fault, stdout } = await endWithin(child, 1000 * seconds);
  if (fault !== null) throw wrong(fault);
  const parsed = v.safeParse(printed, stdout);
  if (!parsed.success) throw wrong(`printed ${JSON.stringify(stdout.slice(0, 100))}, expected a JSON object of numbers`);
  if (best !== undefined && parsed.output[best] === undefined)
    throw wrong(`printed no ${best}: ${Object.keys(parsed.output).join(", ")}`);
  return parsed.output;
}
