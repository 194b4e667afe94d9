// Which device a run gets, and what can be known of it before it is opened.

import type { DeviceChoice, DeviceKind, DeviceReport } from "../base/device-report.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { memory, requireProcessor, usableCores } from "../base/machine.ts";
import { multipliesInFp8, type Precision, withoutBf16Products } from "../base/precision.ts";
import { counted, formatBytes } from "../base/units.ts";
import { asksForOpenBlas } from "./cpu/host.ts";
import { CpuDevice } from "./cpu.ts";
import { gpuMemory, isSupported, listGpus, multipliesFp8, OLDEST } from "./cuda/gpus.ts";
import { CudaDevice } from "./cuda.ts";
import type { Device } from "./device.ts";
import { CPU_ROW_TILE, CUDA_ROW_TILE, OPENBLAS_ROW_TILE } from "./tile.ts";

const NO_DRIVER = "no NVIDIA driver (libcuda.so.1)";

/** What the driver takes while kernels are loaded and run, in addition to what is allocated. */
const DRIVER_BYTES = 256 * 2 ** 20;

/**
 * The device that `wanted` means on this machine, for this precision of the base model: the `ordinal`th of several GPUs, or the
 * CPU whichever. "auto" takes the GPU where there is one that mlora runs on, and says in `note` why not. A RequestError says
 * why what was asked for cannot be had.
 */
export function chooseDevice(wanted: "auto" | DeviceKind, precision: Precision, ordinal = 0): DeviceReport {
  if (wanted === "cpu") return cpuReport(precision, null);
  try {
    return cudaReport(precision, ordinal);
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    const isAbsent = error.code === "ffi.library" && /No such file/.test(error.message);
    const reason = isAbsent ? NO_DRIVER : error.message;
    if (wanted === "auto") return cpuReport(precision, reason);
    throw new RequestError("device.cuda", reason, error.hint ?? 'set device to "cpu" or "auto"', { cause: error });
  }
}

export function openDevice({ kind, compute, ordinal, rowTile, stagesOnHost }: DeviceChoice): Device {
  switch (kind) {
    case "cpu":
      return new CpuDevice(Math.max(1, Math.floor(usableCores() / stagesOnHost)), rowTile);
    case "cuda":
      return new CudaDevice(compute, ordinal);
    default:
      return kind satisfies never;
  }
}

function cpuReport(precision: Precision, note: string | null): DeviceReport {
  if (multipliesInFp8(precision))
    throw new RequestError(
      "device.precision",
      `${precision} needs an Ada or Hopper GPU, or a later one, and this is the cpu device${note === null ? "" : `: ${note}`}`,
      'set precision to "int8" or "nf4", which run everywhere',
    );
  const { model, cores, hasProducts, missingBf16, prefersBf16 } = requireProcessor();
  if (precision === "bf16" && missingBf16.length > 0)
    throw withoutBf16Products("device.precision", `${model} lacks ${missingBf16.join(", ")}`);
  const { totalBytes, availableBytes: freeBytes } = memory();
  const name = `${model}, ${counted(cores, "core")}`;
  const multiplies = hasProducts && !asksForOpenBlas();
  return {
    kind: "cpu",
    name,
    compute: "f32",
    packsTables: multiplies,
    multipliesBf16: missingBf16.length === 0,
    prefersBf16,
    rowTile: multiplies ? CPU_ROW_TILE : OPENBLAS_ROW_TILE,
    threads: usableCores(),
    totalBytes,
    freeBytes,
    ordinal: 0,
    count: 1,
    note,
  };
}

/** A GPU by its place among those that the driver lists: CUDA_VISIBLE_DEVICES decides which these are. */
function cudaReport(precision: Precision, ordinal: number): DeviceReport {
  const compute = precision === "fp32" ? "f32" : "bf16";
  const { gpus } = listGpus();
  const gpu = gpus[ordinal];
  if (!gpu)
    throw new RunError(
      "cuda.ordinal",
      `there is no GPU ${ordinal}: the driver lists ${gpus.length}, numbered from 0`,
      "choose one of those that mlora doctor shows",
    );
  if (!isSupported(gpu))
    throw new RunError(
      "cuda.unsupported",
      `${gpu.name} has compute capability ${gpu.capability}; mlora's kernels run from ${OLDEST}.0 on (Ampere, Ada, Hopper and later)`,
      'set device to "cpu", or use another GPU',
    );
  if (multipliesInFp8(precision) && !multipliesFp8(gpu))
    throw new RequestError(
      "device.precision",
      `${precision} needs compute capability 8.9 or later (Ada, Hopper), whose tensor cores have it; ${gpu.name} has ${gpu.capability}`,
      'set precision to "int8" or "nf4", which run on it',
    );
  const { free, total: totalBytes } = gpuMemory(ordinal);
  const freeBytes = Math.max(0, free - DRIVER_BYTES);
  const count = gpus.filter(({ name }) => name === gpu.name).length;
  const note = free < totalBytes * 0.9 ? `${formatBytes(totalBytes - free)} of its memory are in use` : null;
  return {
    kind: "cuda",
    name: gpu.name,
    compute,
    rowTile: CUDA_ROW_TILE,
    threads: 0,
    totalBytes,
    freeBytes,
    hostFreeBytes: memory().availableBytes,
    ordinal,
    count,
    note,
  };
}
