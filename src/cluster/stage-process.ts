// The life of a stage process: it connects to the run's server, joins the run, and serves until the run is over.

import { now, sleep } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import type { Precision } from "../base/precision.ts";
import { type Address, describeAddress } from "../bus/address.ts";
import { connectSealed, type RunKey, type SealedConnection } from "../bus/seal.ts";
import { joinRun } from "../bus/stage.ts";
import { describeDevice } from "../engine/probe.ts";
import { serveStage } from "./serve-stage.ts";

export type StageProcessOptions = {
  readonly address: Address;
  readonly key: RunKey;
  readonly run: string;
  /** Null: one that is free. */
  readonly stage: number | null;
  readonly device: "auto" | "cpu" | "cuda";
  readonly precision: Precision;
  /** Which of several GPUs. */
  readonly ordinal: number;
  /** The base model's folder on this machine; null: the coordinator's path. */
  readonly folder: string | null;
  /** How long the coordinator is looked for. */
  readonly joinMs: number;
  /** Rejects where the process that started this stage ends before it has joined. */
  readonly abandoned: Promise<never>;
  /** Called with lines about joining. */
  readonly print: (line: string) => void;
};

const RETRY_MS = 500;
/** Errors of a server that is not there yet. */
const AWAY = ["nats.refused", "nats.timeout"];

/** Serves until the run is over. Throws a RunError where it does not end in order. */
export async function runStage(options: StageProcessOptions): Promise<void> {
  const { run, stage, device, precision, ordinal, folder, joinMs, abandoned, print } = options;
  const report = describeDevice(device, precision, ordinal);
  await using connection = await Promise.race([connect(options), abandoned]);
  print(`joining the run ${run} at ${connection.server} with ${report.kind} (${report.name})`);
  await using membership = await Promise.race([joinRun(connection, run, { stage, report, joinMs }), abandoned]);
  print(`joined as stage ${membership.stage} of ${membership.stages}`); // scripts/launch waits for this line
  const reason = await serveStage({ run, membership, folder });
  if (reason) throw reason;
}

/** The server may start later than the stage. */
async function connect({ address, key, run, joinMs, print }: StageProcessOptions): Promise<SealedConnection> {
  const limit = now() + joinMs;
  for (let waiting = false; ; waiting = true) {
    try {
      return await connectSealed(address, `mlora ${run} stage`, key);
    } catch (error) {
      if (!(error instanceof RequestError) || !AWAY.includes(error.code) || now() > limit) throw error;
      if (!waiting) print(`waiting for the NATS server at ${describeAddress(address)}`);
      await sleep(RETRY_MS);
    }
  }
}
