// config.json of a Hugging Face model, as the numbers of base/spec. What is not of the Llama kind is refused, with what was
// found and what is supported. Defaults of missing keys are those of transformers' own configuration classes.

import { statSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec, RopeScaling } from "../base/spec.ts";
import { type JsonObject, readJsonObject } from "./json.ts";

const ARCHITECTURES = {
  LlamaForCausalLM: "llama",
  MistralForCausalLM: "mistral",
  Qwen2ForCausalLM: "qwen2",
  Qwen3ForCausalLM: "qwen3",
} as const satisfies Record<string, ModelSpec["family"]>;
type Family = ModelSpec["family"];

/** What transformers assumes of a family when its config.json is silent. */
const DEFAULTS: Readonly<
  Record<
    Family,
    { readonly kvHeads: number | null; readonly eps: number; readonly window: number | null; readonly positions: number }
  >
> = {
  llama: { kvHeads: null, eps: 1e-6, window: null, positions: 2048 },
  mistral: { kvHeads: 8, eps: 1e-6, window: 4096, positions: 4096 * 32 },
  qwen2: { kvHeads: 32, eps: 1e-6, window: 4096, positions: 32768 },
  qwen3: { kvHeads: 32, eps: 1e-6, window: 4096, positions: 32768 },
};

/** Reads the spec of the model in `folder`. Throws a RequestError "model.*" that names file and key. */
export function readModelSpec(folder: string): ModelSpec {
  const stat = statSync(folder, { throwIfNoEntry: false });
  if (!stat?.isDirectory())
    throw new RequestError(
      "model.folder",
      `${folder}: ${stat ? "is not a folder" : "no such folder"}`,
      "model.path is a Hugging Face model's folder",
    );
  const path = join(folder, "config.json");
  if (!statSync(path, { throwIfNoEntry: false }))
    throw new RequestError("model.config", `${folder} has no config.json`, "model.path is a Hugging Face model's folder");
  return specOf(readJsonObject(path, "model.config"), path);
}

/** The spec that a parsed config.json describes; `path` names it in messages. */
export function specOf(config: JsonObject, path: string): ModelSpec {
  const read = new Reader(config, path);
  const family = familyOf(config, read);
  const defaults = DEFAULTS[family];
  const heads = read.count("num_attention_heads", 32);
  const hidden = read.count("hidden_size", 4096);
  if (config["head_dim"] == null && hidden % heads !== 0)
    throw read.wrong("hidden_size", `${hidden} is not a multiple of num_attention_heads, ${heads}`);
  const headDim = read.count("head_dim", family === "qwen3" ? 128 : hidden / heads);
  if (headDim % 2 !== 0) throw read.wrong("head_dim", `${headDim} is odd; rotary embedding needs pairs`);
  const kvHeads = read.count("num_key_value_heads", defaults.kvHeads ?? heads);
  if (heads % kvHeads !== 0)
    throw read.wrong("num_key_value_heads", `${kvHeads} does not divide num_attention_heads, ${heads}`);
  const layers = read.count("num_hidden_layers", 32);
  const rope = ropeOf(config, read);
  const bias = read.flag("attention_bias", false) && (family === "llama" || family === "qwen3");
  return {
    family,
    layers,
    hidden,
    intermediate: read.count("intermediate_size", family === "llama" ? 11008 : family === "mistral" ? 14336 : 22016),
    heads,
    kvHeads,
    headDim,
    vocab: read.count("vocab_size", family.startsWith("qwen") ? 151936 : 32000),
    normEps: read.number("rms_norm_eps", defaults.eps),
    ...rope,
    maxPositions: read.count("max_position_embeddings", defaults.positions),
    windows: windowsOf(config, family, layers, read, defaults.window),
    qkvBias: family === "qwen2" || bias,
    oBias: bias,
    mlpBias: family === "llama" && read.flag("mlp_bias", false),
    qkNorm: family === "qwen3",
    tiedEmbeddings: read.flag("tie_word_embeddings", false),
  };
}

const supported = `mlora trains ${Object.keys(ARCHITECTURES).join(", ")}`;

function familyOf(config: JsonObject, read: Reader): Family {
  const { architectures } = config;
  const [name] = Array.isArray(architectures) ? architectures : [];
  if (typeof name !== "string" || !Object.hasOwn(ARCHITECTURES, name))
    throw new RequestError("model.architecture", `${read.path}: architectures is ${JSON.stringify(architectures)}`, supported);
  for (const [key, wanted] of [
    ["hidden_act", "silu"],
    ["partial_rotary_factor", 1],
  ] as const)
    if (config[key] != null && config[key] !== wanted)
      throw new RequestError(
        "model.architecture",
        `${read.path}: ${key} is ${JSON.stringify(config[key])}`,
        `only ${JSON.stringify(wanted)} is supported`,
      );
  if (config["quantization_config"] != null)
    throw new RequestError(
      "model.quantized",
      `${read.path}: the weights are quantized (quantization_config)`,
      "take the model in bf16, fp16 or fp32",
    );
  return ARCHITECTURES[name as keyof typeof ARCHITECTURES];
}

