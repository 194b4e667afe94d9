// All families, and what the program asks of one by its name, which is config.json's `model_type`. Nothing outside this folder
// compares names of families.

import { invariant, RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";
import { deepseekV2, deepseekV3 } from "./deepseek.ts";
import type { Definition } from "./definition.ts";
import { gemma2 } from "./gemma2.ts";
import { gemma3, gemma3Text } from "./gemma3.ts";
import { gemma4, gemma4Text } from "./gemma4.ts";
import { glm4moe } from "./glm4-moe.ts";
import { glm4MoeLite } from "./glm4-moe-lite.ts";
import { gptOss } from "./gpt-oss.ts";
import { granite } from "./granite.ts";
import { graniteH } from "./granite-h.ts";
import { graniteMoe } from "./granite-moe.ts";
import { granite4 } from "./granite4.ts";
import { lfm2 } from "./lfm2.ts";
import { lfm2Moe } from "./lfm2-moe.ts";
import { llama } from "./llama.ts";
import { miniCpm3 } from "./minicpm3.ts";
import { ministral3 } from "./ministral3.ts";
import { mistral, mistral3 } from "./mistral.ts";
import { mixtral } from "./mixtral.ts";
import { museGlimmer } from "./muse-glimmer.ts";
import { nemotronH } from "./nemotron-h.ts";
import { olmo2, olmo3 } from "./olmo.ts";
import { phi3 } from "./phi3.ts";
import { qwen3vl, qwen3vlMoe, qwen25vl } from "./qwen-vl.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";
import { qwen35, qwen35Text } from "./qwen3-5.ts";
import { qwen35Moe, qwen35MoeText } from "./qwen3-5-moe.ts";
import { qwen3moe } from "./qwen3-moe.ts";
import { qwen3Next } from "./qwen3-next.ts";
import { smollm3 } from "./smollm3.ts";
import { towerOf, WRAPPERS } from "./wrappers.ts";
import { youtu } from "./youtu.ts";

/**
 * By `model_type`, but for families that share one. The order is that of groups and linears (linears.ts), which numbers them:
 * what is new comes last.
 */
export const FAMILIES = {
  llama,
  mistral,
  qwen2,
  qwen3,
  mistral3,
  ministral3,
  qwen2_5_vl: qwen25vl,
  qwen3_vl: qwen3vl,
  smollm3,
  granite,
  granitemoehybrid: granite4,
  phi3,
  olmo2,
  olmo3,
  muse_glimmer: museGlimmer,
  gemma2,
  gemma3,
  gemma3_text: gemma3Text,
  gemma4,
  gemma4_text: gemma4Text,
  qwen3_5: qwen35,
  qwen3_5_text: qwen35Text,
  mixtral,
  qwen3_moe: qwen3moe,
  gpt_oss: gptOss,
  granitemoe: graniteMoe,
  glm4_moe: glm4moe,
  qwen3_vl_moe: qwen3vlMoe,
  qwen3_5_moe: qwen35Moe,
  qwen3_5_moe_text: qwen35MoeText,
  qwen3_next: qwen3Next,
  lfm2,
  lfm2_moe: lfm2Moe,
  granite_h: graniteH,
  nemotron_h: nemotronH,
  deepseek_v2: deepseekV2,
  deepseek_v3: deepseekV3,
  glm4_moe_lite: glm4MoeLite,
  youtu,
  minicpm3: miniCpm3,
} as const satisfies Readonly<Record<string, Definition>>;

export type Family = keyof typeof FAMILIES;
export const FAMILY_NAMES = Object.keys(FAMILIES) as readonly Family[];

const isFamily = (name: unknown): name is Family => typeof name === "string" && Object.hasOwn(FAMILIES, name);

export function familyOf({ family }: Pick<ModelSpec, "family">): Definition {
  invariant(isFamily(family), `no family is called ${family}`);
  return FAMILIES[family];
}

/** How a model of this type, a value of config.json, chooses its tokenizer's class. */
export const tokenizerOf = (modelType: unknown): Definition["tokenizer"] =>
  isFamily(modelType) ? FAMILIES[modelType].tokenizer : { class: null, isFixed: false };

const ARCHITECTURES: ReadonlyMap<unknown, readonly (readonly [name: string, Family])[]> = Map.groupBy(
  FAMILY_NAMES.flatMap((family) => FAMILIES[family].architectures.map((name) => [name as string, family] as const)),
  ([name]) => name,
);

/** What else tells a model's family, for messages. */
function ofType({ model_type: type, text_config: text }: ConfigObject): string {
  const inner = typeof text === "object" && text !== null ? (text as ConfigObject)["model_type"] : undefined;
  const types = [type, inner].filter((name) => typeof name === "string");
  return types.length === 0 ? "" : ` (model_type ${types.join(" with a text part ")})`;
}

const isWrapper = (name: unknown): name is keyof typeof WRAPPERS => typeof name === "string" && Object.hasOwn(WRAPPERS, name);

/** Refuses is_causal of false, an encoder in transformers whatever the family, and null, one by some of its attentions. */
function checkCausal({ source, path }: ConfigReader): void {
  const given = source["is_causal"];
  if (given !== undefined && given !== true)
    throw new RequestError(
      "model.architecture",
      `${path}: is_causal is ${JSON.stringify(given)}, which makes an encoder`,
      "only causal models are supported",
    );
}

/** What the family reads, without what no family computes. */
function read(family: string, config: ConfigReader): Omit<ModelSpec, "family"> {
  checkCausal(config);
  const spec = familyOf({ family }).read(config);
  if (spec.ropes.length > 1 && spec.ropes.some(({ scaling }) => scaling?.kind === "longrope"))
    throw new RequestError(
      "model.rope",
      `${config.path}: the rope type is "longrope" for some of the layers`,
      "it is supported where all layers have one rope",
    );
  return spec;
}

/** The spec that a parsed config.json describes; `path` is for messages. Throws a RequestError "model.*" that names the key. */
export function specOf(config: ConfigObject, path: string): ModelSpec {
  const { architectures } = config;
  const [name] = Array.isArray(architectures) ? architectures : [];
  const given = new ConfigReader(config, path);
  if (isWrapper(name)) {
    const { family, config: own, decided } = towerOf(WRAPPERS[name], given);
    return { family, ...read(family, own), ...decided };
  }
  const family = ARCHITECTURES.get(name)?.find(([, family]) => familyOf({ family }).isFor?.(given) ?? true)?.[1];
  if (family === undefined)
    throw new RequestError(
      "model.architecture",
      `${path}: architectures is ${JSON.stringify(architectures)}${ofType(config)}, which is not supported`,
      `mlora trains ${[...ARCHITECTURES.keys(), ...Object.keys(WRAPPERS)].join(", ")}`,
    );
  return { family, ...read(family, given) };
}
