// Which GPUs this machine has, as its driver says. Opens no device and takes none of its memory.

import { attribute, cudaQueries } from "../../../ffi/cuda.ts";
import { type Functions, openSystemLibrary } from "../../../ffi/open.ts";
import { RunError } from "../../base/errors.ts";
import { range } from "../../base/shape.ts";

type Driver = Functions<typeof cudaQueries>;

export type Gpu = {
  readonly name: string;
  readonly totalBytes: number;
  /** Compute capability: "9.0". */
  readonly capability: string;
};

export type Gpus = {
  /** The newest CUDA version that the driver knows: "12.8". */
  readonly cuda: string;
  /** At least one. */
  readonly gpus: readonly Gpu[];
};

/** Throws a RunError: `ffi.library` where there is no driver, `cuda.driver` where it fails or sees no GPU. */
export function listGpus(): Gpus {
  const driver = openSystemLibrary("libcuda.so.1", cudaQueries);
  check("cuInit", driver.cuInit(0));
  const version = ask("cuDriverGetVersion", (out) => driver.cuDriverGetVersion(out));
  const count = ask("cuDeviceGetCount", (out) => driver.cuDeviceGetCount(out));
  if (count === 0) throw new RunError("cuda.driver", "the NVIDIA driver sees no GPU");
  return {
    cuda: `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`,
    gpus: range(count).map((ordinal) => describe(driver, ordinal)),
  };
}

function describe(driver: Driver, ordinal: number): Gpu {
  const device = ask("cuDeviceGet", (out) => driver.cuDeviceGet(out, ordinal));
  const name = new Uint8Array(new ArrayBuffer(256));
  check("cuDeviceGetName", driver.cuDeviceGetName(name, name.length, device));
  const bytes = new BigUint64Array(new ArrayBuffer(8));
  check("cuDeviceTotalMem", driver.cuDeviceTotalMem_v2(bytes, device));
  const capability = [attribute.COMPUTE_CAPABILITY_MAJOR, attribute.COMPUTE_CAPABILITY_MINOR].map((which) =>
    ask("cuDeviceGetAttribute", (out) => driver.cuDeviceGetAttribute(out, which, device)),
  );
  const text = new TextDecoder().decode(name.subarray(0, name.indexOf(0)));
  return { name: text, totalBytes: Number(bytes[0]), capability: capability.join(".") };
}

/** A call that writes one int. */
function ask(call: string, into: (out: Int32Array) => number): number {
  const out = new Int32Array(new ArrayBuffer(4));
  check(call, into(out));
  return out[0]!;
}

/** The CUresults that a machine gives before anything is asked of a GPU, and what to do. */
const RESULTS: Readonly<Record<number, readonly [string, string]>> = {
  100: ["CUDA_ERROR_NO_DEVICE", "the driver sees no GPU; a container has to be given one"],
  803: ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine: the driver was updated and the old one still runs"],
  804: ["CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "update the driver"],
  999: ["CUDA_ERROR_UNKNOWN", "the kernel module may be missing or broken: see what nvidia-smi and dmesg say"],
};

function check(call: string, status: number): void {
  if (status === 0) return;
  const [name, hint] = RESULTS[status] ?? [`CUresult ${status}`];
  throw new RunError("cuda.driver", `${call} failed with ${name}`, hint);
}
