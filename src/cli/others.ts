// Stages of a run that are on other machines: on which server they join, and how many.

import { environment } from "../base/env.ts";
import { RequestError } from "../base/errors.ts";
import { writeStderr } from "../base/terminal.ts";
import { describeAddress, fileOf, isLoopback, parseAddress } from "../bus/address.ts";
import { newRunKey, type RunKey } from "../bus/seal.ts";
import { newRunId, runId } from "../bus/subjects.ts";
import { givenKey, saveKey } from "../cluster/keyfile.ts";
import type { LaunchOptions, StageProcesses } from "../cluster/launch.ts";
import type { StageDevice } from "../plan/plan.ts";
import type { Recipe } from "../recipe/recipe.ts";
import { wholeNumber } from "./flags.ts";

export type RemoteStageFlags = {
  /** A NATS server that stages on other machines reach; without one the run has its own. */
  readonly nats?: string;
  /** Instead: where the run's own server listens for them, "host:port". */
  readonly listen?: string;
  /** The run's id on that server. */
  readonly run?: string;
  /** With `nats` or `listen`: stages that are started on this machine. */
  readonly here?: number;
  /** With `listen`: without a certificate, also where other machines are let in. */
  readonly insecure?: boolean;
};

/** How long stages on other machines may take to join. */
const JOIN_MS = 600_000;

/** Stages that join on a server of yours, some of them started here. */
export type RemoteStages = Pick<NonNullable<LaunchOptions["join"]>, "server"> & {
  readonly run: string;
  readonly stages: number;
  readonly here: number;
  readonly key: RunKey;
  /** The key came with the environment, and stages have it that way. */
  readonly keyGiven: boolean;
};

export function remoteStagesOf(
  { nats, listen, run: id, here, insecure = false }: RemoteStageFlags,
  { run }: Recipe,
): RemoteStages | null {
  if (nats !== undefined && listen !== undefined)
    throw new RequestError(
      "cli.flag",
      "--nats and --listen exclude each other",
      "name a server, or where the run's own listens",
    );
  if (insecure && listen === undefined)
    throw new RequestError("cli.flag", "--insecure goes with --listen", "write tls:// in --nats, or nats://");
  if (nats === undefined && listen === undefined) {
    const flag = id !== undefined ? "run" : here !== undefined ? "here" : null;
    if (flag !== null)
      throw new RequestError("cli.flag", `--${flag} goes with --nats or --listen`, "give one of them, or leave it out");
    return null;
  }
  if (run.stages === "auto")
    throw new RequestError(
      "cli.flag",
      "it is not said how many stages will join",
      "give --stages N, or run.stages in the recipe",
    );
  const stages = typeof run.stages === "number" ? run.stages : run.stages.length;
  const started = here === undefined ? 0 : wholeNumber("here", here, 0);
  if (started > stages)
    throw new RequestError("cli.flag", `--here is ${started}, of ${stages} stages`, "start no more than there are");
  const server = nats === undefined ? listenOf(`${listen}`, insecure) : { address: parseAddress(`${nats}`) };
  const given = givenKey();
  const key = { key: given ?? newRunKey(), keyGiven: given !== null };
  return { server, run: id === undefined ? newRunId() : runId(`${id}`), stages, here: started, ...key };
}

type Listen = Extract<RemoteStages["server"], { readonly port: number }>;

/** Where our own server listens; its token is the one that others are given in their environment. */
function listenOf(listen: string, insecure: boolean): Listen {
  const [, host, port] = /^([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})$/.exec(listen) ?? [];
  const token = environment("MLORA_NATS_TOKEN");
  if (host === undefined || Number(port) > 65535)
    throw new RequestError("cli.flag", `--listen ${listen}: wants host:port`, "as in --listen 10.0.0.1:4222");
  if (token === undefined || token.length < 16)
    throw new RequestError(
      "nats.token",
      `--listen lets other machines in, by a token: MLORA_NATS_TOKEN is ${token === undefined ? "not set" : "shorter than 16 characters"}`,
      "set it to the same long random text here and where stages are started",
    );
  const cert = fileOf("MLORA_NATS_CERT");
  const key = fileOf("MLORA_NATS_KEY");
  if (cert !== undefined && key !== undefined)
    return { host, port: Number(port), token, certificate: { cert, key, ca: fileOf("MLORA_NATS_CA") } };
  if (!isLoopback(host) && !insecure)
    throw new RequestError(
      "nats.certificate",
      `--listen ${listen} lets other machines in, without a certificate: the token would cross the network unencrypted`,
      "set MLORA_NATS_CERT and MLORA_NATS_KEY to files of a certificate (scripts/launch makes one), or give --insecure",
    );
  return { host, port: Number(port), token, certificate: null };
}

/** Says how the missing stages are started. Until it is disposed their key is in a file, unless it was given. */
export function expectRemoteStages({ server, run, stages, here, key, keyGiven }: RemoteStages): Disposable {
  const missing = stages - here;
  const open = new DisposableStack();
  if (missing === 0) return open;
  const where = "address" in server ? describeAddress(server.address) : `${server.host}:${server.port}`;
  const tls = "address" in server ? server.address.tls : server.certificate;
  const saved = keyGiven ? null : open.use(saveKey(run, key));
  const how = saved ? `copy ${saved.path} (its key) there, and start` : "start, with the same MLORA_RUN_KEY,";
  writeStderr(
    `waiting for ${missing} ${missing === 1 ? "stage" : "stages"}: on each machine, ${how}\n` +
      `  mlora stage --nats ${tls ? "tls://" : ""}${where} --run ${run}${saved ? " --key FILE" : ""}\n`,
  );
  return open;
}

export function launchOf(
  { server, run, stages, here, key }: RemoteStages,
  devices: readonly StageDevice[],
): Omit<LaunchOptions, "signal"> {
  const started = devices.slice(0, here).map(({ kind, compute, ordinal }) => ({ kind, compute, ordinal }));
  return { stages, here: started, run, join: { server, joinMs: JOIN_MS, key } };
}

export const joined = ({ bus }: StageProcesses): StageDevice[] => bus.infos.map(({ report, host }) => ({ ...report, host }));
