// A GPU that launches nothing: it goes through the same choices of kernels as a real one, and notes them. What a run
// would need compiled is found with it on a machine without a GPU.

import { bytesOf } from "../src/base/dtype.ts";
import { invariant } from "../src/base/errors.ts";
import { sizeOf } from "../src/base/shape.ts";
import { type Gpu, traitsOf } from "../src/device/cuda/gpus.ts";
import type { Argument, Grid } from "../src/device/cuda/kernel.ts";
import type { Launcher } from "../src/device/cuda/launcher.ts";
import type { KernelRow } from "../src/device/cuda/manifest.ts";
import { type Choice, Variant, VariantSet } from "../src/device/cuda/variants.ts";
import type { Tensor } from "../src/device/device.ts";
import type { Kernel } from "../src/device/kernel.ts";
import { NullDevice } from "../src/device/null.ts";
import { CUDA_ROW_TILE } from "../src/device/tile.ts";

type Arguments = Readonly<Record<string, Argument>>;

export class DryGpu extends NullDevice implements Launcher {
  readonly multiprocessors = 1;
  override readonly formats: NullDevice["formats"];
  readonly #variants: VariantSet;
  #reserved = 0;

  /** `note` is given each row that is launched, then with grid and arguments, or that another batch may launch. */
  constructor(
    compute: "f32" | "bf16",
    capability: Pick<Gpu, "major" | "minor">,
    rows: readonly KernelRow[],
    private readonly note: (row: KernelRow, grid?: Grid, args?: Arguments) => void,
  ) {
    const { kind, formats } = traitsOf(compute, capability);
    const variants = new VariantSet(rows, kind);
    super(compute, CUDA_ROW_TILE);
    this.formats = formats;
    this.#variants = variants;
  }

  override launch<A extends object>(kernel: Kernel<A>, args: A): void;
  override launch(variant: Variant, grid: Grid, args: Arguments): void;
  override launch(kernel: Kernel<object> | Variant, given: object, args?: Arguments): void {
    if (kernel instanceof Variant) this.note(kernel.row, given as Grid, args);
    else kernel.cuda(given, this);
  }

  concurrently(work: () => void, other: () => void): void {
    other();
    work();
  }

  kernel(name: string, choice?: Choice): Variant {
    const variant = this.#variants.one(name, choice);
    this.note(variant.row);
    return variant;
  }

  variants(name: string, choice?: Choice): readonly Variant[] {
    return this.#variants.all(name, choice);
  }

  override reserveScratch(bytes: number): void {
    super.reserveScratch(bytes);
    this.#reserved = Math.max(this.#reserved, bytes);
  }

  scratch(bytes: number): number {
    invariant(bytes <= this.#reserved, `a kernel needs ${bytes} bytes of scratch, ${this.#reserved} were planned`);
    return 0;
  }

  /** Ones: losses, norms of gradients and cosines of them are finite, so that no adapter ends early. */
  override read({ shape, dtype }: Tensor): Promise<Uint8Array<ArrayBuffer>> {
    const size = sizeOf(shape);
    if (dtype === "f32") return Promise.resolve(new Uint8Array(new Float32Array(size).fill(1).buffer));
    if (dtype === "i32") return Promise.resolve(new Uint8Array(new Int32Array(size).fill(1).buffer));
    return Promise.resolve(new Uint8Array(size * bytesOf(dtype)));
  }
}
