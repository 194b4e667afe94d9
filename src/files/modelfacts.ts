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
  const isTiedHead = (name: string) => spec.tiedEmbeddings && (name === head || name === `language_model.${head}`);
  const unused = files.unused.filter((name) => !isTiedHead(name) && !COMPUTED_ANEW.test(name));
  const parts = otherParts(unused, spec);
  const unknown = unused.filter((name) => !parts.some(({ names }) => names.includes(name)));
  return {
    spec,
    isBf16: linears.every((name) => files.tensor(name).dtype === "bf16"),
    notices: [
      ...(hasOwnHead ? [otherHead(folder, head)] : []),
      ...(parts.length > 0 ? [notTrained(folder, parts)] : []),
      ...(unknown.length > 0 ? [leftOut(folder, unknown)] : []),
    ],
  };
}

/** Parts of models that text does not pass, by how their tensors' names begin. */
const PARTS: readonly (readonly [what: string, name: RegExp])[] = [
  ["encoder of images", /^(model\.)?(visual|vision_tower|vision_model|embed_vision)\./],
  ["encoder of sound", /^(model\.)?(audio_tower|embed_audio)\./],
  ["connection of images or sound to text", /^(model\.)?(multi_modal_projector|vision_adapter|vision_projection)\./],
  ["prediction of several tokens", /^(model\.)?mtp\./],
];
const LAYER = /^((?:model\.|language_model\.)*layers)\.(\d+)\./;

type OtherPart = { readonly what: string; readonly prefix: string; readonly names: readonly string[] };

function otherParts(unused: readonly string[], { layers }: ModelSpec): readonly OtherPart[] {
  const partOf = (name: string): readonly [what: string, prefix: string] | null => {
    const part = PARTS.find(([, pattern]) => pattern.test(name));
    if (part) return [part[0], part[1].exec(name)![0]];
    const [, path, layer] = LAYER.exec(name) ?? [];
    return layer !== undefined && Number(layer) >= layers ? ["layer beyond num_hidden_layers", `${path}.${layer}.`] : null;
  };
  const found = Map.groupBy(unused, (name) => partOf(name)?.join("\0") ?? "");
  return [...found].flatMap(([key, names]) => {
    const [what, prefix] = key.split("\0");
    return prefix === undefined ? [] : [{ what: what!, prefix, names }];
  });
}

function notTrained(folder: string, parts: readonly OtherPart[]): string {
  const count = parts.reduce((total, { names }) => total + names.length, 0);
  const list = parts.map(({ what, prefix, names }) => `${names.length} of ${prefix}* (${what})`).join(", ");
  return `${folder}: text is trained, which ${count === 1 ? "1 tensor does" : `${count} tensors do`} not take part in: ${list}`;
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