/** rope_theta and rope_scaling, or rope_parameters since transformers 5. */
function ropeOf(config: JsonObject, read: Reader): { readonly ropeTheta: number; readonly ropeScaling: RopeScaling | null } {
  const key = config["rope_parameters"] == null ? "rope_scaling" : "rope_parameters";
  const table = config[key];
  if (table != null && (typeof table !== "object" || Array.isArray(table)))
    throw read.wrong(key, `is ${JSON.stringify(table)}, wants an object`);
  for (const [layers, value] of Object.entries(table ?? {}))
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      throw new RequestError(
        "model.rope",
        `${read.path}: ${key}.${layers} is ${JSON.stringify(value)}, a table for some of the layers`,
        "only one rope for all layers is supported",
      );
  const inner = new Reader((table ?? {}) as JsonObject, `${read.path}: ${key}`);
  const type = inner.source["rope_type"] ?? inner.source["type"] ?? "default";
  const ropeTheta = inner.source["rope_theta"] == null ? read.number("rope_theta", 10000) : inner.number("rope_theta", null);
  if (inner.source["partial_rotary_factor"] != null && inner.source["partial_rotary_factor"] !== 1)
    throw new RequestError(
      "model.rope",
      `${inner.path}: partial_rotary_factor is ${inner.source["partial_rotary_factor"]}`,
      "only 1 is supported",
    );
  if (type === "default") return { ropeTheta, ropeScaling: null };
  if (type === "linear") return { ropeTheta, ropeScaling: { kind: "linear", factor: inner.number("factor", null) } };
  if (type !== "llama3")
    throw new RequestError(
      "model.rope",
      `${inner.path}: the rope type is ${JSON.stringify(type)}`,
      "supported are default, linear and llama3",
    );
  const [lowFreqFactor, highFreqFactor] = [inner.number("low_freq_factor", null), inner.number("high_freq_factor", null)];
  if (highFreqFactor <= lowFreqFactor)
    throw inner.wrong("high_freq_factor", `${highFreqFactor} is not above low_freq_factor, ${lowFreqFactor}`);
  const originalMaxPositions = inner.count("original_max_position_embeddings", null);
  return {
    ropeTheta,
    ropeScaling: { kind: "llama3", factor: inner.number("factor", null), lowFreqFactor, highFreqFactor, originalMaxPositions },
  };
}

/** The sliding window of each layer, as transformers decides it. */
function windowsOf(
  config: JsonObject,
  family: Family,
  layers: number,
  read: Reader,
  fallback: number | null,
): (number | null)[] {
  const all = (window: (layer: number) => number | null) => Array.from({ length: layers }, (_, layer) => window(layer));
  if (family === "llama") return all(() => null);
  const size = config["sliding_window"] === null ? null : read.count("sliding_window", fallback);
  if (family === "mistral") return all(() => size);
  if (!read.flag("use_sliding_window", false) || size === null) return all(() => null);
  const types = config["layer_types"];
  if (Array.isArray(types)) {
    if (types.length !== layers) throw read.wrong("layer_types", `has ${types.length} entries for ${layers} layers`);
    return all((layer) => (types[layer] === "sliding_attention" ? size : null));
  }
  const full = config["max_window_layers"] === undefined ? 28 : read.whole("max_window_layers");
  return all((layer) => (layer >= full ? size : null));
}

/** A sane bound of any size in a config: beyond it, a number is a mistake. */
const LARGEST = 1 << 30;

/** Values of a JSON object, checked; errors name file and key. */
class Reader {
  constructor(
    readonly source: JsonObject,
    readonly path: string,
  ) {}

  wrong(key: string, what: string): RequestError {
    return new RequestError("model.config", `${this.path}: ${key} ${what}`);
  }

  /** A finite number above 0; `fallback` null: it must be there. */
  number(key: string, fallback: number | null): number {
    const value = this.source[key] ?? fallback;
    if (value === null) throw this.wrong(key, "is missing");
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
      throw this.wrong(key, `is ${JSON.stringify(value)}, wants a number above 0`);
    return value;
  }

  /** A whole number from 1 on. */
  count(key: string, fallback: number | null): number {
    const value = this.number(key, fallback);
    if (!Number.isInteger(value) || value > LARGEST)
      throw this.wrong(key, `is ${value}, wants a whole number from 1 to ${LARGEST}`);
    return value;
  }

  /** A whole number from 0 on. */
  whole(key: string): number {
    const value = this.source[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > LARGEST)
      throw this.wrong(key, `is ${JSON.stringify(value)}, wants a whole number from 0 to ${LARGEST}`);
    return value;
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.source[key] ?? fallback;
    if (typeof value !== "boolean") throw this.wrong(key, `is ${JSON.stringify(value)}, wants true or false`);
    return value;
  }
}
