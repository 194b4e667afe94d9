// Frozen weights to fewer bits, and back to what the device computes in. What lies where in them: device/packed.ts.

import { fixedBytes } from "../../ffi/memory.ts";
import { F, I, L, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { PackedFormat } from "../base/precision.ts";
import { range, sizeOf } from "../base/shape.ts";
import type { Host, Matrix } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import {
  type ExpertWeight,
  isPacked,
  linearOf,
  NESTED_BLOCK,
  NF4_BLOCK,
  type PackedWeight,
  partsOf,
  type Weight,
} from "../device/packed.ts";
import { roundedBytes } from "../device/scratch.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  product_packed: { args: [P, I, I, I, I, P, I, P, F, P, I, P], returns: "void" },
  product_bf16: { args: [I, I, I, I, P, I, P, F, P, I, P], returns: "void" },
  packed_quantise: { args: [P, I, P, P], returns: "void" },
  packed_expand: { args: [P, L, L, L, L, P, L], returns: "void" },
  packed_dequantise: { args: [P, P], returns: "void" },
});

/**
 * Quantises linear `linear` of a packed weight from its rows c[n, K]; absmax f32[B], B >= n K / 64, is scratch. What to:
 * device/packed.ts.
 */
export const quantise = op<{ from: Tensor; weight: PackedWeight; linear: number; absmax: Tensor }>(
  "quantise",
  { from: "c M K", weight: "w N K", absmax: "f32 B" },
  {
    cpu: ({ from, weight, linear, absmax }) => c.packed_quantise(seenByC(weight), linear, from.ptr, absmax.ptr),
    cuda: ({ from, weight, linear, absmax }, gpu) => {
      const { codes, scale, rows, ...nf4 } = linearOf(weight, linear);
      if (weight.format === "fp8") {
        fp8Quantise(gpu, from, weight, linear);
        return;
      }
      if (weight.format !== "nf4") {
        invariant(weight.format === "int8", `weights are not made ${weight.format} on a GPU`);
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
  },
);

/** All of a packed weight as c[N, K], for callers that need its values. */
export const dequantise = op<{ weight: PackedWeight; out: Tensor }>(
  "dequantise",
  { weight: "w N K", out: "c N K" },
  {
    cpu: ({ weight, out }) => c.packed_dequantise(seenByC(weight), out.ptr),
    cuda: ({ weight, out }, gpu) => expand(gpu, weight, out),
  },
);

// On the CPU: how C sees a packed weight (ffi/native/packed.h).

const FORMATS: Readonly<Partial<Record<PackedFormat, number>>> = { bf16: 1, "bf16-products": 1, int8: 2, nf4: 3, mxfp4: 4 };
const MOST_LINEARS = 3;
const FIELDS = 3 + MOST_LINEARS * 7;

/** C's view of each weight, made once. */
const seen = new WeakMap<PackedWeight, BigInt64Array>();

function seenByC(weight: PackedWeight): BigInt64Array {
  const known = seen.get(weight);
  if (known) return known;
  const { format, shape, firstRow } = weight;
  const count = firstRow.length - 1;
  const linears = range(count).flatMap((g) => {
    const { row, rows, codes, scale, absmax, nested, mean } = linearOf(weight, g);
    return [row, row + rows, codes, scale, absmax, nested, mean];
  });
  const fields = new BigInt64Array(fixedBytes(8 * FIELDS).buffer, 0, FIELDS);
  fields.set([FORMATS[format]!, shape[1], count, ...linears].map(BigInt));
  seen.set(weight, fields);
  return fields;
}

/** Columns of a product that a piece has at most: ffi/native/product.c has the same. */
export const widestPiece = (cores: number): number => (cores <= 2 ? 288 : 192);

/** Bytes of scratch that a product of m rows over a packed weight takes, `k` deep; products of our own take a panel apart. */
export const packedRoom = (host: Host, format: PackedFormat, m: number, k: number): number =>
  format === "bf16-products" ? roundedBytes(m, k) : host.gemm ? 0 : host.threads * widestPiece(host.cores) * k * 4;

/** y[m, n] = a op(w) + beta y, as Host.product over the weight in f32 would; bf16-products round a to bf16, and sum in f32. */
export function packedProduct(
  host: Host,
  [m, n, k]: readonly [number, number, number],
  a: Matrix,
  weight: PackedWeight,
  transposed: boolean,
  y: Matrix,
  beta: number,
): void {
  const room = host.scratch(packedRoom(host, weight.format, m, k));
  const [w, t] = [seenByC(weight), transposed ? 1 : 0];
  if (weight.format === "bf16-products") c.product_bf16(t, m, n, k, a.ptr, a.ld, w, beta, y.ptr, y.ld, room);
  else c.product_packed(host.sgemmPtr, t, m, n, k, a.ptr, a.ld, w, beta, y.ptr, y.ld, room);
}

/** Some rows of a packed weight as f32, in scratch; their address. */
export function expandRows(host: Host, weight: PackedWeight, row: number, rows: number): number {
  const room = host.scratch(rows * weight.shape[1] * 4);
  c.packed_expand(seenByC(weight), row, rows, 0, weight.shape[1], room, weight.shape[1]);
  return room;
}

// On GPUs.

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

/** Experts from `first` on as c[experts N, K]: as many as `out` has rows for. */
export const expandExperts = (gpu: Launcher, { first: weight, stride }: ExpertWeight, first: number, out: Tensor): void =>
  expand(gpu, { ...(weight as PackedWeight), ptr: weight.ptr + first * stride }, out, stride);

/** A weight, or, `step` bytes apart, as many as `out` has rows for. */
function expand(gpu: Launcher, weight: PackedWeight, out: Tensor, step = 0): void {
  const { format, shape, firstRow, ptr } = weight;
  const [N, K] = shape;
  const parts = partsOf(weight);
  const weights = dim(out, 0) / N;
  const steps = { step, out_step: N * K };
  if (format === "int8" || format === "fp8") {
    const isWhole = format === "fp8" && !weight.isSingle;
    const kernel = gpu.kernel(isWhole ? "fp8_dequantise" : format === "fp8" ? "fp8_expand" : "int8_dequantise");
    const args = { codes: ptr + parts.codes, scale: ptr + parts.scale, out, K, ...steps };
    gpu.launch(kernel, [N, cdiv(K, kernel.constant("BLOCK")), weights], args);
    return;
  }
  if (format === "mxfp4") {
    const kernel = gpu.kernel("mxfp4_expand");
    const args = { codes: ptr + parts.codes, scale: ptr + parts.scale, out, size: N * K, ...steps };
    gpu.launch(kernel, [cdiv(N * K, kernel.constant("BLOCK")), 1, weights], args);
    return;
  }
  if (format !== "nf4") throw new Error(`a weight in ${format} is not taken apart on a GPU`);
  const kernel = gpu.kernel("nf4_dequantise");
  for (const linear of range(firstRow.length - 1)) {
    const { row, rows, codes, absmax, nested, mean } = linearOf(weight, linear);
    const rest = { ...out, ptr: out.ptr + row * K * bytesOf(out.dtype) };
    const args = { codes, absmax, nested, mean, out: rest, size: rows * K, ...steps };
    gpu.launch(kernel, [cdiv(rows * K, kernel.constant("BLOCK")), 1, weights], args);
  }
}

/** The rows of x, times `columns` f32 where that is not null, to codes in e4m3 and a scale each. */
export function roundRows(
  gpu: Launcher,
  x: Tensor,
  columns: number | null,
  to: { readonly codes: number; readonly scale: number },
): void {
  const [rows, K] = [dim(x, 0), dim(x, 1)];
  const variants = gpu.variants("fp8_quantise", { COLUMNS: columns === null ? 0 : 1 });
  const holding = variants.find((variant) => variant.constant("CHUNKS") * variant.constant("BLOCK") >= K);
  gpu.launch(holding ?? variants.at(-1)!, [rows], { x, columns, ...to, K });
}

/** Codes and scales of a linear's rows, and, once all of the group's are there, the turned copy. */
function fp8Quantise(gpu: Launcher, from: Tensor, weight: PackedWeight, linear: number): void {
  const { codes, scale } = linearOf(weight, linear);
  roundRows(gpu, from, null, { codes, scale });
  if (weight.isSingle || linear < weight.firstRow.length - 2) return;
  const [N, K] = weight.shape;
  const parts = partsOf(weight);
  const turn = gpu.kernel("turn");
  const BLOCK = turn.constant("BLOCK");
  const args = { codes: weight.ptr + parts.codes, turned: weight.ptr + parts.transposed, N, K };
  gpu.launch(turn, [cdiv(K, BLOCK), cdiv(N, BLOCK)], args);
}
