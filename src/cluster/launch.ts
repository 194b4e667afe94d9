// The stages of a run as processes: started here, or joining from other machines, on the run's own server or a given one. A
// process that ends, hangs or loses its connection fails the bus, with a reason that names it.

import { sleep } from "../base/clock.ts";
import { RunError } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { isLoopback } from "../base/loopback.ts";
import { range } from "../base/shape.ts";
import { type Address, describeAddress } from "../bus/address.ts";
import { type NatsBus, natsBus } from "../bus/coordinator.ts";
import { connectSealed, newRunKey, type RunKey } from "../bus/seal.ts";
import { type ServerOptions, startServer } from "./server.ts";
import { type Child, describeEnding, startSelf } from "./spawn.ts";
import type { StageOrders } from "./stage-orders.ts";

/** How long stages that are started here may take to join: they only load the program. */
const START_MS = 30_000;
/** How long a stage may take to end by itself after a notice that the run is over, and after SIGTERM when the run failed. */
const FAREWELL_MS = 5_000;
const GRACE_MS = 1_000;
/** Until the end of a child is known for certain. */
const NOTICED_MS = 100;

export type LaunchOptions = {
  /** How many stages the run has, and the devices of those that are started here: the first of them. */
  readonly stages: number;
  readonly here: readonly NonNullable<StageOrders["device"]>[];
  /** For stages that join from other machines: a given server, or where the run's own listens. Null: all are started here. */
  readonly join: {
    readonly server: { readonly address: Address } | Required<ServerOptions>;
    readonly joinMs: number;
    /** The key that these stages are given. */
    readonly key: RunKey;
  } | null;
  readonly run: string;
  readonly signal: AbortSignal;
};

export type StageProcesses = AsyncDisposable & { readonly bus: NatsBus; readonly run: string };

/** Starts the server and the stages of this machine, and waits until all have joined. Disposing ends all of them. */
export async function launchStages({ stages, here, join, run, signal }: LaunchOptions): Promise<StageProcesses> {
  await using opened = new AsyncDisposableStack();
  const broken = new AbortController();
  let bus: NatsBus | null = null;
  const fail = (stage: number, error: RunError): void => {
    broken.abort(error);
    bus?.fail(stage, error);
  };
  const given = join && "address" in join.server ? join.server.address : null;
  const listening = join && "port" in join.server ? join.server : {};
  const server = given ? null : opened.use(await startServer(listening));
  void server?.ended.then((how) => {
    const error = new RunError("nats.ended", `nats-server (process ${server.pid}) ${describeEnding(how)}`);
    for (const stage of range(stages)) fail(stage, error);
  });
  const address = given ?? server!.address;
  const key = join?.key ?? newRunKey();
  log(1, () => `run ${run} on the NATS server at ${describeAddress(address)}`);
  try {
    const connection = opened.use(await connectSealed(address, `mlora ${run}`, key));
    if (join && !connection.encrypted) warnOpen("host" in join.server ? join.server : connection);
    const children = here.map((device, stage) => startStage({ address, key, run, stage, device }));
    opened.defer(() => farewell(children, bus !== null && !bus.lost.aborted));
    for (const [stage, child] of children.entries())
      void child.ended.then((how) => {
        fail(stage, new RunError("stage.ended", `${child.name} (process ${child.pid}) ${describeEnding(how)}`));
      });
    const gathering = {
      joinMs: join?.joinMs ?? START_MS,
      reserved: here.length,
      signal: AbortSignal.any([signal, broken.signal]),
    };
    bus = opened.use(await natsBus(connection, run, stages, gathering));
    const kept = opened.move();
    return { bus, run, [Symbol.asyncDispose]: () => kept.disposeAsync() };
  } catch (error) {
    await sleep(NOTICED_MS); // a failed connection to a server that has just died is reported as the death of the server
    throw broken.signal.aborted ? broken.signal.reason : error;
  }
}

/** Logs a notice where other machines reach the server over a network without TLS. */
function warnOpen(at: { readonly host: string; readonly port: number } | { readonly server: string }): void {
  const where = "host" in at ? `${at.host}:${at.port}` : at.server;
  if (isLoopback(where.replace(/:\d+$/, ""))) return;
  const what = "its messages are sealed, its credentials and subjects are not";
  log(0, () => `notice: the connection to ${where} is not encrypted: ${what}`);
}

const startStage = (orders: Required<StageOrders>): Child => {
  const name = `stage ${orders.stage}`;
  const line = (text: string) => log(1, () => `${name}: ${text}`); // what ends it comes over the bus, or with its end
  return startSelf(["stage", "--orders"], { name, input: JSON.stringify(orders), line });
};

/** Waits for stages that were `notified` of the end of the run, and ends the others. */
async function farewell(children: readonly Child[], notified: boolean): Promise<void> {
  const all = Promise.all(children.map(({ ended }) => ended));
  if (notified) await Promise.race([all, sleep(FAREWELL_MS)]);
  await Promise.all(children.map((child) => child.stop(GRACE_MS)));
}
