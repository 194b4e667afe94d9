// The tensors of a GGUF by Hugging Face's names, with their rows in its order.

import { existsSync } from "node:fs";
import { basename } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { range, sizeOf } from "../../base/shape.ts";
import { counted } from "../../base/units.ts";
import { partsOf, SPLIT } from "../modelpath.ts";
import { isStoredType, STORED_TYPES, storedValues } from "../stored.ts";
import { decoder, type ModelTensor, plainTensor, scratch } from "../tensor.ts";
import { ggufConfig } from "./config.ts";
import { type GgufFile, type GgufTensor, openGguf } from "./header.ts";
import { ROPE_FACTORS } from "./rope.ts";

const NAMES: Readonly<Record<string, string>> = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};
/** Within a layer, of its weights and biases. */
const PARTS: Readonly<Record<string, string>> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};
const PLACE = /^blk\.(\d+)\.([a-z_]+)\.(weight|bias)$/;

/** Its own name where there is no other. */
function huggingName(name: string): string {
  const [, layer, part, kind] = PLACE.exec(name) ?? [];
  return NAMES[name] ?? (part && Object.hasOwn(PARTS, part) ? `model.layers.${layer}.${PARTS[part]}.${kind}` : name);
}

/** Opens all files of a model. Tensors that no layer reads by themselves, as the factors of a rope, are left out. */
export function openGgufTensors(path: string): Disposable & { readonly tensors: ReadonlyMap<string, ModelTensor> } {
  const files = openParts(path);
  const dispose = () => {
    for (const file of files) file[Symbol.dispose]();
  };
  try {
    const { config, isPermuted } = ggufConfig(wholeOf(files));
    const heads = isPermuted ? { q: config["num_attention_heads"], k: config["num_key_value_heads"] } : { q: null, k: null };
    const tensors = new Map<string, ModelTensor>();
    for (const file of files)
      for (const [name, entry] of file.tensors) {
        if (name === ROPE_FACTORS) continue;
        const [, , part] = PLACE.exec(name) ?? [];
        const of = part === "attn_q" ? heads.q : part === "attn_k" ? heads.k : null;
        tensors.set(huggingName(name), tensorOf(file, entry, of as number | null));
      }
    return { tensors, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** The metadata of the first file with the tensors of all, for what the model is. */
export const wholeOf = (files: readonly GgufFile[]): GgufFile => ({
  ...files[0]!,
  tensors: new Map(files.flatMap(({ tensors }) => [...tensors])),
});

/** The file, and those that follow it where the model is split. */
export function openParts(path: string): readonly GgufFile[] {
  const files = [openGguf(path)];
  try {
    const [first] = files;
    const count = Number(first!.metadata.get("split.count") ?? 1);
    if (!(count > 1)) return files;
    const wrong = (what: string) =>
      new RequestError("gguf.split", `${path}: ${what}`, "fetch all files of the model into one folder");
    const [, number, all] = SPLIT.exec(basename(path)) ?? [];
    if (Number(first!.metadata.get("split.no") ?? 0) !== 0 || Number(number ?? 1) !== 1)
      throw new RequestError(
        "gguf.split",
        `${path} is not the first of ${counted(count, "file")}`,
        "let model.path name the first",
      );
    if (Number(all) !== count)
      throw wrong(`is one of ${counted(count, "file")}, and is not named as llama.cpp names them (-00001-of-0000${count})`);
    for (const [index, next] of partsOf(path).entries()) {
      if (index === 0) continue;
      if (!existsSync(next)) throw wrong(`the model has ${counted(count, "file")}, and ${basename(next)} is missing`);
      const file = openGguf(next);
      files.push(file);
      if (Number(file.metadata.get("split.no")) !== index || Number(file.metadata.get("split.count")) !== count)
        throw wrong(`${basename(next)} is not file ${index + 1} of ${count} by its own words`);
    }
    const twice = files.flatMap(({ tensors }) => [...tensors.keys()]).find((name, i, names) => names.indexOf(name) !== i);
    if (twice !== undefined) throw wrong(`${twice} is in two of the files`);
    return files;
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
}

/** `heads`: how many the rows are of, where they lie in the order of pairs. */
function tensorOf(file: GgufFile, { type, shape, offset }: GgufTensor, heads: number | null): ModelTensor {
  if (!isStoredType(type)) {
    const known = Object.keys(STORED_TYPES).join(", ");
    return {
      type,
      dtype: null,
      shape,
      fault: `is ${type}, which is not read (${known} are)`,
      nf4: null,
      read: () => undefined,
    };
  }
  const { values, bytes } = STORED_TYPES[type];
  const rows = shape.length === 0 ? 1 : shape[0]!;
  if (heads !== null && rows % (2 * heads) !== 0)
    return {
      type,
      dtype: "f32",
      shape,
      fault: `has ${counted(rows, "row")} for ${counted(heads, "head")}`,
      nf4: null,
      read: () => undefined,
    };
  const row = (sizeOf(shape) / rows / values) * bytes; // of bytes
  const halves = heads === null ? null : halvesOf(rows, heads);
  const readBytes = (into: Uint8Array, from: number): void => {
    if (halves === null) file.read(into, offset + from);
    for (let at = 0; halves !== null && at < into.length; ) {
      const [which, begin] = [Math.floor((from + at) / row), (from + at) % row];
      const count = Math.min(row - begin, into.length - at);
      file.read(into.subarray(at, at + count), offset + halves[which]! * row + begin);
      at += count;
    }
  };
  if (values === 1) return plainTensor(type, type === "F32" ? "f32" : type === "F16" ? "f16" : "bf16", shape, readBytes);
  const read = decoder(sizeOf(shape), values, (first, count, as, into) => {
    const raw = scratch((count / values) * bytes);
    readBytes(raw, (first / values) * bytes);
    storedValues(type, raw, count, as, into);
  });
  return { type, dtype: "f32", shape, fault: null, nf4: null, read };
}

/** Where each row of Hugging Face's order lies: its row i of a head turns with row i + half, llama.cpp's 2 i with 2 i + 1. */
function halvesOf(rows: number, heads: number): readonly number[] {
  const [size, half] = [rows / heads, rows / heads / 2];
  return range(rows).map((row) => {
    const [head, within] = [Math.floor(row / size), row % size];
    return head * size + (within % half) * 2 + Math.floor(within / half);
  });
}
