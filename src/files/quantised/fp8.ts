// Weights in FP8: codes of e4m3, and next to each weight its scales, by which they are multiplied: one for the weight, one for
// each row, or one for each block of rows and columns.

import { RequestError } from "../../base/errors.ts";
import { sizeOf } from "../../base/shape.ts";
import { toF32 } from "../convert.ts";
import { type Block, fp8Values } from "../stored.ts";
import { decoder, type ModelTensor, scratch } from "../tensor.ts";
import type { RawTensor } from "./raw.ts";

/** What the scales of `weight` are called; the first is DeepSeek's, and in spite of its name multiplied. */
const SCALES = ["_scale_inv", "_scale"];
/** Of activations, and of the cache of keys and values: nothing here is rounded by them. */
const UNUSED = [".activation_scale", ".input_scale", ".k_scale", ".v_scale"];

/** Replaces the weights in FP8 by their values, and takes their scales off the list. */
export function readFp8(tensors: Map<string, ModelTensor>, raw: ReadonlyMap<string, RawTensor>, block: Block | null): void {
  for (const [name, codes] of raw) {
    if (UNUSED.some((end) => name.endsWith(end))) tensors.delete(name);
    if (codes.type !== "F8_E4M3") continue;
    const scaleName = SCALES.map((end) => name + end).find((other) => raw.has(other));
    const scale = scaleName === undefined ? undefined : raw.get(scaleName);
    if (scaleName !== undefined) tensors.delete(scaleName);
    tensors.set(name, fp8Tensor(name, codes, scale, block));
  }
}

function fp8Tensor(name: string, codes: RawTensor, scale: RawTensor | undefined, block: Block | null): ModelTensor {
  const { shape, type } = codes;
  const [rows, columns] = shape as [number, number];
  const tensor = { type, dtype: "f32", shape, nf4: null } as const;
  const blocks = shape.length === 2 ? blocksOf(rows, columns, scale, block) : "is no matrix";
  if (typeof blocks === "string") return { ...tensor, fault: blocks, read: () => undefined };
  let scales: Float32Array | undefined;
  const decode = decoder(sizeOf(shape), columns, (first, count, as, into) => {
    scales ??= scalesOf(name, scale!);
    const part = scratch(count);
    codes.read(part, first);
    fp8Values(part, scales, { row: first / columns, rows: count / columns, columns }, blocks, as, into);
  });
  return { ...tensor, fault: null, read: decode };
}

/** The blocks that a weight's scales are of; a text says what is wrong. */
function blocksOf(rows: number, columns: number, scale: RawTensor | undefined, block: Block | null): Block | string {
  if (scale === undefined) return "is F8_E4M3 without scales (weight_scale_inv or weight_scale)";
  if (!SCALE_TYPES.includes(scale.type)) return `has scales of ${scale.type}, expected ${SCALE_TYPES.join(", ")}`;
  const { shape } = scale;
  const grid = block && [Math.ceil(rows / block[0]), Math.ceil(columns / block[1])];
  if (grid && `${shape}` === `${grid}`) return block;
  if (sizeOf(shape) === 1) return [rows, columns];
  if (`${shape}` === `${[rows]}` || `${shape}` === `${[rows, 1]}`) return [1, columns];
  const wanted = grid ? `[${grid}] for blocks of ${block.join(" x ")}` : `[1], or [${rows}, 1] for rows`;
  return `is [${shape.length === 0 ? "" : `${rows},${columns}`}] with scales [${shape}], expected ${wanted}`;
}

const SCALE_TYPES = ["F32", "BF16", "F16", "F8_E8M0", "U8"];

/** U8 is E8M0, as older files have it. */
function scalesOf(name: string, { type, shape, dtype, read }: RawTensor): Float32Array {
  const isPower = type === "F8_E8M0" || type === "U8";
  const bytes = new Uint8Array(sizeOf(shape) * (isPower ? 1 : type === "F32" ? 4 : 2));
  read(bytes, 0);
  const scales = isPower
    ? Float32Array.from(bytes, (code) => (code === 255 ? Number.NaN : 2 ** (code - 127)))
    : toF32(bytes, dtype!);
  const wrong = scales.findIndex((scale) => !Number.isFinite(scale));
  if (wrong === -1) return scales;
  throw new RequestError("model.weights", `${name}: scale ${wrong} is ${scales[wrong]}`, "the file is damaged; fetch it again");
}
