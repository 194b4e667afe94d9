// The compiled kernels of one device, loaded when they are first launched: a run uses a few dozen of several hundred.

import { cudaTensorMaps, MAX_DYNAMIC_SHARED } from "../../../ffi/cuda.ts";
import { fixedBytes } from "../../../ffi/memory.ts";
import { readAsset } from "../../base/assets.ts";
import { RunError } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";
import { check, type Driver, OutParam, openExtra } from "./driver.ts";
import { type EncodeTensorMap, Kernel } from "./kernel.ts";
import { isCompiled, type KernelEntry, type KernelRow, type Kind } from "./manifest.ts";
import { titleOf, type Variant } from "./variants.ts";

const DEFAULT_SHARED = 48 * 1024;

export class KernelSet implements Disposable {
  readonly #kernels = new Map<Variant, Kernel>();
  readonly #modules: number[] = [];
  readonly #encode: EncodeTensorMap | null;
  readonly #out = new OutParam();

  constructor(
    private readonly driver: Driver,
    kind: Kind,
    private readonly major: number,
  ) {
    const maps = kind === "tma" ? openExtra(cudaTensorMaps) : null;
    this.#encode = maps && ((...args) => maps.cuTensorMapEncodeTiled(...args));
  }

  /** A variant's kernel. Throws a RunError, `cuda.kernels`, where it was not compiled. */
  of(variant: Variant): Kernel {
    const known = this.#kernels.get(variant);
    if (known) return known;
    const entry = compiled(variant.row);
    const kernel = new Kernel(entry, this.driver, () => this.#load(entry), this.#encode);
    this.#kernels.set(variant, kernel);
    return kernel;
  }

  [Symbol.dispose](): void {
    for (const module of this.#modules.splice(0)) this.driver.cuModuleUnload(module);
    this.#kernels.clear();
  }

  /** Machine code where there is some for this GPU, else the PTX, which the driver compiles (and keeps in its own cache). */
  #load(entry: KernelEntry): number {
    const { driver } = this;
    const code = readAsset(`kernels/${entry.cubins[this.major] ?? entry.ptx}`);
    const image = fixedBytes(code.length + 1); // PTX has to end with a zero
    image.set(code);
    check(driver, `loading ${entry.name}`, driver.cuModuleLoadData(this.#out.ptr, image));
    const module = this.#out.number;
    this.#modules.push(module);
    const name = new TextEncoder().encode(`${entry.entry}\0`);
    const symbol = fixedBytes(name.length);
    symbol.set(name);
    check(driver, `finding ${entry.name}`, driver.cuModuleGetFunction(this.#out.ptr, module, symbol));
    const handle = this.#out.number;
    if (entry.shared > DEFAULT_SHARED && driver.cuFuncSetAttribute(handle, MAX_DYNAMIC_SHARED, entry.shared) !== 0)
      throw new RunError(
        "cuda.shared",
        `${titleOf(entry)} takes ${formatBytes(entry.shared)} of shared memory a block, more than this GPU has`,
        'set precision = "bf16", or take a GPU of compute capability 8.0, 9.0 or 10.0',
      );
    return handle;
  }
}

/** The row, compiled. */
export function compiled(row: KernelRow | KernelEntry): KernelEntry {
  if (isCompiled(row)) return row;
  throw new RunError(
    "cuda.kernels",
    `this mlora was built with a part of its GPU kernels, without ${titleOf(row)}`,
    "build all of them: scripts/kernels, then scripts/build",
  );
}
