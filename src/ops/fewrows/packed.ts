// Products over few rows of a weight in fewer bits, which is taken apart where it is read (kernels/triton/fewrows_packed.py).

import type { PackedFormat } from "../../base/precision.ts";
import { range } from "../../base/shape.ts";
import type { Tensor } from "../../device/device.ts";
import { linearOf, type PackedWeight, partsOf } from "../../device/packed.ts";
import { boundaries } from "../linear/low-rank.ts";

/** FORMAT of kernels/triton/unpack.py. */
export const FORMATS: Readonly<Partial<Record<PackedFormat | "dense", number>>> = {
  dense: 0,
  int8: 1,
  nf4: 2,
  fp8: 3,
  mxfp4: 4,
};

/** Where codes and scales of a weight lie, and from one of its linears to the next, as arguments of a kernel. */
export function codesOf(weight: PackedWeight) {
  const { ptr, format, firstRow } = weight;
  const parts = partsOf(weight);
  const first = linearOf(weight, 0);
  const [, second, third] = range(3).map((g) => (g < firstRow.length - 1 ? linearOf(weight, g) : first));
  const isNested = format === "nf4";
  return {
    ...{ w: codesIn(weight), nested: ptr + parts.nested, mean: ptr + parts.mean },
    scales: ptr + (isNested ? parts.absmax : parts.scale),
    ...{ absmax1: second!.absmax - first.absmax, absmax2: third!.absmax - first.absmax },
    ...{ nested1: (second!.nested - first.nested) / 4, nested2: (third!.nested - first.nested) / 4 },
    ...boundaries(firstRow),
  };
}

/** As bytes, of nf4 two codes in each. */
function codesIn(weight: PackedWeight): Tensor {
  const [N, K] = weight.shape;
  const isPair = weight.format === "nf4" || weight.format === "mxfp4";
  return { ptr: weight.ptr + partsOf(weight).codes, dtype: "u8", shape: [N, isPair ? K / 2 : K] };
}
