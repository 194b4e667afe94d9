// A kernel of the contract: what one call of `ops/` computes, as each device does it.

import type { Host } from "./cpu/host.ts";
import type { Launcher } from "./cuda/launcher.ts";

/** Both get arguments whose types and shapes have been checked. */
export type Kernel<A extends object> = {
  readonly name: string;
  /** Computes it at once, over OpenBLAS and the C of ffi/native. */
  readonly cpu: (args: A, host: Host) => void;
  /** Enqueues launches of compiled kernels. */
  readonly cuda: (args: A, gpu: Launcher) => void;
};
