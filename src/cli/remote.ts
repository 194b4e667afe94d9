// `mlora ps`, `stop`, `pause`, `resume`, `add` and `fork`: requests to runs under way, from another terminal of this machine.

import { resolve } from "node:path";
import { parse } from "smol-toml";
import { RequestError, textOf } from "../base/errors.ts";
import { jsonText, writeStderr, writeStdout } from "../base/terminal.ts";
import { count, counted, duration, formatBytes, shortPath } from "../base/units.ts";
import { loadRecipe } from "../recipe/load.ts";
import { findSession, type RemoteSession, remoteSessions } from "../session/control/remote-session.ts";
import { openLine } from "./reading.ts";
import { right, table } from "./table.ts";

type RunStatus = Awaited<ReturnType<RemoteSession["status"]>>;
type AdapterStatus = RunStatus["adapters"][number];

/** All runs of this user on this machine, with their status. */
export async function ps(json: boolean): Promise<void> {
  const runs = await Promise.all(
    remoteSessions().map(async (session): Promise<Known> => {
      try {
        return { session, status: await session.status(), fault: null };
      } catch (error) {
        return { session, status: null, fault: textOf(error) };
      }
    }),
  );
  const text = json
    ? jsonText(
        runs.map(({ session: { run, pid, output, isOpen }, status, fault }) => {
          return { run, pid, output, fault, ...(status ?? { state: isOpen ? null : "opening", adapters: [] }) };
        }),
        2,
      )
    : runs.length === 0
      ? "no run is under way here"
      : runs.flatMap((run, i) => [...(i > 0 ? [""] : []), ...runLines(run)]).join("\n");
  writeStdout(`${text}\n`);
}

type Known = { readonly session: RemoteSession; readonly status: RunStatus | null; readonly fault: string | null };

function runLines({ session: { run, pid, output }, status, fault }: Known): string[] {
  const head = `${run}  process ${pid}, ${shortPath(output)}`;
  if (!status) return [`${head}: ${fault}`];
  const { state, stages, slots, memoryBytes, tokensPerSecond, seconds, secondsLeft, adapters } = status;
  const facts = [
    `${state} for ${duration(seconds)}`,
    ...(secondsLeft === null ? [] : [`${duration(secondsLeft)} left`]),
    `${count(tokensPerSecond)} tokens/s`,
    counted(stages, "stage"),
    counted(slots, "slot"),
    formatBytes(memoryBytes),
  ];
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

/** One of the requests that concern an adapter or the whole run. */
export async function change(run: string, type: "stop" | "pause" | "resume", adapter?: string): Promise<void> {
  print(await find(run)[type](adapter === undefined ? null : `${adapter}`));
}

/** The recipe is read here, where its relative paths mean something; the run checks it against itself, and reads its data. */
export async function add(run: string, recipe: string): Promise<void> {
  const session = find(run);
  const adapters = loadRecipe(resolve(recipe));
  using line = openLine();
  const answer = await session.add(adapters, (text) => line.show(`reading: ${text}`));
  line[Symbol.dispose]();
  print(answer);
}

export async function fork(run: string, adapter: string, name: string, set: string): Promise<void> {
  print(await find(run).fork({ adapter: `${adapter}`, name: `${name}`, changes: changesIn(set) }));
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

const find = (run: string): RemoteSession =>
  findSession(`${run}`, (session) => `${session.run}  ${shortPath(session.output)}`, {
    notice: (text) => writeStderr(`notice: ${text}\n`),
  });

const print = (line: string): void => writeStdout(`${line}\n`);
