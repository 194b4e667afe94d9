// The only reader of the environment. What shapes a run is in its recipe; these say where and how loudly it happens.

const NAMES = {
  MLORA_DEBUG: "0 quiet, 1 stages and steps, 2 each launch with its time, 3 arguments and plans",
  MLORA_CACHE: "the folder that the embedded libraries are unpacked into",
  MLORA_BLAS_CORE:
    "the processor that OpenBLAS shall compute for (Haswell, SkylakeX, Zen, ...), to reproduce another machine's bits",
  MLORA_REQUIRE: "for tests: what this machine must have (gpu, nats, model, ...), so that its tests may not be skipped",
  MLORA_KERNELS: "for tests: ptr has a Hopper GPU run the kernels of those before it",
  MLORA_NATS_TOKEN:
    "the token for --nats, and of the server that --listen starts; also MLORA_NATS_USER with MLORA_NATS_PASSWORD",
  MLORA_NATS_USER: "the user for --nats",
  MLORA_NATS_PASSWORD: "the user's password for --nats",
  MLORA_NATS_NKEY: "the file that holds the nkey's seed for --nats",
  MLORA_NATS_CA: "the file with the certificates that vouch for the server of --nats, where the system's do not",
  MLORA_NATS_CERT: "the file with our own certificate, where the server of --nats asks for one",
  MLORA_NATS_KEY: "the file with the key of MLORA_NATS_CERT",
  NO_COLOR: "set: drawings in the terminal have no colours (no-color.org); goes before FORCE_COLOR",
  FORCE_COLOR: "set, and not 0: they have, also where the output is no terminal",
  XDG_CACHE_HOME: "the user's folder for caches",
  HOME: "the user's folder",
} as const;

export type Variable = keyof typeof NAMES;

/** A variable's value; one that is unset or empty is undefined. */
export const environment = (name: Variable): string | undefined => process.env[name] || undefined;

/** All of it, for a child that shall have the same. */
export const inheritedEnvironment = (): Record<string, string> =>
  Object.fromEntries(Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined));
