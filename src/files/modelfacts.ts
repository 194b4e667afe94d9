// What a base model's files say in addition to its config.json. Where the two differ the files are right, as in transformers 5.

import { join } from "node:path";
import { range, sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { layerTensors } from "../families/tensors.ts";
import { type FoundTensor, isWeightType, openBaseModel, openTensors } from "./basemodel.ts";
import { toF32 } from "./convert.ts";

export type ModelFacts = {
  /** That of config.json, but with a head of its own where the files have one. */
  readonly spec: ModelSpec;
  /** All linear weights of the layers are bf16. */
  readonly isBf16: boolean;
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
  const unused = files.unused.filter((name) => !(name === head && spec.tiedEmbeddings) && !COMPUTED_ANEW.test(name));
  return {
    spec,
    isBf16: linears.every((name) => files.tensor(name).dtype === "bf16"),
    notices: [...(hasOwnHead ? [otherHead(folder, head)] : []), ...(unused.length > 0 ? [leftOut(folder, unused)] : [])],
  };
}

/** Of older versions of transformers. */
const COMPUTED_ANEW = /\.rotary_emb\.inv_freq$/;

const otherHead = (folder: string, head: string): string =>
  `${join(folder, "config.json")} ties the output head to the embedding (tie_word_embeddings is true), but the model's files have a ${head} of ` +
  "other values, which is used; set tie_word_embeddings to false there";

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

function areEqual(a: FoundTensor, b: FoundTensor): boolean {
  const [one, other] = [a.entry.dtype, b.entry.dtype];
  if (`${a.entry.shape}` !== `${b.entry.shape}` || !isWeightType(one) || !isWeightType(other)) return false;
  const count = sizeOf(a.entry.shape);
  for (let from = 0; from < count; from += PIECE) {
    const [mine, theirs] = [a, b].map(({ file, actual, entry: { bytes } }) => {
      const width = bytes / count;
      const raw = new Uint8Array(Math.min(PIECE, count - from) * width);
      file.readInto(actual, raw, from * width);
      return raw;
    });
    if (one === other && Buffer.compare(mine!, theirs!) === 0) continue;
    const values = toF32(theirs!, other);
    if (toF32(mine!, one).some((value, i) => value !== values[i])) return false; // 0 and -0 are equal
  }
  return true;
}
