// Notifies a program or an address of what becomes of a run. No notification changes the run: one that cannot be given is a
// notice.

import { basename } from "node:path";
import * as v from "valibot";
import { webAddress } from "../../base/check.ts";
import { environment } from "../../base/env.ts";
import { RequestError, textOf } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import { count, counted, duration } from "../../base/units.ts";
import { endWithin, programFault, startProgram } from "../../cluster/spawn.ts";
import type { Recipe } from "../../recipe/recipe.ts";
import type { NOTIFIED } from "../../recipe/schema.ts";
import { postJson } from "../../sources/http.ts";
import { isFailure, type Listener, type RunResult } from "./events.ts";

type About = (typeof NOTIFIED)[number] | "below";
type Facts = Readonly<Record<string, unknown>>;

export type Notifier = {
  readonly listener: Listener;
  /** Resolve when all notifications have been given, or could not be. */
  readonly ended: (result: RunResult) => Promise<void>;
  readonly failed: (error: unknown) => Promise<void>;
};

/** For a program. */
const MOST_MS = 20_000;
const DEFAULT: readonly About[] = ["done", "failed"];

/**
 * Null where a recipe has no notifications. Throws a RequestError: `notify.command` where there is no such program, and
 * `notify.url` where the environment has something else than an address.
 */
export function notifierOf({ run: { notify, output } }: Recipe): Notifier | null {
  const given = environment("MLORA_NOTIFY_URL");
  if (given !== undefined && !v.is(webAddress, given))
    throw new RequestError(
      "notify.url",
      "MLORA_NOTIFY_URL is no https URL",
      "give one (http on this machine alone), or unset it",
    );
  const url = given ?? notify?.url;
  if (!notify && url === undefined) return null;
  const { command, on = DEFAULT, below = null } = notify ?? {};
  if (command === undefined && url === undefined)
    throw new RequestError(
      "notify.command",
      "run.notify has neither a command nor a url",
      "give one of them, or MLORA_NOTIFY_URL; or leave notify out",
    );
  const [program] = command ?? [];
  const path = program === undefined ? null : Bun.which(program);
  const fault = program === undefined ? null : programFault(program);
  if (fault !== null)
    throw new RequestError("notify.command", `run.notify.command: ${fault.message}`, `${fault.hint}; or leave it out`);
  const name = basename(output);
  const under = new Set<Promise<void>>();
  const tell = (about: About, text: string, facts: Facts = {}): void => {
    if (about !== "below" && !(on as readonly About[]).includes(about)) return;
    // Slack reads `text`, Discord `content`.
    const body = JSON.stringify({
      event: about,
      text: `mlora ${name}: ${text}`,
      content: `mlora ${name}: ${text}`,
      output,
      ...facts,
    });
    const told = [
      ...(path === null ? [] : [runProgram(path, command!.slice(1), body)]),
      ...(url === undefined ? [] : [postJson(url, body)]),
    ];
    for (const one of told) {
      const quiet = one.catch((error: unknown) => log(0, () => `notice: a notification was not given: ${textOf(error)}`));
      under.add(quiet);
      void quiet.finally(() => under.delete(quiet));
    }
  };
  const all = async (): Promise<void> => {
    while (under.size > 0) await Promise.all(under);
  };
  const passed = new Set<string>();
  return {
    listener: (event) => {
      if (event.type === "ended") {
        const { status, message, steps, after } = event.result;
        const facts = { adapter: event.adapter, status, steps, loss: after?.loss ?? null };
        tell(
          "adapter",
          `${event.adapter} is ${status} after ${counted(steps, "step")}${message === null ? "" : `: ${message}`}`,
          facts,
        );
        if (isFailure(event.result) && !on.includes("adapter")) tell("failed", `${event.adapter} failed: ${message}`, facts);
      }
      if (event.type === "reopening" && event.cause.why === "lost")
        tell("restarted", `the stages are started again: ${event.cause.message}`);
      if (event.type !== "evaluation" || below === null || event.loss === null || event.loss >= below) return;
      if (passed.has(event.adapter)) return;
      passed.add(event.adapter);
      const { adapter, step, loss } = event;
      tell("below", `the held-out loss of ${adapter} is ${loss.toFixed(4)} at step ${count(step)}`, { adapter, step, loss });
    },
    ended: ({ adapters, seconds, tokens, stopped }) => {
      const failed = adapters.filter(isFailure).map((of) => of.name);
      const about = stopped ? "stopped" : failed.length > 0 ? "failed" : "done";
      const what = stopped
        ? "stopped"
        : failed.length > 0
          ? `ended, ${failed.length} of ${counted(adapters.length, "adapter")} failed`
          : "done";
      const results = adapters.map(({ name: adapter, status, steps, after }) => ({
        adapter,
        status,
        steps,
        loss: after?.loss ?? null,
      }));
      tell(about, `${what} after ${duration(seconds)}, ${counted(tokens, "token")}`, { seconds, tokens, adapters: results });
      return all();
    },
    failed: (error) => {
      tell("failed", textOf(error));
      return all();
    },
  };
}

async function runProgram(path: string, args: readonly string[], input: string): Promise<void> {
  await using child = startProgram(path, args, { name: basename(path), input });
  const { fault } = await endWithin(child, MOST_MS);
  if (fault !== null) throw new Error(`${path} ${fault}`);
}
