// Launches of kernels/triton/packed.py: packed weights are made and taken apart, one linear after the other.

import { bytesOf } from "../../base/dtype.ts";
import { range, sizeOf } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import { isPacked, linearOf, NESTED_BLOCK, NF4_BLOCK, type PackedWeight, partsOf, type Weight } from "../packed.ts";
import { fp8Quantise } from "./fp8.ts";
import { cdiv, dim, type Launcher } from "./launcher.ts";

export const packedFamily = (gpu: Launcher) => ({
  quantise: ({ from, weight, linear, absmax }: Kernels["quantise"]): void => {
    const { codes, scale, rows, ...nf4 } = linearOf(weight, linear);
    if (weight.format === "fp8") {
      fp8Quantise(gpu, from, weight, linear);
      return;
    }
    if (weight.format !== "nf4") {
      gpu.launch(gpu.kernel("int8_quantise"), [dim(from, 0)], { x: from, codes, scale, K: dim(from, 1) });
      return;
    }
    const size = rows * weight.shape[1];
    const { blocks } = nf4;
    const make = gpu.kernel("nf4_quantise");
    gpu.launch(make, [cdiv(size, NF4_BLOCK * make.constant("BLOCKS"))], { x: from, codes, absmax, size });
    gpu.launch(gpu.kernel("nf4_mean"), [1], { absmax, mean: nf4.mean, blocks });
    const nest = { absmax, mean: nf4.mean, nested: nf4.nested, codes: nf4.absmax, blocks };
    gpu.launch(gpu.kernel("nf4_nest"), [cdiv(blocks, NESTED_BLOCK)], nest);
  },
  dequantise: ({ weight, out }: Kernels["dequantise"]): void => expand(gpu, weight, out),
});

/**
 * The weight as the device computes: itself, or taken apart in the scratch, where it is until the next launch that needs
 * scratch.
 */
export function denseOf(gpu: Launcher, weight: Weight): Tensor {
  if (!isPacked(weight)) return weight;
  const out = { ptr: gpu.scratch(sizeOf(weight.shape) * bytesOf(gpu.compute)), dtype: gpu.compute, shape: weight.shape };
  expand(gpu, weight, out);
  return out;
}

function expand(gpu: Launcher, weight: PackedWeight, out: Tensor): void {
  const { format, shape, firstRow, ptr } = weight;
  const [N, K] = shape;
  const parts = partsOf(weight);
  if (format === "int8" || format === "fp8") {
    const kernel = gpu.kernel(`${format}_dequantise`);
    const args = { codes: ptr + parts.codes, scale: ptr + parts.scale, out, K };
    gpu.launch(kernel, [N, cdiv(K, kernel.constant("BLOCK"))], args);
    return;
  }
  if (format !== "nf4") throw new Error(`a weight in ${format} is not taken apart on a GPU`);
  const kernel = gpu.kernel("nf4_dequantise");
  for (const linear of range(firstRow.length - 1)) {
    const { row, rows, codes, absmax, nested, mean } = linearOf(weight, linear);
    const rest = { ...out, ptr: out.ptr + row * K * bytesOf(out.dtype) };
    const args = { codes, absmax, nested, mean, out: rest, size: rows * K };
    gpu.launch(kernel, [cdiv(rows * K, kernel.constant("BLOCK"))], args);
  }
}
