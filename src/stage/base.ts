// Fills a stage's weights: from a Hugging Face directory, or with random numbers where only the shape matters (benchmarks).

import { bytesOf } from "../base/dtype.ts";
import { Rng } from "../base/rng.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Device, Tensor } from "../device/device.ts";
import { openBaseModel } from "../files/basemodel.ts";
import { toBf16, toF32 } from "../files/convert.ts";
import type { FillTensor } from "../model/weights.ts";

/** Where weights come from; disposed when all are loaded. */
export type WeightSource = Disposable & { readonly fill: FillTensor };

/** Reads each tensor from the model's files, converted to what the device computes in. */
export function baseModelWeights(folder: string, spec: ModelSpec, device: Device): WeightSource {
  const files = openBaseModel(folder, spec); // every tensor is checked here, before the first is read
  let scratch = new Uint8Array(new ArrayBuffer(0));
  const fill = (name: string, to: Tensor): void => {
    const entry = files.tensor(name);
    const dtype = entry.dtype!; // checked when the files were opened
    const { shape } = entry;
    const bytes = sizeOf(shape) * bytesOf(dtype);
    if (scratch.byteLength < bytes) scratch = new Uint8Array(new ArrayBuffer(bytes));
    const raw = scratch.subarray(0, bytes);
    files.read(name, raw);
    device.write(to, device.compute === dtype ? raw : device.compute === "f32" ? toF32(raw, dtype) : toBf16(toF32(raw, dtype)));
  };
  return { fill, [Symbol.dispose]: () => files[Symbol.dispose]() };
}

const RANDOM_BLOCK = 1 << 16;

/** Small random weights, repeated from one block: a benchmark needs numbers that look like weights, not good ones. */
export function randomWeights(seed: number, device: Device): WeightSource {
  const rng = new Rng(seed);
  const block = Float32Array.from({ length: RANDOM_BLOCK }, () => 0.04 * (rng.uniform() - 0.5));
  const ones = new Float32Array(RANDOM_BLOCK).fill(1);
  const fill = (name: string, to: Tensor): void => {
    const count = sizeOf(to.shape);
    const values = name.includes("norm") ? ones : block;
    const bytes: ArrayBufferView = device.compute === "f32" ? values : toBf16(values);
    const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const width = bytesOf(to.dtype);
    for (let at = 0; at < count; at += RANDOM_BLOCK) {
      const length = Math.min(RANDOM_BLOCK, count - at);
      device.write({ ptr: to.ptr + at * width, dtype: to.dtype, shape: [length] }, view.subarray(0, length * width));
    }
  };
  return { fill, [Symbol.dispose]: () => undefined };
}
