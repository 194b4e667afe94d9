// The config.json that a GGUF's metadata stands for, for the families of llama.cpp that are known here.

import { RequestError } from "../../base/errors.ts";
import type { JsonObject } from "../json.ts";
import type { GgufFile, GgufValue } from "./header.ts";
import { llama3Scaling } from "./rope.ts";

type Architecture = {
  readonly name: string;
  readonly modelType: string;
  /** Rows of q and k lie in the order of pairs that are rotated together: llama.cpp turns neighbours, Hugging Face halves. */
  readonly isPermuted: boolean;
  /** Keys of config.json that say whether linears have biases, each with a bias that is there if they have. */
  readonly biases: Readonly<Record<string, string>>;
  /** What it is with a sliding window; null where a window is not known. */
  readonly windowed: Architecture | null;
};
const ATTENTION = { attention_bias: "blk.0.attn_q.bias" };
const plain = { isPermuted: false, biases: {}, windowed: null } as const;
/** By `general.architecture`. llama.cpp has Mistral as a llama. */
const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  llama: {
    name: "LlamaForCausalLM",
    modelType: "llama",
    isPermuted: true,
    biases: { ...ATTENTION, mlp_bias: "blk.0.ffn_gate.bias" },
    windowed: { ...plain, name: "MistralForCausalLM", modelType: "mistral", isPermuted: true },
  },
  qwen2: { ...plain, name: "Qwen2ForCausalLM", modelType: "qwen2" },
  qwen3: { ...plain, name: "Qwen3ForCausalLM", modelType: "qwen3", biases: ATTENTION },
};

/** Keys that say nothing of what a layer computes, or the same as others. */
const SILENT = new Set(["context_length", "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_used_count"]);

/** Keys that change what a layer computes, with the value that changes nothing. */
const NEUTRAL: Readonly<Record<string, number | boolean>> = {
  ...{ embedding_scale: 1, residual_scale: 1, logit_scale: 1, "attention.scale": 0, "attention.clamp_kqv": 0 },
  ...{ "attention.max_alibi_bias": 0, attn_logit_softcapping: 0, final_logit_softcapping: 0, expert_count: 0 },
  ...{ "attention.causal": true, use_parallel_residual: false, "rope.scaling.attn_factor": 1 },
};

/** What a GGUF says of its model. `unknown`: keys of the architecture that nothing here knows. */
export type GgufConfig = { readonly config: JsonObject; readonly isPermuted: boolean; readonly unknown: readonly string[] };

