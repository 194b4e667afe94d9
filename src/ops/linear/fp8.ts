// The linear layer over a weight in fp8, on GPUs (kernels/triton/fp8.py): the frozen product in e4m3, with both of its factors
// rounded row by row.

import { alignUp, sizeOf } from "../../base/shape.ts";
import type { Launcher } from "../../device/cuda/launcher.ts";
import type { Tensor } from "../../device/device.ts";
import { isPacked, type PackedWeight, partsOf, type Weight } from "../../device/packed.ts";
import type { LinearBackward, LinearForward } from "../linear.ts";
import { dim, flag, strideOf } from "../op.ts";
import { roundRows } from "../packed.ts";
import { backwardVariant, forwardVariant, productGrid } from "./frozen.ts";
import { boundaries, tablesOf } from "./low-rank.ts";

type Fp8<A> = Omit<A, "weight"> & { readonly weight: PackedWeight };

const ALIGN = 256;

export const isFp8 = (weight: Weight): weight is PackedWeight => isPacked(weight) && weight.format === "fp8";

/** Codes of a matrix, as a tensor of bytes. */
const codesAt = (ptr: number, rows: number, columns: number): Tensor => ({ ptr, dtype: "u8", shape: [rows, columns] });

export function fp8Forward(gpu: Launcher, { x, weight, bias, residual, y, lora }: Fp8<LinearForward>): void {
  const [M, [N, K]] = [dim(x, 0), weight.shape];
  const parts = partsOf(weight);
  const { codes, scale } = rounded(gpu, x, null);
  const bounds = boundaries(lora?.firstColumn ?? [0, N]);
  const kernel = forwardVariant(gpu, "fp8_forward", lora, { BIAS: flag(bias), RESIDUAL: flag(residual) }, bounds, N);
  gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, N), {
    ...{ x: codes, x_scale: scale, w: codesAt(weight.ptr + parts.codes, N, K), w_scale: weight.ptr + parts.scale },
    ...{ y, bias, residual, M, N, K, ...bounds },
    ...{ s: lora?.s ?? null, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0, ...tablesOf(lora) },
  });
}

export function fp8Backward(gpu: Launcher, { dy, weight, dx, lora }: Fp8<LinearBackward>): void {
  const [M, [N, K]] = [dim(dy, 0), weight.shape];
  const parts = partsOf(weight);
  const { codes, scale } = rounded(gpu, dy, weight.ptr + parts.scale);
  const kernel = backwardVariant(gpu, "fp8_backward", lora);
  gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, K), {
    ...{ dy: codes, dy_scale: scale, w: codesAt(weight.ptr + parts.transposed, K, N), dx, M, N, K },
    ...{ ds: lora?.ds ?? null, ...tablesOf(lora) },
    ...{ row_number: lora?.rowNumber ?? null, dropout: lora?.dropout ?? null, module: lora?.module ?? 0 },
  });
}

/** The rows of x, times `columns` f32 where that is not null, in scratch. */
function rounded(gpu: Launcher, x: Tensor, columns: number | null): { readonly codes: Tensor; readonly scale: number } {
  const [rows, width] = [dim(x, 0), dim(x, 1)];
  const codes = gpu.scratch(alignUp(sizeOf(x.shape), ALIGN) + 4 * rows);
  const scale = codes + alignUp(sizeOf(x.shape), ALIGN);
  roundRows(gpu, x, columns, { codes, scale });
  return { codes: codesAt(codes, rows, width), scale };
}
