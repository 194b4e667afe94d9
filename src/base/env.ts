// The only reader of the environment. What shapes a run is in its recipe; these say where and how loudly it happens.

import { existsSync, statSync } from "node:fs";
import { isAbsolute, join } from "node:path";

/** What each variable does. */
export const VARIABLES = {
  MLORA_DEBUG: "0 quiet, 1 stages, memory and servers, 2 also each request to a stage with its time",
  MLORA_CACHE: "the folder that the embedded libraries are unpacked into",
  MLORA_BLAS_CORE:
    "has OpenBLAS compute all products, for the processor named (Haswell, SkylakeX, Zen, ...), to reproduce another machine's bits",
  MLORA_REQUIRE: "for tests: what this machine must have (gpu, nats, model, ...), so that its tests may not be skipped",
  MLORA_KERNELS: "for tests: ptr has a Hopper GPU run the kernels of those before it, apart its kernels one after the other",
  MLORA_RUN_KEY: "with --nats or --listen: the key of the run, of 32 characters or more; a new one for each run",
  MLORA_NATS_TOKEN:
    "the token for --nats, and of the server that --listen starts; also MLORA_NATS_USER with MLORA_NATS_PASSWORD",
  MLORA_NATS_USER: "the user for --nats",
  MLORA_NATS_PASSWORD: "the user's password for --nats",
  MLORA_NATS_NKEY: "the file that holds the nkey's seed for --nats",
  MLORA_NATS_CA: "the file with the certificates that vouch for the server of --nats, where the system's do not",
  MLORA_NATS_CERT:
    "the file with our own certificate: of the server that --listen starts, or where that of --nats asks for one",
  MLORA_NATS_KEY: "the file with the key of MLORA_NATS_CERT",
  MLORA_SERVER_KEY: "the key for --server, without --key-file",
  MLORA_NOTIFY_URL: "where notifications go, in place of notify.url of a recipe, which is copied into the run's folder",
  WANDB_PROJECT: "the project of the runs that tracking writes for W&B (else mlora)",
  WANDB_ENTITY: "the user or team that they belong to (else the default of the account)",
  MLFLOW_TRACKING_URI: "the server that tracking sends to, http or https",
  MLFLOW_TRACKING_TOKEN: "the token for it",
  MLFLOW_TRACKING_USERNAME: "the user for it, with MLFLOW_TRACKING_PASSWORD",
  MLFLOW_TRACKING_PASSWORD: "the user's password",
  MLFLOW_EXPERIMENT_NAME: "the experiment of the runs (else mlora), which is made where there is none",
  MLFLOW_EXPERIMENT_ID: "the experiment's id, in place of its name",
  NO_COLOR: "set: drawings in the terminal have no colours (no-color.org); goes before FORCE_COLOR",
  FORCE_COLOR: "set, and not 0: they have, also where the output is no terminal",
  HF_ENDPOINT: "the Hugging Face hub, or one that speaks its API",
  HF_HOME: "the folder of huggingface_hub's cache and token",
  HF_HUB_CACHE: "the folder of its cache alone",
  HF_TOKEN: "the token for the hub",
  HF_TOKEN_PATH: "the file that holds it, where HF_TOKEN is not set",
  HF_HUB_DISABLE_IMPLICIT_TOKEN: "set to 1: no token is sent",
  HF_HUB_OFFLINE: "set to 1: nothing is fetched, only the cache is used",
  TRANSFORMERS_OFFLINE: "the same, under its older name",
  XDG_CACHE_HOME: "the user's folder for caches",
  HOME: "the user's folder",
} as const;

export type Variable = keyof typeof VARIABLES;

/** A variable's value; one that is unset or empty is undefined. */
export const environment = (name: Variable): string | undefined => process.env[name] || undefined;

/**
 * What a child has of it: all but what would have its runtime or its loader run other code. Of LD_LIBRARY_PATH it keeps the
 * folders that hold the driver's or NCCL's library, which only root and this user can write to: in containers these are found
 * by nothing else.
 */
export function inheritedEnvironment(variables: Readonly<NodeJS.ProcessEnv> = process.env): Record<string, string> {
  const kept = Object.entries(variables).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && !CODE.test(entry[0]),
  );
  const folders = (variables["LD_LIBRARY_PATH"] ?? "").split(":").filter(holdsDriver).join(":");
  return { ...Object.fromEntries(kept), ...(folders === "" ? {} : { LD_LIBRARY_PATH: folders }) };
}

/**
 * Of Bun, of the loader, of the C library, of OpenSSL. BUN_FEATURE_FLAG_NO_ORPHANS is set anew for each child
 * (cluster/spawn.ts).
 */
const CODE = /^(BUN_|NODE_|LD_|GCONV_PATH$|GLIBC_TUNABLES$|MALLOC_|OPENSSL_(CONF|MODULES|ENGINES)$)/;
const DRIVERS = ["libcuda.so.1", "libnccl.so.2"];

function holdsDriver(folder: string): boolean {
  if (!isAbsolute(folder)) return false;
  try {
    const { uid, mode } = statSync(folder);
    const own = (uid === 0 || uid === process.getuid?.()) && (mode & 0o022) === 0;
    return own && DRIVERS.some((name) => existsSync(join(folder, name)));
  } catch {
    return false;
  }
}
