// The linear layer over a weight in fp8 or nf4-fp8, on GPUs (kernels/triton/fp8.py): the frozen product in e4m3, with both of
// its factors rounded row by row. Of nf4-fp8 the weight's codes are made for each product (nf4_fp8.py).

import { multipliesInFp8 } from "../../base/precision.ts";
import { alignUp } from "../../base/shape.ts";
import type { Launcher } from "../../device/cuda/launcher.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { isPacked, type PackedWeight, partsOf, type Weight } from "../../device/packed.ts";
import type { LinearBackward, LinearForward } from "../linear.ts";
import { dim, flag, strideOf } from "../op.ts";
import { roundedCodes, roundRows } from "../packed.ts";
import { backwardVariant, forwardVariant, productGrid } from "./frozen.ts";
import { boundaries, tablesOf } from "./low-rank.ts";

type Fp8<A> = A & { readonly weight: PackedWeight };

const ALIGN = 256;

/** Whether products over it are of e4m3. */
export const isFp8 = (weight: Weight): weight is PackedWeight => isPacked(weight) && multipliesInFp8(weight.format);

/** Codes of a matrix, as a tensor of bytes. */
const codesAt = (ptr: number, rows: number, columns: number): Tensor => ({ ptr, dtype: "u8", shape: [rows, columns] });

/**
 * Whether rows of SwiGLU, forward and backward, are rounded as they are made, where products over this weight alone read them:
 * they are held in registers.
 */
export const roundsSwiglu = (gpu: Pick<Device, "kind">, weight: Weight, width: number): boolean =>
  gpu.kind !== "cpu" && isFp8(weight) && width <= WIDEST_SWIGLU;
const WIDEST_SWIGLU = 5 * 4096; // CHUNKS BLOCK of kernels/triton/fp8_swiglu.py

export function fp8Forward(gpu: Launcher, args: Fp8<LinearForward>): void {
  const { weight, bias, residual, y, lora } = args;
  const [M, [N, K]] = [dim(y, 0), weight.shape];
  const { codes, scale, ...frozen } = rounded(gpu, weight, false, M, K, (to) => {
    if ("x" in args) roundRows(gpu, args.x, null, to);
    else gpu.launch(swigluVariant(gpu, "fp8_swiglu", K), [M], { gate_up: args.gateUp, ...to, I: K });
  });
  const bounds = boundaries(lora?.firstColumn ?? [0, N]);
  const kernel = forwardVariant(gpu, "fp8_forward", lora, { BIAS: flag(bias), RESIDUAL: flag(residual) }, bounds, N);
  gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, N), {
    ...{ x: codes, x_scale: scale, w: frozen.w, w_scale: frozen.exponents },
    ...{ y, bias, residual, M, N, K, ...bounds },
    ...{ s: lora?.s ?? null, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0, ...tablesOf(lora) },
  });
}

export function fp8Backward(gpu: Launcher, args: Fp8<LinearBackward>): void {
  const { weight, dx, lora } = args;
  const [M, [N, K]] = [dim(dx, 0), weight.shape];
  const columns = weight.ptr + partsOf(weight).scale;
  const { codes, scale, w } = rounded(gpu, weight, true, M, N, (to) => {
    if ("dy" in args) return roundRows(gpu, args.dy, columns, to);
    const of = { dh: args.dh, gate_up: args.gateUp, columns, ...to, I: N / 2 };
    gpu.launch(swigluVariant(gpu, "fp8_swiglu_backward", N / 2), [M], of);
  });
  const kernel = backwardVariant(gpu, "fp8_backward", lora);
  gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, K), {
    ...{ dy: codes, dy_scale: scale, w, dx, M, N, K },
    ...{ ds: lora?.ds ?? null, ...tablesOf(lora) },
    ...{ row_number: lora?.rowNumber ?? null, dropout: lora?.dropout ?? null, module: lora?.module ?? 0 },
  });
}

/** The first variant that holds a row. */
const swigluVariant = (gpu: Launcher, name: "fp8_swiglu" | "fp8_swiglu_backward", width: number) =>
  gpu.variants(name).find((of) => of.constant("CHUNKS") * of.constant("BLOCK") >= width)!;

type Rows = { readonly codes: number; readonly scale: number };

/**
 * Codes and scales of rows in scratch, which `round` fills, and the weight's codes, turned or not, which lie in scratch before
 * them where the weight has none.
 */
function rounded(
  gpu: Launcher,
  weight: PackedWeight,
  isTurned: boolean,
  rows: number,
  width: number,
  round: (to: Rows) => void,
): { readonly codes: Tensor; readonly scale: number; readonly w: Tensor; readonly exponents: number } {
  const [N, K] = weight.shape;
  const parts = partsOf(weight);
  const apart = weight.format === "fp8" ? 0 : alignUp(N * K, ALIGN);
  const bytes = alignUp(rows * width, ALIGN);
  const frozen = gpu.scratch(apart + bytes + 4 * rows);
  const to = { codes: frozen + apart, scale: frozen + apart + bytes };
  round(to);
  if (apart > 0) roundedCodes(gpu, weight, frozen, isTurned);
  const w = apart > 0 ? frozen : weight.ptr + (isTurned ? parts.transposed : parts.codes);
  return {
    ...{ codes: codesAt(to.codes, rows, width), scale: to.scale, exponents: weight.ptr + parts.scale },
    w: isTurned ? codesAt(w, K, N) : codesAt(w, N, K),
  };
}
