// Which GPUs this machine has, as its driver says, and which of them our kernels run on. Opens no device.

import { attribute } from "../../../ffi/cuda.ts";
import { environment } from "../../base/env.ts";
import { RunError } from "../../base/errors.ts";
import type { WeightFormat } from "../../base/precision.ts";
import { range } from "../../base/shape.ts";
import { check, OutParam, openQueries, type Queries } from "./driver.ts";
import type { Kind } from "./manifest.ts";

export type Gpu = {
  readonly name: string;
  readonly totalBytes: number;
  /** Compute capability: "9.0". */
  readonly capability: string;
  readonly major: number;
  readonly minor: number;
};

export type Gpus = {
  /** The newest CUDA version that the driver knows: "12.8". */
  readonly cuda: string;
  /** At least one. */
  readonly gpus: readonly Gpu[];
};

/** The oldest GPUs with bf16 products: Ampere. */
export const OLDEST = 8;

/** Whether the kernels run on it at all. */
export const isSupported = ({ major }: Pick<Gpu, "major">): boolean => major >= OLDEST;

/** Whether it runs the kernels that are made for Hopper alone. */
const isHopper = ({ major, minor }: Pick<Gpu, "major" | "minor">): boolean => major === 9 && minor === 0;

/** Whether its tensor cores multiply e4m3: from Ada on. */
export const multipliesFp8 = ({ major, minor }: Pick<Gpu, "major" | "minor">): boolean =>
  major > 8 || (major === 8 && minor >= 9);

/** What follows for a device from a GPU's compute capability and what it computes in. */
export type Traits = {
  /** Hopper's own kernels run on Hopper alone; all other GPUs take those for Ampere. */
  readonly kind: Kind;
  /** As launcher.ts says. */
  readonly formats: readonly WeightFormat[];
};

export function traitsOf(compute: "f32" | "bf16", capability: Pick<Gpu, "major" | "minor">): Traits {
  const isTma = isHopper(capability) && environment("MLORA_KERNELS") !== "ptr";
  const kind = compute === "f32" ? "f32" : isTma ? "tma" : "ptr";
  const hasFp8 = compute === "bf16" && multipliesFp8(capability);
  return { kind, formats: ["dense", "int8", "nf4", "mxfp4", ...(hasFp8 ? (["fp8", "nf4-fp8"] as const) : [])] };
}

/** Throws a RunError: `ffi.library` where there is no driver, `cuda.driver` where it fails or sees no GPU. */
export function listGpus(): Gpus {
  const driver = openQueries();
  const out = new OutParam();
  check(driver, "cuDriverGetVersion", driver.cuDriverGetVersion(out.ptr));
  const version = out.i32;
  check(driver, "cuDeviceGetCount", driver.cuDeviceGetCount(out.ptr));
  const count = out.i32;
  if (count === 0) throw new RunError("cuda.driver", "the NVIDIA driver sees no GPU");
  return {
    cuda: `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`,
    gpus: range(count).map((ordinal) => describe(driver, ordinal)),
  };
}

function describe(driver: Queries, ordinal: number): Gpu {
  const out = new OutParam();
  check(driver, "cuDeviceGet", driver.cuDeviceGet(out.ptr, ordinal));
  const device = out.i32;
  const name = new Uint8Array(new ArrayBuffer(256));
  check(driver, "cuDeviceGetName", driver.cuDeviceGetName(name, name.length, device));
  check(driver, "cuDeviceTotalMem", driver.cuDeviceTotalMem_v2(out.ptr, device));
  const totalBytes = out.number;
  const ask = (which: number) => {
    check(driver, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute(out.ptr, which, device));
    return out.i32;
  };
  const [major, minor] = [ask(attribute.COMPUTE_CAPABILITY_MAJOR), ask(attribute.COMPUTE_CAPABILITY_MINOR)];
  const text = new TextDecoder().decode(name.subarray(0, name.indexOf(0)));
  return { name: text, totalBytes, capability: `${major}.${minor}`, major, minor };
}

/** Free and total bytes of a GPU's memory, as a process that has opened it sees them. */
export function gpuMemory(ordinal: number): { readonly free: number; readonly total: number } {
  const driver = openQueries();
  const out = new OutParam();
  check(driver, "cuDeviceGet", driver.cuDeviceGet(out.ptr, ordinal));
  const device = out.i32;
  check(driver, "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(out.ptr, device));
  try {
    check(driver, "cuCtxSetCurrent", driver.cuCtxSetCurrent(out.number));
    const total = new OutParam();
    check(driver, "cuMemGetInfo", driver.cuMemGetInfo_v2(out.ptr, total.ptr));
    return { free: out.number, total: total.number };
  } finally {
    driver.cuCtxSetCurrent(null);
    driver.cuDevicePrimaryCtxRelease_v2(device);
  }
}
