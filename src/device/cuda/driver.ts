// The CUDA driver, opened, and its results as errors. Knows calls; not kernels, tensors or streams.

import { cuda, cudaQueries, result } from "../../../ffi/cuda.ts";
import { addressOf, textAt } from "../../../ffi/memory.ts";
import { type Functions, openSystemLibrary, type SymbolTable } from "../../../ffi/open.ts";
import { RunError } from "../../base/errors.ts";

const LIBRARY = "libcuda.so.1";

export type Queries = Functions<typeof cudaQueries>;
export type Driver = Functions<typeof cuda>;

/** Opens the driver for questions. Throws a RunError: `ffi.library` where there is no driver, `cuda.driver` where it fails. */
export function openQueries(): Queries {
  const driver = openSystemLibrary(LIBRARY, cudaQueries);
  check(driver, "cuInit", driver.cuInit(0));
  return driver;
}

/** Opens the driver for work. */
export function openDriver(): Driver {
  const driver = openSystemLibrary(LIBRARY, cuda);
  check(driver, "cuInit", driver.cuInit(0));
  return driver;
}

/** More of the driver's functions: those that not every driver has. */
export const openExtra = <const S extends SymbolTable>(symbols: S): Functions<S> => openSystemLibrary(LIBRARY, symbols);

/** What the machine's state explains, and what to do. */
const HINTS: Readonly<Record<number, string>> = {
  [result.NO_DEVICE]: "the driver sees no GPU; a container has to be given one",
  209: "this GPU is not one that mlora's kernels were compiled for; see mlora doctor",
  214: "the GPU's memory is faulty: use another GPU",
  803: "restart the machine: the driver was updated and the old one still runs",
  804: "update the driver",
  999: "the kernel module may be missing or broken: see what nvidia-smi and dmesg say",
};

/** Kernels that read or wrote where they must not, or never ended: our bug, whatever the user asked for. */
const FAULTS: ReadonlySet<number> = new Set([1, 700, 702, 714, 715, 716, 717, 718, 719]);

/** Throws what a CUresult says: a RunError `cuda.driver`, or a plain error where the fault is ours. */
export function check(driver: Pick<Queries, "cuGetErrorName">, call: string, status: number): void {
  if (status === result.SUCCESS) return;
  const message = `${call} failed with ${nameOf(driver, status)}`;
  if (FAULTS.has(status)) throw new Error(message);
  throw new RunError("cuda.driver", message, HINTS[status]);
}

function nameOf(driver: Pick<Queries, "cuGetErrorName">, status: number): string {
  const out = new BigUint64Array(new ArrayBuffer(8));
  return driver.cuGetErrorName(status, out) === 0 && out[0] !== 0n ? textAt(Number(out[0])) : `CUresult ${status}`;
}

/** Where the driver writes one answer: kept between calls, because a call is made for each launch. */
export class OutParam {
  readonly #words = new BigUint64Array(new ArrayBuffer(8));
  readonly #ints = new Int32Array(this.#words.buffer);
  readonly #floats = new Float32Array(this.#words.buffer);
  readonly ptr = addressOf(this.#words);

  /** A handle, an address or a size. */
  get number(): number {
    return Number(this.#words[0]);
  }
  get i32(): number {
    return this.#ints[0]!;
  }
  get f32(): number {
    return this.#floats[0]!;
  }
}
