// The tensors of a GGUF: those of a merged model by llama.cpp's names, and the factors of an adapter.

import { range, sizeOf } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import type { GgufModel } from "../../families/gguf.ts";
import { linearShape, modulePath } from "../../families/linears.ts";
import { familyOf } from "../../families/registry.ts";
import { layerTensors } from "../../families/tensors.ts";
import { rankAt, scaleAt } from "../../methods/placement.ts";
import { type Merge, type MergedTensor, rowsAtOnce, rowsOf, tensorsOf } from "../merge.ts";
import type { SavedAdapter } from "../peft.ts";
import { type GgufType, ggufTypeOf } from "./types.ts";
import type { GgufEntry } from "./writer.ts";

/** A tensor with its values, piece by piece, in the order in which they are written. */
export type GgufTensor = GgufEntry & { readonly pieces: () => Iterable<Float32Array> };

/** The tensors of the merged model. */
export function mergedTensors(merge: Merge, model: GgufModel, type: GgufType): readonly GgufTensor[] {
  const { spec } = merge;
  const offsets = offsetsOf(spec);
  const factors = model.factors.map(([name, values]): GgufTensor => {
    return { name, type: "F32", shape: [values.length], pieces: () => [Float32Array.from(values)] };
  });
  const merged = tensorsOf(merge).map((tensor): GgufTensor => {
    const { name, heads } = placeOf(tensor.name, spec, model);
    const offset = offsets.get(tensor.name) ?? 0;
    const as = ggufTypeOf(type, { name, shape: tensor.shape }, spec, model);
    return { name, type: as, shape: tensor.shape, pieces: () => piecesOf(tensor, merge, heads, offset) };
  });
  return [...factors, ...merged];
}

/** What is added to the weights of norms. */
function offsetsOf(spec: ModelSpec): ReadonlyMap<string, number> {
  const { tensors, finalNormOffset = 0 } = familyOf(spec);
  const layers = range(spec.layers).flatMap((layer) => layerTensors(spec, layer).norms);
  return new Map([
    ...layers.flatMap(({ name, offset }) => (name === null ? [] : [[name, offset] as const])),
    [tensors.norm, finalNormOffset],
  ]);
}

/** llama.cpp's name of a tensor, and the heads that its rows are of, where they lie in pairs there. */
function placeOf(tensor: string, spec: ModelSpec, model: GgufModel): { readonly name: string; readonly heads: number | null } {
  const { embedding, layers, norm, head } = familyOf(spec).tensors;
  const own = { [embedding]: "token_embd.weight", [norm]: "output_norm.weight", [head]: "output.weight" }[tensor];
  if (own) return { name: own, heads: null };
  const [layer, ...parts] = tensor.slice(layers.length + 1).split(".");
  const kind = parts.pop();
  const path = parts.join(".");
  return { name: `blk.${layer}.${model.names[path]}.${kind}`, heads: headsOf(path, spec, model) };
}

function headsOf(path: string, { heads, kvHeads }: ModelSpec, { isPermuted }: GgufModel): number | null {
  if (!isPermuted) return null;
  return path === "self_attn.q_proj" ? heads : path === "self_attn.k_proj" ? kvHeads : null;
}

function* piecesOf(tensor: Omit<MergedTensor, "bytes">, merge: Merge, heads: number | null, offset: number) {
  const { rows, width, read } = rowsOf(tensor, merge);
  const isVector = tensor.shape.length === 1;
  const each = isVector || heads === null ? 1 : rows / heads;
  const most = isVector ? 1 : Math.max(1, Math.floor(rowsAtOnce(width) / each)) * each;
  for (let row = 0; row < rows; row += most) {
    const values = read(row, Math.min(most, rows - row));
    if (offset !== 0) for (let i = 0; i < values.length; i++) values[i]! += offset;
    yield heads === null ? values : paired(values, isVector ? 1 : width, isVector ? width / heads : each);
  }
}

/** Rows of whole heads in the order of pairs that are rotated together: row 2 i of a head was i, and 2 i + 1 was i + half. */
function paired(values: Float32Array, width: number, size: number): Float32Array {
  const out = new Float32Array(values.length);
  const half = size / 2;
  for (let row = 0; row < values.length / width; row++) {
    const within = row % size;
    const from = row - within + (within % 2) * half + Math.floor(within / 2);
    out.set(values.subarray(from * width, (from + 1) * width), row * width);
  }
  return out;
}

/** An adapter's factors as llama.cpp reads them, in f32, and the alpha that it divides by each rank; 0: B is scaled already. */
export type GgufLora = { readonly alpha: number; readonly tensors: readonly GgufTensor[] };

export function loraTensors(spec: ModelSpec, adapter: SavedAdapter, model: GgufModel): GgufLora {
  const sites = range(spec.layers).flatMap((layer) =>
    adapter.targets.flatMap((linear) => {
      const rank = rankAt(adapter, layer, linear);
      return rank === 0 ? [] : [{ layer, linear, rank, scale: scaleAt(adapter, layer, linear) }];
    }),
  );
  const alphas = new Set(sites.map(({ rank, scale }) => rank * scale));
  const alpha = alphas.size === 1 && [...alphas][0]! > 0 ? [...alphas][0]! : 0;
  const tensors = sites.flatMap(({ layer, linear, rank, scale }) => {
    const path = modulePath(linear);
    const name = `blk.${layer}.${model.names[path]}.weight`;
    const { out, in: width } = linearShape(spec, linear, layer);
    const heads = headsOf(path, spec, model);
    const tensor = (end: string, shape: readonly number[], values: () => Float32Array): GgufTensor => {
      return { name: `${name}.${end}`, type: "F32", shape, pieces: () => [values()] };
    };
    return [
      tensor("lora_a", [rank, width], () => adapter.tensor(layer, linear, "A")),
      tensor("lora_b", [out, rank], () => {
        const b = adapter.tensor(layer, linear, "B");
        const scaled = alpha === 0 ? b.map((value) => value * scale) : b;
        return heads === null ? scaled : paired(scaled, rank, out / heads);
      }),
    ];
  });
  return { alpha, tensors };
}

/** Values of all tensors. */
export const elementsOf = (tensors: readonly GgufTensor[]): number =>
  tensors.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
