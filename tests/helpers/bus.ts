// A run's bus for tests: a real nats-server, connections to it, stages in this process and in others.

import { join } from "node:path";
import type { DeviceReport } from "../../src/base/device-report.ts";
import type { Address } from "../../src/bus/address.ts";
import type { StageHandlers } from "../../src/bus/bus.ts";
import { type NatsBus, natsBus } from "../../src/bus/coordinator.ts";
import { connectSealed, type RunKey } from "../../src/bus/seal.ts";
import { joinRun, type StageMembership } from "../../src/bus/stage.ts";
import { newRunId } from "../../src/bus/subjects.ts";

export const REPORT: DeviceReport = {
  kind: "cpu",
  name: "a device for tests",
  compute: "f32",
  rowTile: 24,
  threads: 2,
  totalBytes: 2 ** 30,
  freeBytes: 2 ** 29,
  ordinal: 0,
  count: 1,
  note: null,
};

export const JOIN = { joinMs: 15_000 };
/** The key of all runs of these tests, and a connection that has it. */
export const KEY: RunKey = "k".repeat(40);
export const connect = (address: Address, name: string) => connectSealed(address, name, KEY);

/** Handlers of which a test gives those that it uses. */
export const handlers = (some: Partial<StageHandlers>): StageHandlers => {
  const missing = (name: string) => async (): Promise<never> => {
    throw new Error(`the test gave no handler for '${name}'`);
  };
  const names = [
    "open",
    "forward",
    "backward",
    "evaluate",
    "decode",
    "squares",
    "loads",
    "step",
    "admit",
    "read",
    "write",
    "clock",
    "peak",
    "trace",
  ] as const;
  const all = Object.fromEntries(names.map((name) => [name, missing(name)]));
  return { ...(all as unknown as StageHandlers), ...some };
};

export type Company = AsyncDisposable & {
  readonly run: string;
  readonly bus: NatsBus;
  readonly seats: readonly StageMembership[];
};

/** A coordinator and stages, all in this process, each with a connection of its own. */
export async function assemble(
  address: Address,
  stages: readonly StageHandlers[],
  refuse = (_: string) => {},
): Promise<Company> {
  await using open = new AsyncDisposableStack();
  const run = newRunId();
  const coordinator = open.use(await connect(address, "coordinator"));
  const joining = stages.map(async (some, stage) => {
    const connection = open.use(await connect(address, `stage ${stage}`));
    const seat = open.use(await joinRun(connection, run, { stage, report: REPORT, refuse, ...JOIN }));
    seat.serve(some);
    return seat;
  });
  const bus = open.use(await natsBus(coordinator, run, stages.length, { refuse, ...JOIN }));
  const seats = await Promise.all(joining);
  const kept = open.move();
  return { run, bus, seats, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

export type Script = { readonly name: string; readonly input?: unknown };

/** Runs tests/helpers/bus/NAME.ts in a process of its own, in a session of its own; `lines` are those that it writes. */
export function script({ name, input = null }: Script) {
  const path = join(import.meta.dir, "bus", `${name}.ts`);
  const child = Bun.spawn([process.execPath, path], {
    stdin: new TextEncoder().encode(JSON.stringify(input)),
    stdout: "pipe",
    stderr: "inherit",
    detached: true,
    env: { ...process.env, BUN_FEATURE_FLAG_NO_ORPHANS: "1" },
  });
  const lines = linesOf(child.stdout);
  return {
    pid: child.pid,
    exited: child.exited,
    /** The next line; throws when there is not one. */
    line: async (): Promise<string> => {
      const { value, done } = await lines.next();
      if (done) throw new Error(`${name} ended with ${await child.exited} before its next line`);
      return value;
    },
    kill: (signal: NodeJS.Signals) => process.kill(child.pid, signal),
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
}

/** True while a process of this number runs; one that ended and is not waited for does not. */
export async function isAlive(pid: number): Promise<boolean> {
  const status = await Bun.file(`/proc/${pid}/status`)
    .text()
    .catch(() => "");
  return status !== "" && !/^State:\s+[ZX]/m.test(status);
}

/** Resolves to the milliseconds until `condition` held; throws after `limitMs`. */
export async function until(what: string, limitMs: number, condition: () => boolean | Promise<boolean>): Promise<number> {
  const begin = performance.now();
  while (!(await condition())) {
    if (performance.now() - begin > limitMs) throw new Error(`${what}: not within ${limitMs} ms`);
    await Bun.sleep(10);
  }
  return performance.now() - begin;
}
