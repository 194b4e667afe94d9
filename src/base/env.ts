// The only reader of the environment. What shapes a run is in its recipe; these say where and how loudly it happens.

const NAMES = {
  MLORA_DEBUG: "0 quiet, 1 stages and steps, 2 each launch with its time, 3 arguments and plans",
  MLORA_CACHE: "the folder that the embedded libraries are unpacked into",
  MLORA_BLAS_CORE:
    "the processor that OpenBLAS shall compute for (Haswell, SkylakeX, Zen, ...), to reproduce another machine's bits",
  MLORA_REQUIRE: "for tests: what this machine must have (gpu, nats, model, ...), so that its tests may not be skipped",
  XDG_CACHE_HOME: "the user's folder for caches",
  HOME: "the user's folder",
} as const;

export type Variable = keyof typeof NAMES;

/** A variable's value; one that is unset or empty is undefined. */
export const environment = (name: Variable): string | undefined => process.env[name] || undefined;
