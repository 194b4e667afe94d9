// The frozen product of a linear layer: on the CPU over all rows at once, on GPUs in tiles together with the low-rank product.
//
// For the CPU's see ffi/native/product.c; where it is OpenBLAS's, which may take its path for small matrices, rows are
// multiplied tile by tile, so that the path does not depend on how many there are.

import { alignUp } from "../../base/shape.ts";
import { floats, type Host } from "../../device/cpu/host.ts";
import type { Launcher } from "../../device/cuda/launcher.ts";
import type { Variant } from "../../device/cuda/variants.ts";
import type { Tensor } from "../../device/device.ts";
import { isPacked, type Weight } from "../../device/packed.ts";
import { cdiv, dim } from "../op.ts";
import { packedProduct, widestPiece } from "../packed.ts";
import { type AdapterArgs, type boundaries, holding, rowsOf, widest } from "./low-rank.ts";

/** OpenBLAS 0.3.34 has another path below 100^3 multiply-adds on AVX-512. */
const SMALL_PRODUCT = 1e6;

/** Columns of the narrowest piece that ffi/native/product.c cuts n columns into. */
function narrowestPiece(host: Host, n: number): number {
  const widest = widestPiece(host.cores);
  const columns = alignUp(Math.ceil(n / (2 * Math.ceil(n / (2 * widest)))), 16);
  return Math.min(n, n % columns || columns);
}

/** y[M, N] = x op(w) + beta y, the same sums for a row whatever M (a multiple of the row tile) is. */
export function frozen(host: Host, x: Tensor, w: Weight, transposed: boolean, y: Tensor, beta: number): void {
  const [m, k, n] = [dim(x, 0), dim(x, 1), dim(y, 1)];
  const step = !host.gemm && host.rowTile * narrowestPiece(host, n) * k <= SMALL_PRODUCT ? host.rowTile : m;
  for (let row = 0; row < m; row += step) {
    const [size, from, to] = [[Math.min(step, m - row), n, k] as const, rowsOf(x, row), rowsOf(y, row)];
    if (isPacked(w)) packedProduct(host, size, from, w, transposed, to, beta);
    else host.product(size, from, false, rowsOf(w), transposed, to, 1, beta);
  }
}

export function addBias(y: Tensor, bias: Tensor, keep: boolean): void {
  const values = floats(bias);
  const out = floats(y);
  const width = values.length;
  for (let m = 0; m < dim(y, 0); m++) {
    if (!keep) out.set(values, m * width);
    else for (let n = 0; n < width; n++) out[m * width + n]! += values[n]!;
  }
}

/** One persistent program for each multiprocessor, or for each tile where there are fewer. */
export const productGrid = (gpu: Launcher, BM: number, BN: number, rows: number, columns: number) =>
  [Math.min(gpu.multiprocessors, cdiv(rows, BM) * cdiv(columns, BN))] as const;

/** WHOLE: each half of a tile of the product belongs to one linear, so that its low-rank product is made once. */
export function forwardVariant(
  gpu: Launcher,
  name: "linear_forward" | "fp8_forward",
  lora: AdapterArgs | null,
  options: Readonly<Record<string, number>>,
  { first1, first2 }: ReturnType<typeof boundaries>,
  columns: number,
): Variant {
  if (!lora) return gpu.kernel(name, { ...options, LORA: 0 });
  const choice = { ...options, LORA: 1 };
  const half = gpu.variants(name, choice)[0]!.constant("BN") / 2;
  const isWhole = [first1, first2].every((first) => first % half === 0 || first === columns);
  return holding(gpu.variants(name, { ...choice, WHOLE: isWhole ? 1 : 0 }), "RB", lora.span.most);
}

/** The variant of a backward product: its block is of the columns of all linears. */
export function backwardVariant(gpu: Launcher, name: "linear_backward" | "fp8_backward", lora: AdapterArgs | null): Variant {
  return lora ? holding(gpu.variants(name, { LORA: 1 }), "RB", widest(lora)) : gpu.kernel(name, { LORA: 0 });
}
