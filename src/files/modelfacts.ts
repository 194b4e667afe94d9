// What a base model's files say in addition to its config.json. Where the two differ the files are right, as in transformers 5.

import { join } from "node:path";
import type { ExactWeights } from "../base/precision.ts";
import { range, sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { expertTensorShapes, layerTensors } from "../families/tensors.ts";
import { type FoundTensor, isWeightType, openBaseModel, openTensors } from "./basemodel.ts";
import { unknownIn } from "./gguf/model.ts";
import { modelPlace } from "./modelpath.ts";
import { isQuantisedTensor, type ModelTensor } from "./tensor.ts";

export type ModelFacts = {
  /** That of config.json, but with a head of its own where the files have one. */
  readonly spec: ModelSpec;
  /** What linear weights of the layers are held in exactly; null for none. */
  readonly exact: ExactWeights | null;
  /** What a user should know. */
  readonly notices: readonly string[];
};

/** Opens the files and checks them as `openBaseModel` does; `config` is the spec of config.json. */
export function readModelFacts(folder: string, config: ModelSpec): ModelFacts {
  const { embedding, head } = familyOf(config).tensors;
  const hasOwnHead = config.tiedEmbeddings && areOther(folder, head, embedding);
  const spec = withLayout(folder, hasOwnHead ? { ...config, tiedEmbeddings: false } : config);
  using files = openBaseModel(folder, spec);
  const groups = range(spec.layers).flatMap((layer) => {
    const { groups, experts } = layerTensors(spec, layer);
    const tensors = (names: readonly string[]) => names.map((name) => files.tensor(name));
    return [
      ...groups.map(({ group, linears }) => {
        return { place: `${layer}.${group}`, weights: tensors(linears.map(({ name }) => `${name}.weight`)) };
      }),
      ...Object.entries(experts?.products ?? {}).map(([which, { parts }]) => {
        const names = new Set(parts.flatMap((linears) => linears.map(({ name }) => name)));
        return { place: `${layer}.experts.${which}`, weights: tensors([...names]) };
      }),
    ];
  });
  const tables = [embedding, ...(spec.tiedEmbeddings ? [] : [head])];
  const exact = withTables(
    exactWeights(groups),
    tables.every((name) => files.tensor(name).dtype === "bf16"),
  );
  const isTiedHead = (name: string) => spec.tiedEmbeddings && (name === head || name === `language_model.${head}`);
  const unused = files.unused.filter((name) => !isTiedHead(name) && !COMPUTED_ANEW.test(name));
  const parts = otherParts(unused, spec);
  const unknown = unused.filter((name) => !parts.some(({ names }) => names.includes(name)));
  return {
    spec,
    exact,
    notices: [
      ...(hasOwnHead ? [otherHead(folder, head)] : []),
      ...(parts.length > 0 ? [notTrained(folder, parts)] : []),
      ...(unknown.length > 0 ? [leftOut(folder, unknown)] : []),
      ...quantisedNotices(
        folder,
        groups.flatMap(({ weights }) => weights),
        exact,
      ),
      ...unknownKeys(folder),
    ],
  };
}

/** As the files have the experts' weights: versions differ. Square ones are as they are, as in transformers 5. */
function withLayout(folder: string, spec: ModelSpec): ModelSpec {
  const { experts } = spec;
  const { otherFiles } = familyOf(spec);
  if (!experts || !otherFiles) return spec;
  using files = openTensors(folder);
  const other = { ...spec, experts: { ...experts, files: otherFiles } };
  const isOther = expertTensorShapes(other).every(([name, shape]) => `${files.find(name)?.tensor.shape}` === `${shape}`);
  return isOther ? other : spec;
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

/** Of layers that read the keys and values of another, whose own are in the files all the same. */
const OWN_KEYS = /\.self_attn\.[kv]_(proj|norm)\./;

function otherParts(unused: readonly string[], { layers, kvSources }: ModelSpec): readonly OtherPart[] {
  const partOf = (name: string): readonly [what: string, prefix: string] | null => {
    const part = PARTS.find(([, pattern]) => pattern.test(name));
    if (part) return [part[0], part[1].exec(name)![0]];
    const [, path, layer] = LAYER.exec(name) ?? [];
    if (layer !== undefined && (kvSources[Number(layer)] ?? null) !== null && OWN_KEYS.test(name))
      return ["keys and values of layers that read those of another", `${path}.*.self_attn.`];
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

type LinearGroup = { readonly place: string; readonly weights: readonly ModelTensor[] };

/** nf4 of any group, or bf16 of all. */
function exactWeights(all: readonly LinearGroup[]): ExactWeights | null {
  const [experts = [], groups = []] = [true, false].map((of) => all.filter(({ place }) => OF_EXPERTS.test(place) === of));
  const isMxfp4 = experts.length > 0 && experts.every(({ weights }) => weights.every(({ mxfp4 }) => mxfp4));
  if (!isMxfp4) return exactLinears(all);
  return { format: null, others: [], ...exactLinears(groups), isMxfp4 };
}

const withTables = (exact: ExactWeights | null, areBf16: boolean): ExactWeights | null =>
  exact && areBf16 ? { ...exact, tables: true } : exact;

const OF_EXPERTS = /\.experts\./;

function exactLinears(groups: readonly LinearGroup[]): ExactWeights | null {
  const others = groups.filter(({ weights }) => weights.some(({ nf4 }) => nf4 === null)).map(({ place }) => place);
  if (others.length < groups.length) return { format: "nf4", others };
  return groups.every(({ weights }) => weights.every(({ dtype }) => dtype === "bf16")) ? { format: "bf16", others: [] } : null;
}

/** That weights are quantised in the files, and what that means here. */
function quantisedNotices(path: string, weights: readonly ModelTensor[], exact: ExactWeights | null): string[] {
  const quantised = weights.filter(isQuantisedTensor);
  if (quantised.length === 0) return [];
  const types = [...new Set(quantised.map(({ type }) => type))].sort().join(", ");
  if (exact?.isMxfp4)
    return [`${path}: its experts are MXFP4 in its files, and are held as they are, unless precision is bf16 or fp32`];
  const all = quantised.length === weights.length;
  const which = all ? "its linear weights are" : `${quantised.length} of its ${weights.length} linear weights are`;
  const how =
    exact?.format !== "nf4"
      ? "they are dequantised when they are loaded"
      : exact.others.length === 0
        ? "precision auto and nf4 hold them as they are"
        : 'precision auto holds groups of linears that are wholly nf4 as they are; "nf4" quantises the others, too';
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
