// What a base model's files say in addition to its config.json. Where the two differ the files are right, as in transformers 5.

import { join } from "node:path";
import type { ExactFormat } from "../base/precision.ts";
import { range, sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { layerTensors } from "../families/tensors.ts";
import { type FoundTensor, isWeightType, openBaseModel, openTensors } from "./basemodel.ts";
import { unknownIn } from "./gguf/model.ts";
import { modelPlace } from "./modelpath.ts";
import { isQuantisedTensor, type ModelTensor } from "./tensor.ts";

export type ModelFacts = {
  /** That of config.json, but with a head of its own where the files have one. */
  readonly spec: ModelSpec;
  /** What all linear weights of the layers are held in exactly. */
  readonly exact: ExactFormat;
  /** What a user should know. */
  readonly notices: readonly string[];
};

/** Opens the files and checks them as `openBaseModel` does; `config` is the spec of config.json. */
export function readModelFacts(folder: string, config: ModelSpec): ModelFacts {
  const { embedding, head } = familyOf(config).tensors;
  const hasOwnHead = config.tiedEmbeddings && areOther(folder, head, embedding);
  const spec = hasOwnHead ? { ...config, tiedEmbeddings: false } : config;
  using files = openBaseModel(folder, spec);
  const groups = range(spec.layers).flatMap((layer) => layerTensors(spec, layer).groups);
  const linears = groups.flatMap((group) => group.linears.map(({ name }) => `${name}.weight`));
  const weights = linears.map((name) => files.tensor(name));
  const exact = exactFormat(weights);
  const unused = files.unused.filter((name) => !(name === head && spec.tiedEmbeddings) && !COMPUTED_ANEW.test(name));
  return {
    spec,
    exact,
    notices: [
      ...(hasOwnHead ? [otherHead(folder, head)] : []),
      ...(unused.length > 0 ? [leftOut(folder, unused)] : []),
      ...quantisedNotices(folder, weights, exact),
      ...unknownKeys(folder),
    ],
  };
}

/** Of older versions of transformers. */
const COMPUTED_ANEW = /\.rotary_emb\.inv_freq$/;

const otherHead = (folder: string, head: string): string =>
  `${join(folder, "config.json")} ties the output head to the embedding (tie_word_embeddings is true), but the model's files have a ${head} of ` +
  "other values, which is used; set tie_word_embeddings to false there";

const exactFormat = (weights: readonly ModelTensor[]): ExactFormat =>
  weights.every(({ nf4 }) => nf4 !== null) ? "nf4" : weights.every(({ dtype }) => dtype === "bf16") ? "bf16" : null;

/** That weights are quantised in the files, and what that means here. */
function quantisedNotices(path: string, weights: readonly ModelTensor[], exact: ExactFormat): string[] {
  const quantised = weights.filter(isQuantisedTensor);
  if (quantised.length === 0) return [];
  const types = [...new Set(quantised.map(({ type }) => type))].sort().join(", ");
  const which =
    quantised.length === weights.length
      ? "its linear weights are"
      : `${quantised.length} of its ${weights.length} linear weights are`;
  const how = exact === "nf4" ? "precision auto and nf4 hold them as they are" : "they are dequantised when they are loaded";
  return [`${path}: ${which} ${types} in its files; ${how}`];
}

/** What a GGUF says of its layers that is not read. */
function unknownKeys(path: string): string[] {
  const { gguf } = modelPlace(path);
  const unknown = gguf === null ? [] : unknownIn(gguf);
  return unknown.length === 0 ? [] : [`${path}: keys that are not known are left out: ${unknown.join(", ")}`];
}

const SHOWN = 3;

function leftOut(folder: string, names: readonly string[]): string {
  const more = names.length > SHOWN ? ` and ${names.length - SHOWN} more` : "";
  const what =
    names.length === 1
      ? "1 tensor that config.json does not describe is"
      : `${names.length} tensors that config.json does not describe are`;
  return `${folder}: ${what} left out: ${names.slice(0, SHOWN).join(", ")}${more}`;
}

/** Whether the files have both tensors, with different values. */
function areOther(folder: string, ...names: readonly [string, string]): boolean {
  using files = openTensors(folder);
  const [a, b] = [files.find(names[0]), files.find(names[1])];
  return a !== null && b !== null && !areEqual(a, b);
}

/** Elements of either that are in memory at a time. */
const PIECE = 1 << 22;

function areEqual({ tensor: a }: FoundTensor, { tensor: b }: FoundTensor): boolean {
  if (`${a.shape}` !== `${b.shape}` || !isWeightType(a.dtype) || !isWeightType(b.dtype)) return false;
  if (a.fault !== null || b.fault !== null) return true; // it is reported where it is used
  const count = sizeOf(a.shape);
  for (let from = 0; from < count; from += PIECE) {
    const [mine, theirs] = [a, b].map((tensor) => {
      const values = new Float32Array(new ArrayBuffer(4 * Math.min(PIECE, count - from)));
      tensor.read(new Uint8Array(values.buffer), "f32", from * 4);
      return values;
    });
    if (mine!.some((value, i) => value !== theirs![i])) return false; // 0 and -0 are equal
  }
  return true;
}
