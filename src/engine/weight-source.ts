// Fills a stage's weights: from a Hugging Face directory, or with random numbers where only the shape matters (benchmarks).

import { bytesOf } from "../base/dtype.ts";
import { hash, hashText } from "../base/rng.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { BaseModel } from "../bus/messages.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { Linear } from "../families/linears.ts";
import { weightName } from "../families/tensors.ts";
import { openBaseModel } from "../files/basemodel.ts";
import { toBf16, toF32 } from "../files/convert.ts";
import { randomFill } from "../ops/fill.ts";
import type { FillTensor } from "./weights.ts";

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
    const { bytes, dtype } = files.tensor(name);
    const raw = new Uint8Array(bytes);
    files.read(name, raw);
    return toF32(raw, dtype!);
  };
}

/** Reads each tensor from the model's files, converted to the type that it has on the device. */
function fromFolder(folder: string, spec: ModelSpec, device: Device): WeightSource {
  const files = openBaseModel(folder, spec); // every tensor is checked here, before the first is read
  let scratch = new Uint8Array(new ArrayBuffer(0));
  const fill: FillTensor = (name, to, offset) => {
    const entry = files.tensor(name);
    const dtype = entry.dtype!; // checked when the files were opened
    if (to.dtype === dtype && offset === 0) {
      device.fill(to, (into, from) => files.read(name, into, from));
      return;
    }
    const bytes = sizeOf(entry.shape) * bytesOf(dtype);
    if (scratch.byteLength < bytes) scratch = new Uint8Array(new ArrayBuffer(bytes));
    const raw = scratch.subarray(0, bytes);
    files.read(name, raw);
    const values = toF32(raw, dtype);
    if (offset !== 0) for (let i = 0; i < values.length; i++) values[i]! += offset;
    device.write(to, to.dtype === "f32" ? values : toBf16(values));
  };
  return { fill, [Symbol.dispose]: () => files[Symbol.dispose]() };
}

/**
 * Small random weights, made on the device, for benchmarks. A function of the seed and the tensor's name, so that they are
 * the same on any number of stages.
 */
function random(seed: number, device: Device): WeightSource {
  const fill = (name: string, to: Tensor): void => {
    if (name.includes("norm")) device.write(to, new Float32Array(sizeOf(to.shape)).fill(1));
    else randomFill(device, { out: to, seed: hash(seed, hashText(name)), scale: 0.02 });
  };
  return { fill, [Symbol.dispose]: () => undefined };
}
