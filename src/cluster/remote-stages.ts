// Stages of a run on other machines: the server on which they join, the key that they need, and how they are started.

import { describeAddress } from "../bus/address.ts";
import type { RunKey } from "../bus/seal.ts";
import type { StageDevice } from "../plan/plan.ts";
import { saveKey } from "./keyfile.ts";
import { type LaunchOptions, launchStages, type StageProcesses } from "./launch.ts";

/** How long stages on other machines may take to join. */
const JOIN_MS = 600_000;

/** Stages that join on a server which other machines reach; the first `here` of all `stages` are started on this machine. */
export type RemoteStages = Pick<NonNullable<LaunchOptions["join"]>, "server"> & {
  readonly run: string;
  readonly stages: number;
  readonly here: number;
  readonly key: RunKey;
  /** The key came from the environment; stages on other machines get it the same way. */
  readonly keyGiven: boolean;
};

/**
 * What starts the missing stages: the server's URL, the run's id, and the file with the run's key (null: the key was given).
 */
export type Invitation = {
  readonly missing: number;
  readonly url: string;
  readonly run: string;
  readonly keyFile: string | null;
};

/** Invites the missing stages; null where none is missing. Until it is disposed the key is in a file, unless it was given. */
export function inviteStages(remote: RemoteStages): Disposable & { readonly invitation: Invitation | null } {
  const { server, run, stages, here, key, keyGiven } = remote;
  const missing = stages - here;
  const open = new DisposableStack();
  const dispose = { [Symbol.dispose]: () => open.dispose() };
  if (missing === 0) return { invitation: null, ...dispose };
  const where = "address" in server ? describeAddress(server.address) : `${server.host}:${server.port}`;
  const tls = "address" in server ? server.address.tls : server.certificate;
  const saved = keyGiven ? null : open.use(saveKey(run, key));
  return { invitation: { missing, url: `${tls ? "tls" : "nats"}://${where}`, run, keyFile: saved?.path ?? null }, ...dispose };
}

/** Starts the stages of this machine on the first of `devices`, and waits until all others have joined. */
export function launchRemoteStages(
  { server, run, stages, here, key }: RemoteStages,
  devices: readonly StageDevice[],
  signal: AbortSignal,
): Promise<StageProcesses> {
  const started = devices.slice(0, here).map(({ kind, compute, ordinal }) => ({ kind, compute, ordinal }));
  return launchStages({ stages, here: started, run, join: { server, joinMs: JOIN_MS, key }, signal });
}

/** The devices of stages that have joined, first stage first. */
export const devicesOf = ({ bus }: StageProcesses): StageDevice[] => bus.infos.map(({ report, host }) => ({ ...report, host }));
