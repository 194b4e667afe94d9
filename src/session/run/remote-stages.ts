// A request for stages on other machines: the server on which they join, and their number.

import { environment } from "../../base/env.ts";
import { RequestError } from "../../base/errors.ts";
import { isLoopback } from "../../base/loopback.ts";
import { counted } from "../../base/units.ts";
import { fileOf, parseAddress } from "../../bus/address.ts";
import { newRunKey } from "../../bus/seal.ts";
import { newRunId, runId } from "../../bus/subjects.ts";
import { givenKey } from "../../cluster/keyfile.ts";
import type { RemoteStages } from "../../cluster/remote-stages.ts";
import type { Recipe } from "../../recipe/recipe.ts";

export type RemoteStageOptions = {
  /** A NATS server that stages on other machines reach; without one the run starts its own. */
  readonly nats?: string;
  /** Instead: the address on which the run's own server listens for them, "host:port". */
  readonly listen?: string;
  /** The run's id on that server. */
  readonly run?: string;
  /** With `nats` or `listen`: number of stages that are started on this machine. */
  readonly here?: number;
  /** With `listen`: other machines connect without TLS. */
  readonly insecure?: boolean;
};

/** The remote stages that are asked for; null: all stages are on this machine. RequestErrors name the flag. */
export function remoteStagesOf(
  { nats, listen, run: id, here, insecure = false }: RemoteStageOptions,
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
    throw new RequestError("cli.flag", "the number of stages is not specified", "give --stages N, or run.stages in the recipe");
  const stages = typeof run.stages === "number" ? run.stages : run.stages.length;
  const started = here ?? 0;
  if (started > stages)
    throw new RequestError("cli.flag", `--here is ${started}, of ${counted(stages, "stage")}`, "start no more than there are");
  const server = nats === undefined ? listenOf(`${listen}`, insecure) : { address: parseAddress(`${nats}`) };
  const given = givenKey();
  const key = { key: given ?? newRunKey(), keyGiven: given !== null };
  return { server, run: id === undefined ? newRunId() : runId(`${id}`), stages, here: started, ...key };
}

type Listen = Extract<RemoteStages["server"], { readonly port: number }>;

/** The address of the run's own server; its token is the one that remote stages get in their environment. */
function listenOf(listen: string, insecure: boolean): Listen {
  const [, host, port] = /^([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})$/.exec(listen) ?? [];
  const token = environment("MLORA_NATS_TOKEN");
  if (host === undefined || Number(port) > 65535)
    throw new RequestError("cli.flag", `--listen ${listen}: expected host:port`, "as in --listen 10.0.0.1:4222");
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
