// Models that have a language model as a part, next to encoders of images or sound: which family the part is, and where its
// layers and its config lie.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";

export type Wrapper = {
  /** The families of `text_config`, by its model_type; the first for a config without one. */
  readonly towers: Readonly<Record<string, string>>;
  /** Where config.json has no tie_word_embeddings: the wrapper's counts, not the tower's. */
  readonly isTied: boolean;
  /** Whether older files have the keys of the tower at the top of config.json. */
  readonly isFlat?: true;
  /** Whether files of older versions have tie_word_embeddings in text_config. */
  readonly isTiedWithin?: true;
};

/** By the name in config.json's `architectures`. */
export const WRAPPERS = {
  Qwen2_5_VLForConditionalGeneration: {
    towers: { qwen2_5_vl_text: "qwen2_5_vl" },
    isTied: false,
    isFlat: true,
    isTiedWithin: true,
  },
  Qwen3VLForConditionalGeneration: { towers: { qwen3_vl_text: "qwen3_vl" }, isTied: false },
  Qwen3_5ForConditionalGeneration: { towers: { qwen3_5_text: "qwen3_5" }, isTied: false },
  Qwen3_5MoeForConditionalGeneration: { towers: { qwen3_5_moe_text: "qwen3_5_moe" }, isTied: false },
  Qwen3VLMoeForConditionalGeneration: { towers: { qwen3_vl_moe_text: "qwen3_vl_moe" }, isTied: false },
  Gemma3ForConditionalGeneration: { towers: { gemma3_text: "gemma3" }, isTied: true },
  Gemma4ForConditionalGeneration: { towers: { gemma4_text: "gemma4" }, isTied: true },
  Gemma4UnifiedForConditionalGeneration: { towers: { gemma4_unified_text: "gemma4", gemma4_text: "gemma4" }, isTied: true },
  MuseGlimmerForConditionalGeneration: { towers: { muse_glimmer_text: "muse_glimmer" }, isTied: false },
  Mistral3ForConditionalGeneration: { towers: { mistral: "mistral3", ministral3: "ministral3" }, isTied: true },
} as const satisfies Readonly<Record<string, Wrapper>>;

/** The path of the layers' module in transformers' model of any of them. */
const TOWER = "model.language_model";

/** The family of a wrapper's tower, its config, and what of the spec the wrapper decides. Throws a RequestError. */
export function towerOf(
  wrapper: Wrapper,
  config: ConfigReader,
): { readonly family: string; readonly config: ConfigReader; readonly decided: Pick<ModelSpec, "tower" | "tiedEmbeddings"> } {
  const { source, path } = config;
  const { towers, isTied, isFlat, isTiedWithin } = wrapper;
  const given = source["text_config"] ?? (isFlat ? source : null);
  if (typeof given !== "object" || given === null || Array.isArray(given))
    throw config.wrong(
      "text_config",
      source["text_config"] === undefined ? "is missing" : `is ${JSON.stringify(given)}, expected an object`,
    );
  const text = given as ConfigObject;
  const [first] = Object.keys(towers);
  const type = text === source ? first : (text["model_type"] ?? first);
  const family = typeof type === "string" && Object.hasOwn(towers, type) ? towers[type]! : null;
  if (family === null)
    throw new RequestError(
      "model.architecture",
      `${path}: text_config.model_type is ${JSON.stringify(type)}`,
      `supported is ${Object.keys(towers).join(" or ")}`,
    );
  const within = isTiedWithin && text["tie_word_embeddings"] === true;
  const tiedEmbeddings = config.flag("tie_word_embeddings", isTied) || within === true;
  return {
    family,
    config: text === source ? config : new ConfigReader(text, `${path}: text_config`),
    decided: { tower: TOWER, tiedEmbeddings },
  };
}