/** Throws a RequestError, `gguf.config` or `model.architecture`, that names the key. */
export function ggufConfig(file: GgufFile): GgufConfig {
  const { path, metadata, tensors } = file;
  const named = metadata.get("general.architecture");
  const known = typeof named === "string" && Object.hasOwn(ARCHITECTURES, named) ? ARCHITECTURES[named]! : null;
  if (known === null)
    throw new RequestError(
      "model.architecture",
      `${path}: general.architecture is ${shown(named)}`,
      `mlora reads ${Object.keys(ARCHITECTURES).join(", ")} from GGUF; take another model in safetensors`,
    );
  const asked = new Set<string>();
  const reader = new Reader(path, `${named}.`, metadata, asked);
  const heads = reader.count("attention.head_count");
  const hidden = reader.count("embedding_length");
  const headDim = reader.maybe("attention.key_length") ?? hidden / heads;
  reader.only("attention.value_length", headDim, "heads of values have the size of keys");
  reader.only("rope.dimension_count", headDim, "all of a head is rotated");
  for (const [key, neutral] of Object.entries(NEUTRAL)) {
    const value = reader.value(key);
    if (value !== undefined && Number(value) !== Number(neutral))
      throw reader.wrong(key, `is ${shown(value)}, which is not read`);
  }
  const window = reader.maybe("attention.sliding_window");
  const of = window === null ? known : known.windowed;
  if (of === null) throw reader.wrong("attention.sliding_window", `is ${window}; a window of a ${named} is not read`);
  const embedding = tensors.get("token_embd.weight");
  if (embedding?.shape.length !== 2)
    throw new RequestError(
      "gguf.config",
      `${path}: ${embedding ? "token_embd.weight is no matrix" : "has no token_embd.weight"}`,
    );
  const theta = reader.float("rope.freq_base", 10000);
  const scaling = ropeScaling(reader) ?? llama3Scaling(file, theta, headDim);
  const config = {
    architectures: [of.name],
    model_type: of.modelType,
    hidden_size: hidden,
    intermediate_size: reader.count("feed_forward_length"),
    num_hidden_layers: reader.count("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: reader.maybe("attention.head_count_kv") ?? heads,
    head_dim: headDim,
    vocab_size: embedding.shape[0]!,
    max_position_embeddings: reader.count("context_length"),
    hidden_act: "silu",
    rms_norm_eps: reader.float("attention.layer_norm_rms_epsilon", null),
    rope_theta: theta,
    rope_scaling: scaling,
    tie_word_embeddings: !tensors.has("output.weight"),
    ...(window === null ? {} : { sliding_window: window }),
    ...Object.fromEntries(Object.entries(of.biases).map(([key, bias]) => [key, tensors.has(bias)])),
    ...tokenIds(metadata),
  };
  const keys = [...metadata.keys()].filter((key) => key.startsWith(`${named}.`)).map((key) => key.slice(`${named}.`.length));
  return { config, isPermuted: of.isPermuted, unknown: keys.filter((key) => !asked.has(key) && !SILENT.has(key)) };
}

const shown = (value: GgufValue | undefined): string =>
  value === undefined ? "missing" : typeof value === "bigint" ? `${value}` : JSON.stringify(value);

/** Values by key; each that is asked for is noted. */
class Reader {
  constructor(
    readonly path: string,
    readonly prefix: string,
    readonly metadata: ReadonlyMap<string, GgufValue>,
    readonly asked: Set<string>,
  ) {}

  wrong(key: string, what: string): RequestError {
    return new RequestError("gguf.config", `${this.path}: ${this.prefix}${key} ${what}`, "take the model in safetensors");
  }

  value(key: string): GgufValue | undefined {
    this.asked.add(key);
    const value = this.metadata.get(this.prefix + key);
    if (!Array.isArray(value) || value.length === 0) return value;
    if (value.every((one) => one === value[0])) return value[0]; // one for each layer
    throw this.wrong(key, "differs from layer to layer, which is not read");
  }

  /** A number above 0, or null where the key is missing. */
  maybe(key: string): number | null {
    const value = this.value(key);
    if (value === undefined) return null;
    const number = typeof value === "bigint" ? Number(value) : value;
    if (typeof number !== "number" || !Number.isFinite(number) || number <= 0)
      throw this.wrong(key, `is ${shown(value)}, expected a number above 0`);
    return number;
  }

  count(key: string): number {
    const number = this.maybe(key);
    if (number === null) throw this.wrong(key, "is missing");
    return number;
  }

  /** An f32, as the shortest decimal that it is nearest to: what was written as 1e-5 is 1e-5. */
  float(key: string, fallback: number | null): number {
    const number = this.maybe(key) ?? fallback;
    if (number === null) throw this.wrong(key, "is missing");
    for (let digits = 1; digits < 9; digits++) {
      const short = Number(number.toPrecision(digits));
      if (Math.fround(short) === Math.fround(number)) return short;
    }
    return number;
  }

  only(key: string, supported: number, why: string): void {
    const value = this.value(key);
    if (value !== undefined && Number(value) !== supported)
      throw this.wrong(key, `is ${shown(value)}; only ${supported} is read: ${why}`);
  }
}

/** Linear scaling by its own keys; other kinds are refused. */
function ropeScaling(reader: Reader): JsonObject | null {
  const type = reader.value("rope.scaling.type");
  const factor = reader.value("rope.scaling.factor") === undefined ? null : reader.float("rope.scaling.factor", null);
  const old = reader.value("rope.scale_linear") === undefined ? null : reader.float("rope.scale_linear", null);
  reader.value("rope.scaling.original_context_length");
  if (type !== undefined && type !== "none" && type !== "linear")
    throw reader.wrong("rope.scaling.type", `is ${shown(type)}; only "none" and "linear" are read`);
  const linear = type === "none" ? null : (factor ?? old);
  return linear === null || linear === 1 ? null : { rope_type: "linear", factor: linear };
}

/** Ids by Hugging Face's names; what ends a turn ends a text, too, as in llama.cpp. */
function tokenIds(metadata: ReadonlyMap<string, GgufValue>): JsonObject {
  const id = (name: string) => {
    const value = metadata.get(`tokenizer.ggml.${name}_token_id`);
    return typeof value === "number" ? [value] : [];
  };
  const ends = [...new Set([...id("eos"), ...id("eot")])];
  const [bos, pad] = [id("bos"), id("padding")];
  return {
    ...(bos.length > 0 ? { bos_token_id: bos[0] } : {}),
    ...(ends.length > 0 ? { eos_token_id: ends.length === 1 ? ends[0] : ends } : {}),
    ...(pad.length > 0 ? { pad_token_id: pad[0] } : {}),
  };
}
