// `mlora ps`, `stop`, `pause`, `resume`, `add` and `fork`: what is asked of runs that go on, from another terminal of this machine.

import { resolve } from "node:path";
import { parse } from "smol-toml";
import { now, sleep } from "../base/clock.ts";
import { MloraError, RequestError, RunError, textOf } from "../base/errors.ts";
import { jsonText, writeStderr, writeStdout } from "../base/terminal.ts";
import { count, duration, formatBytes } from "../base/units.ts";
import {
  type AdapterStatus,
  askControl,
  type ControlRequest,
  isStarting,
  newRequestNumber,
  type RunStatus,
} from "../bus/control.ts";
import { connectSealed } from "../bus/seal.ts";
import { knownRuns, type RunEntry } from "../cluster/registry.ts";
import { formatRecipe, loadRecipe } from "../recipe/load.ts";
import { shortPath } from "../session/prepare.ts";
import { openLine } from "./reading.ts";
import { table } from "./table.ts";

/** A run may compute a pass before it answers, and several while others ask it. */
const PATIENCE_MS = { status: 10_000, other: 120_000 };
/** How long a server that is lost is sought while the list of runs still names it: a run notices the end of its server within seconds. */
const AWAY_MS = 15_000;
const LOOK_MS = 100;

/** All runs of this user on this machine, with what each says of itself. */
export async function ps(json: boolean): Promise<void> {
  const runs = await Promise.all(
    knownRuns().map(async (entry) => {
      try {
        return { entry, status: await ask(entry, { type: "status" }), fault: null };
      } catch (error) {
        return { entry, status: null, fault: textOf(error) };
      }
    }),
  );
  const text = json
    ? jsonText(
        runs.map(({ entry: { run, pid, output, reach }, status, fault }) => {
          return { run, pid, output, fault, ...(status ?? { state: reach ? null : "opening", adapters: [] }) };
        }),
        2,
      )
    : runs.length === 0
      ? "no run goes on here"
      : runs.flatMap((run, i) => [...(i > 0 ? [""] : []), ...runLines(run)]).join("\n");
  writeStdout(`${text}\n`);
}

type Known = { readonly entry: RunEntry; readonly status: RunStatus | null; readonly fault: string | null };

function runLines({ entry: { run, pid, output }, status, fault }: Known): string[] {
  const head = `${run}  process ${pid}, ${shortPath(output)}`;
  if (!status) return [`${head}: ${fault}`];
  const { state, stages, slots, memoryBytes, tokensPerSecond, seconds, secondsLeft, adapters } = status;
  const facts = [
    `${state} for ${duration(seconds)}`,
    ...(secondsLeft === null ? [] : [`${duration(secondsLeft)} left`]),
    `${count(tokensPerSecond)} tokens/s`,
    `${stages} ${stages === 1 ? "stage" : "stages"}`,
    `${slots} ${slots === 1 ? "slot" : "slots"}`,
    formatBytes(memoryBytes),
  ];
  const right = { align: "right" } as const;
  const lines = table<AdapterStatus>(
    [
      { title: "adapter", of: ({ name }) => name },
      { title: "state", of: (adapter) => adapter.state },
      { title: "step", of: ({ step, steps }) => `${count(step)}/${count(steps)}`, ...right },
      { title: "loss", of: ({ loss }) => loss?.toFixed(4) ?? "-", ...right },
      {
        title: "tokens/s",
        of: (adapter) => (adapter.tokensPerSecond === null ? "-" : count(adapter.tokensPerSecond)),
        ...right,
      },
      { title: "left", of: (adapter) => (adapter.secondsLeft === null ? "-" : duration(adapter.secondsLeft)), ...right },
      { title: "priority", of: ({ priority }) => `${priority}`, ...right },
    ],
    adapters,
  );
  return [`${head}: ${facts.join(", ")}`, ...lines];
}

/** One of the requests that name an adapter or mean the whole run. */
export async function events(run: string, type: "stop" | "pause" | "resume", adapter?: string): Promise<void> {
  print(await ask(find(run), { type, adapter: adapter === undefined ? null : `${adapter}` }));
}

