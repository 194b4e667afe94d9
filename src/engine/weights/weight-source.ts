// Fills a stage's weights: from the files of a base model, or with random numbers where only the shape matters (benchmarks).

import { bytesOf, type DType } from "../../base/dtype.ts";
import { hash, hashText, Rng } from "../../base/rng.ts";
import { sizeOf } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import type { BaseModel } from "../../bus/messages.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { isNf4, linearOf, MXFP4_BLOCK } from "../../device/packed.ts";
import type { Linear } from "../../families/linears.ts";
import { weightName } from "../../families/tensors.ts";
import { type BaseModelFiles, openBaseModel } from "../../files/basemodel.ts";
import { toBf16 } from "../../files/convert.ts";
import { turn } from "../../files/factors.ts";
import { useAllCores } from "../../files/stored.ts";
import type { Mxfp4Parts, Nf4Parts } from "../../files/tensor.ts";
import { randomFill } from "../../ops/fill.ts";
import type { FillTensor, PackedPlace, TensorPart } from "./weights.ts";

/** The source of a stage's weights; disposed of when all are loaded. */
export type WeightSource = Disposable & { readonly fill: FillTensor };

export const weightsOf = (model: BaseModel, spec: ModelSpec, device: Device): WeightSource =>
  "folder" in model ? fromFolder(model.folder, spec, device) : random(model.randomSeed, device);

/** Reads a linear's weight f32[out, in] from the model's files, however the device holds it. */
export type OriginalWeight = (layer: number, linear: Linear) => Float32Array;

export const noOriginal: OriginalWeight = () => {
  throw new Error("this stage has no files to read a weight from again");
};

export function originalWeights(model: BaseModel, spec: ModelSpec): OriginalWeight {
  return (layer, linear) => {
    if (!("folder" in model)) return noOriginal(layer, linear);
    using files = openBaseModel(model.folder, spec);
    const name = weightName(spec, layer, linear);
    const values = new Float32Array(new ArrayBuffer(4 * sizeOf(files.tensor(name).shape)));
    files.read(name, new Uint8Array(values.buffer), 0, "f32");
    return values;
  };
}

/**
 * Reads each tensor from the model's files, converted to the type that it has on the device, or as it is where it is held so.
 */
function fromFolder(folder: string, spec: ModelSpec, device: Device): WeightSource {
  const files = openBaseModel(folder, spec); // every tensor is checked here, before the first is read
  if (device.threads === 0) useAllCores();
  const fill: FillTensor = (name, to, { packed, offset = 0, part }) => {
    const { nf4, mxfp4 } = files.tensor(name);
    if (mxfp4 && packed?.weight.format === "mxfp4") {
      copyMxfp4(device, mxfp4, packed, part?.first ?? 0);
      return true;
    }
    if (part) {
      fillPart(device, files, name, to, part);
      return false;
    }
    const isKept = nf4 !== null && packed !== undefined && isNf4(packed.weight.format);
    if (isKept) copyNf4(device, nf4, packed);
    else if (offset === 0) device.fill(to, (into, from) => files.read(name, into, from, to.dtype));
    else device.write(to, shifted(files, name, sizeOf(to.shape), offset));
    return isKept;
  };
  return { fill, [Symbol.dispose]: () => files[Symbol.dispose]() };
}

/** Fills a matrix [rows, columns] from a part of a tensor. */
function fillPart(device: Device, files: BaseModelFiles, name: string, to: Tensor, { first, isTurned }: TensorPart): void {
  const at = (dtype: DType) => first * bytesOf(dtype);
  if (!isTurned) {
    device.fill(to, (into, from) => files.read(name, into, at(to.dtype) + from, to.dtype));
    return;
  }
  const [rows, columns] = to.shape as [number, number];
  const values = new Float32Array(new ArrayBuffer(4 * rows * columns));
  files.read(name, new Uint8Array(values.buffer), at("f32"), "f32");
  const turned = new Float32Array(values.length);
  turn(values, turned, columns, rows);
  device.write(to, to.dtype === "bf16" ? toBf16(turned) : turned);
}

/** A tensor's values f32, each plus `offset`. */
function shifted(files: BaseModelFiles, name: string, count: number, offset: number): Float32Array {
  const values = new Float32Array(new ArrayBuffer(4 * count));
  files.read(name, new Uint8Array(values.buffer), 0, "f32");
  return values.map((value) => value + offset);
}

/** Copies a linear's parts as they are to their places in a packed weight. */
function copyNf4(device: Device, from: Nf4Parts, { weight, linear }: PackedPlace): void {
  const to = linearOf(weight, linear);
  const at = (ptr: number, bytes: number): Tensor => ({ ptr, dtype: "u8", shape: [bytes] });
  device.fill(at(to.codes, (to.rows * weight.shape[1]) / 2), from.readCodes);
  const rest = [
    [to.absmax, from.absmax()],
    [to.nested, from.nested()],
    [to.mean, Float32Array.of(from.mean)],
  ] as const;
  for (const [ptr, data] of rest) device.write(at(ptr, data.byteLength), data);
}

/** The same from value `first` of the tensor on. */
function copyMxfp4(device: Device, from: Mxfp4Parts, { weight, linear }: PackedPlace, first: number): void {
  const { codes, scale, rows } = linearOf(weight, linear);
  const size = rows * weight.shape[1];
  const at = (ptr: number, bytes: number): Tensor => ({ ptr, dtype: "u8", shape: [bytes] });
  device.fill(at(codes, size / 2), (into, byte) => from.readCodes(into, first / 2 + byte));
  device.fill(at(scale, size / MXFP4_BLOCK), (into, byte) => from.readScales(into, first / MXFP4_BLOCK + byte));
}

/**
 * Small random weights, made on the device, for benchmarks. A function of the seed and the tensor's name, so that they are
 * the same on any number of stages.
 */
function random(seed: number, device: Device): WeightSource {
  const fill: FillTensor = (name, to, { part, packed }) => {
    const own = hash(seed, hashText(part ? `${name} ${part.first}` : name));
    const isMxfp4 = packed?.weight.format === "mxfp4";
    if (isMxfp4) randomMxfp4(device, packed, own);
    else if (name.includes("norm") || name.endsWith("scalar")) device.write(to, new Float32Array(sizeOf(to.shape)).fill(1));
    else if (to.dtype !== device.compute) device.write(to, randomValues(sizeOf(to.shape), own));
    else randomFill(device, { out: to, seed: own, scale: 0.02 });
    return isMxfp4;
  };
  return { fill, [Symbol.dispose]: () => undefined };
}

/** Of what is in f32 on every device, which is small. */
function randomValues(count: number, seed: number): Float32Array {
  const rng = new Rng(seed);
  return Float32Array.from({ length: count }, () => 0.02 * rng.normal());
}

/** Any codes, which the bytes of random numbers are, and one scale: values of about the size of others. */
function randomMxfp4(device: Device, { weight, linear }: PackedPlace, seed: number): void {
  const { codes, scale, rows } = linearOf(weight, linear);
  const size = rows * weight.shape[1];
  const dtype = device.compute;
  randomFill(device, { out: { ptr: codes, dtype, shape: [size / 2 / bytesOf(dtype)] }, seed, scale: 0.02 });
  device.write({ ptr: scale, dtype: "u8", shape: [size / MXFP4_BLOCK] }, new Uint8Array(size / MXFP4_BLOCK).fill(127 - 7));
}
