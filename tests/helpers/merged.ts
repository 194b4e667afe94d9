// What a merged model is to be, written down once more: one number after the other.

import { bytesOf } from "../../src/base/dtype.ts";
import { sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { type Linear, linearShape, modulePath } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { toF32 } from "../../src/files/convert.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { rankAt } from "../../src/methods/placement.ts";

/** All tensors of a model, as f32. */
export function tensorsOf(folder: string, spec: ModelSpec): Map<string, Float32Array> {
  using files = openBaseModel(folder, spec);
  return new Map(
    [...tensorShapes(spec).keys()].map((name) => {
      const { dtype, shape } = files.tensor(name);
      const raw = new Uint8Array(sizeOf(shape) * bytesOf(dtype));
      files.read(name, raw);
      return [name, toF32(raw, dtype)];
    }),
  );
}

/** W + scale B A of the adapter in a folder, with DoRA its rows of lengths M. Changes `weights`. */
export function mergedBy(
  weights: Map<string, Float32Array>,
  folder: string,
  spec: ModelSpec,
  scaleOf: (layer: number, linear: Linear) => number,
): Map<string, Float32Array> {
  const adapter = readPeftAdapter(folder, spec);
  const { targets, method, tensor } = adapter;
  for (let layer = 0; layer < spec.layers; layer++)
    for (const linear of targets) {
      const rank = rankAt(adapter, layer, linear);
      if (rank === 0) continue;
      const [a, b] = [tensor(layer, linear, "A"), tensor(layer, linear, "B")];
      const { out, in: width } = linearShape(spec, linear);
      const w = weights.get(`model.layers.${layer}.${modulePath(linear)}.weight`)!;
      for (let o = 0; o < out; o++)
        for (let i = 0; i < width; i++) {
          let sum = 0;
          for (let r = 0; r < rank; r++) sum += b[o * rank + r]! * a[r * width + i]!;
          w[o * width + i]! += scaleOf(layer, linear) * sum;
        }
      if (method === "dora")
        for (const [o, length] of tensor(layer, linear, "M").entries()) {
          const norm = Math.hypot(...w.subarray(o * width, (o + 1) * width));
          for (let i = 0; i < width; i++) w[o * width + i]! *= length / norm;
        }
    }
  return weights;
}