/** The recipe is read here, where its relative paths mean something; the run checks it against itself, and reads its data. */
export async function add(run: string, recipe: string): Promise<void> {
  const entry = find(run);
  const path = resolve(recipe);
  const text = formatRecipe(loadRecipe(path));
  const put = (request: Extract<ControlRequest, { type: "add" | "outcome" }>) => ask(entry, request);
  using line = openLine();
  let answer = await put({ type: "add", text, path });
  while (typeof answer !== "string") {
    line.show(`reading: ${answer.reading}`);
    answer = await put({ type: "outcome", ticket: answer.ticket });
  }
  line[Symbol.dispose]();
  print(answer);
}

export async function fork(run: string, adapter: string, name: string, set: string): Promise<void> {
  print(await ask(find(run), { type: "fork", adapter: `${adapter}`, name: `${name}`, changes: changesIn(set) }));
}

/** "learning_rate = 1e-4, steps = 500" */
function changesIn(text: string): Record<string, unknown> {
  try {
    return parse(`all = { ${text} }`)["all"] as Record<string, unknown>;
  } catch (error) {
    throw new RequestError(
      "cli.flag",
      `--set ${text}: ${textOf(error).split("\n")[0]}`,
      'write keys as in a recipe: --set "learning_rate = 1e-4, steps = 500"',
    );
  }
}

/** The run that is meant: by its id or the beginning of one, or by its output folder. */
function find(name: string): RunEntry {
  const runs = knownRuns();
  const text = `${name}`;
  const found = runs.filter(({ run, output }) => run === text || output === resolve(text));
  const [only, ...others] = found.length > 0 ? found : runs.filter(({ run }) => run.startsWith(text));
  if (only && others.length === 0) return only;
  const list = runs.map(({ run, output }) => `\n  ${run}  ${shortPath(output)}`).join("");
  if (only) throw new RequestError("control.run", `several runs begin with '${text}':${list}`, "give more of the id");
  const what = runs.length === 0 ? "no run goes on here" : `these runs go on here:${list}`;
  throw new RequestError(
    "control.run",
    `there is no run '${text}'; ${what}`,
    "name a run by its id, as mlora ps lists it, or by its output folder",
  );
}

/**
 * Asks a run, and again under the same number where its server is gone, before or after it was asked: at its new address, once its stages
 * are opened again. Throws `control.lost` where there is none.
 */
async function ask<R extends ControlRequest>(entry: RunEntry, request: R) {
  const patience = request.type === "status" ? PATIENCE_MS.status : PATIENCE_MS.other;
  const number = newRequestNumber();
  const begin = now();
  let lost: MloraError | null = null;
  let away = begin;
  for (let at: RunEntry | undefined = entry; ; at = knownRuns().find(({ run }) => run === entry.run)) {
    if (lost && !at) throw new RunError("control.lost", `${lost.message}, and the run is over`, "look into its folder");
    try {
      if (!at?.reach) throw new RequestError("control.starting", "its stages are being opened", "ask again when they are");
      await using connection = await connectSealed(at.reach.address, "mlora control", at.reach.key);
      return await askControl(connection, entry.run, request, patience, number);
    } catch (error) {
      if (isGone(error)) {
        if (!lost && request.type !== "status")
          writeStderr(`notice: ${error.message}; it is asked again where it answers next\n`);
        lost = error;
      } else if (!lost || !isStarting(error)) throw error;
      if (isStarting(error)) away = now(); // it is on its way back
      if (now() - begin > patience || now() - away > AWAY_MS) throw lost;
    }
    await sleep(LOOK_MS);
  }
}

/** Its server is gone, or another has its port. */
const isGone = (error: unknown): error is MloraError =>
  error instanceof MloraError && (error.code === "control.lost" || error.code.startsWith("nats."));

const print = (line: string): void => {
  writeStdout(`${line}\n`);
};
