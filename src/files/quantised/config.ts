// What config.json says of quantised weights: which ways of it can be read, and all others by their names.

import { RequestError } from "../../base/errors.ts";
import type { JsonObject } from "../json.ts";
import type { Block } from "../stored.ts";

/** How a model's files hold weights. `block`: rows and columns that share a scale, where the file's scales do not say it. */
export type Quantisation =
  | { readonly method: "fp8"; readonly block: Block | null }
  | { readonly method: "bitsandbytes" | "mxfp4" };

const HINT =
  "mlora reads FP8 with scales (quant_method fp8, compressed-tensors of 8-bit floats, fbgemm_fp8), bitsandbytes' nf4, mxfp4, " +
  "and GGUF files; take the model in one of these, or in bf16, fp16 or fp32";

const refused = (path: string, what: string): RequestError =>
  new RequestError("model.quantized", `${path}: quantization_config${what}`, HINT);

const isObject = (value: unknown): value is JsonObject => typeof value === "object" && value !== null && !Array.isArray(value);

/** Of a config.json, or null for weights as they are. Throws a RequestError, `model.quantized`, for what is not known. */
export function quantisationOf(config: JsonObject, path: string): Quantisation | null {
  const inner = config["text_config"];
  const found = config["quantization_config"] ?? (isObject(inner) ? inner["quantization_config"] : null);
  if (found == null) return null;
  if (!isObject(found)) throw refused(path, ` is ${JSON.stringify(found)}, expected an object`);
  const method = found["quant_method"] ?? (found["load_in_4bit"] || found["load_in_8bit"] ? "bitsandbytes" : null);
  switch (method) {
    case "fp8":
      return fp8(found, path);
    case "fbgemm_fp8":
      return { method: "fp8", block: null };
    case "compressed-tensors":
      return compressed(found, path);
    case "mxfp4":
      return { method: "mxfp4" };
    case "bitsandbytes":
      return bitsandbytes(found, path);
    default:
      throw refused(path, `.quant_method is ${JSON.stringify(method)}`);
  }
}

/** The config.json of the same model with weights as they are. */
export function unquantised({ quantization_config: _, ...config }: JsonObject): JsonObject {
  const { text_config: text } = config;
  if (!isObject(text)) return config;
  const { quantization_config: __, ...inner } = text;
  return { ...config, text_config: inner };
}

/** transformers' FineGrainedFP8Config, whose blocks are 128 x 128 unless it says otherwise; null is one scale for a weight. */
function fp8(found: JsonObject, path: string): Quantisation {
  const { fmt, weight_block_size: block = [128, 128] } = found;
  if (fmt != null && fmt !== "e4m3") throw refused(path, `.fmt is ${JSON.stringify(fmt)}, expected "e4m3"`);
  return { method: "fp8", block: blockOf(block, path, ".weight_block_size") };
}

function blockOf(value: unknown, path: string, key: string): Block | null {
  if (value == null) return null;
  const isSize = (n: unknown) => Number.isSafeInteger(n) && (n as number) > 0;
  if (!Array.isArray(value) || value.length !== 2 || !value.every(isSize))
    throw refused(path, `${key} is ${JSON.stringify(value)}, expected rows and columns`);
  return value as unknown as Block;
}

/** Both store 8-bit floats alike; the second is of weights alone, whose inputs stay as they are. */
const FORMATS: readonly unknown[] = ["float-quantized", "naive-quantized"];
/** Read below, or without an effect on what the weights are. */
const KEYS = [
  ...["quant_method", "format", "config_groups", "ignore", "kv_cache_scheme", "quantization_status", "version"],
  ...["global_compression_ratio", "run_compressed", "dequantize", "use_optimized_inference"],
];
const isEmpty = (value: unknown): boolean => value == null || (isObject(value) && Object.keys(value).length === 0);

/**
 * One way for all weights: 8-bit floats that are scaled by weight, row or block. Other keys change what a layer computes:
 * transform_config rotates the inputs of weights that are stored rotated, moe_sparsity_config leaves out experts.
 */
function compressed(found: JsonObject, path: string): Quantisation {
  const { format, config_groups: groups, sparsity_config: sparsity } = found;
  if (!FORMATS.includes(format)) throw refused(path, `.format is ${JSON.stringify(format)}`);
  const isDense = isObject(sparsity) && sparsity["format"] === "dense";
  for (const [key, value] of Object.entries(found))
    if (!KEYS.includes(key) && !isEmpty(value) && !(key === "sparsity_config" && isDense))
      throw refused(path, `.${key} is ${JSON.stringify(value)}`);
  const blocks = Object.entries(isObject(groups) ? groups : {}).map(([name, group]) => {
    const at = `.config_groups.${name}.weights`;
    const weights = isObject(group) ? group["weights"] : null;
    if (!isObject(weights)) throw refused(path, `${at} is ${JSON.stringify(weights)}, expected an object`);
    const own = (group as JsonObject)["format"] ?? format;
    if (!FORMATS.includes(own)) throw refused(path, `.config_groups.${name}.format is ${JSON.stringify(own)}`);
    const { num_bits: bits, type, strategy, block_structure: block, symmetric = true } = weights;
    const isKnown = bits === 8 && type === "float" && ["tensor", "channel", "block"].includes(`${strategy}`);
    if (!isKnown) throw refused(path, `${at} is ${type} of ${bits} bits by ${strategy}`);
    if (symmetric !== true) throw refused(path, `${at}.symmetric is ${JSON.stringify(symmetric)}`);
    return strategy === "block" ? blockOf(block, path, `${at}.block_structure`) : null;
  });
  const [block = null] = blocks;
  if (blocks.length === 0) throw refused(path, ".config_groups names no weights");
  if (blocks.some((other) => `${other}` !== `${block}`)) throw refused(path, ".config_groups has several sizes of blocks");
  return { method: "fp8", block };
}

function bitsandbytes(found: JsonObject, path: string): Quantisation {
  const of4 = found["load_in_4bit"] ?? found["_load_in_4bit"];
  if (of4 !== true) throw refused(path, " is bitsandbytes' LLM.int8");
  const type = found["bnb_4bit_quant_type"] ?? "fp4"; // the library's own default
  if (type !== "nf4") throw refused(path, `.bnb_4bit_quant_type is ${JSON.stringify(type)}`);
  return { method: "bitsandbytes" };
}
