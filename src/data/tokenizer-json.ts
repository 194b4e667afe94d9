// What transformers makes of a tokenizer.json. Its AutoTokenizer (5.24) takes the file as it stands for most models; some
// classes, named in tokenizer_config.json or belonging to the model's type, take only vocabulary, merges and added tokens from
// it and build the rest anew. An adapter is trained on the ids that it will be served with, so the same is done here.

import { tokenizerOf } from "../families/registry.ts";
import type { Json } from "./pre-tokenise.ts";

const QWEN2 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** Marks are part of a word. */
const QWEN3_5 = QWEN2.replace("?\\p{L}+|", "?[\\p{L}\\p{M}]+|").replace("[^\\s\\p{L}\\p{N}]", "[^\\s\\p{L}\\p{M}\\p{N}]");

/** The parts of a class that builds its own; `config` is tokenizer_config.json. */
const CLASSES: Readonly<Record<string, (config: Json) => Json>> = {
  LlamaTokenizer: (config) => sentencePiece(config, config["legacy"] === true ? "always" : "first"),
  CodeLlamaTokenizer: (config) => sentencePiece(config, "first"),
  Qwen2Tokenizer: (config) => qwen(config, QWEN2),
  Qwen3_5Tokenizer: (config) => qwen(config, QWEN3_5),
  GPT2Tokenizer: gpt2,
  CodeGenTokenizer: gpt2,
  GemmaTokenizer: () => ({
    normalizer: { type: "Replace", pattern: { String: " " }, content: "▁" },
    pre_tokenizer: { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false },
    decoder: { type: "Sequence", decoders: spelled },
    model: { fuse_unk: true, byte_fallback: true, ignore_merges: false },
  }),
};

const spelled = [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }];
const byteLevel = (prefix: boolean, regex: boolean) => ({ type: "ByteLevel", add_prefix_space: prefix, use_regex: regex });

const qwen = (config: Json, regex: string): Json => ({
  normalizer: { type: "NFC" },
  pre_tokenizer: {
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false },
      byteLevel(config["add_prefix_space"] === true, false),
    ],
  },
  decoder: { type: "ByteLevel" },
  model: { unk_token: null, fuse_unk: false, byte_fallback: false, ignore_merges: false },
});

function sentencePiece(config: Json, scheme: "always" | "first"): Json {
  const prefix = config["add_prefix_space"] !== false;
  return {
    normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: prefix ? scheme : "never", split: false },
    decoder: {
      type: "Sequence",
      decoders: [...spelled, ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [])],
    },
    model: { unk_token: null, fuse_unk: true, byte_fallback: true, ignore_merges: false },
  };
}

function gpt2(config: Json): Json {
  return {
    normalizer: null,
    pre_tokenizer: byteLevel(config["add_prefix_space"] === true, true),
    decoder: { type: "ByteLevel" },
    model: { unk_token: null, fuse_unk: false, byte_fallback: false, ignore_merges: false },
  };
}

/**
 * Rewrites a parsed tokenizer.json in place to what transformers computes with it. `modelType` is that of config.json. Throws
 * an Error that says what of it is not supported.
 */
export function resolveTokenizer(json: Json, config: Json, modelType: unknown): void {
  const model = (json["model"] ?? {}) as Json;
  if (model["type"] === undefined && Array.isArray(model["merges"])) model["type"] = "BPE"; // as files of 2020 leave it out
  if (model["type"] !== "BPE") throw new Error(`its model is ${JSON.stringify(model["type"])}; supported is "BPE"`);
  for (const key of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"])
    if (model[key])
      throw new Error(`its model has ${key} = ${JSON.stringify(model[key])}, which is not supported; expected none`);
  const name = classOf(json, config, modelType);
  const built = name === null ? undefined : CLASSES[name]?.(config);
  if (built) Object.assign(json, built, { model: { ...model, ...(built["model"] as Json) } });
  checkVocabulary(json["model"] as Json);
  checkMerges(json["model"] as Json);
}

/** The class that AutoTokenizer takes, without "Fast"; null for one that takes the file as it stands. */
function classOf(json: Json, config: Json, modelType: unknown): string | null {
  const ofModel = tokenizerOf(modelType);
  const named = config["tokenizer_class"];
  if (ofModel.isFixed || typeof named !== "string") return ofModel.class;
  const name = named.replace(/Fast$/, "");
  const byteLevel = JSON.stringify({ ...json, model: null, added_tokens: null }).includes('"ByteLevel"');
  return name === "LlamaTokenizer" && byteLevel ? null : name;
}

/** Ids are rows of the embedding; the tokenizers library refuses a file with any other. */
function checkVocabulary({ vocab = {} }: Json): void {
  if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab)) throw new Error("its vocabulary is no object");
  for (const [word, id] of Object.entries(vocab))
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= 2 ** 32)
      throw new Error(
        `its vocabulary has ${JSON.stringify(id)} for ${JSON.stringify(word)}, expected a whole number, 0 or more`,
      );
}

/** A merge of words that the vocabulary lacks would come out as nothing. */
function checkMerges(model: Json): void {
  const vocab = new Map(Object.entries((model["vocab"] ?? {}) as Json));
  for (const merge of (model["merges"] ?? []) as unknown[]) {
    const [a, b] = typeof merge === "string" ? merge.split(" ", 2) : (merge as string[]);
    const missing = [a, b, `${a}${b}`].find((word) => word === undefined || !vocab.has(word));
    if (missing !== undefined)
      throw new Error(`its merge ${JSON.stringify(merge)} makes or needs a word that its vocabulary lacks`);
  }
  const unk = model["unk_token"];
  if (typeof unk === "string" && !vocab.has(unk))
    throw new Error(`its unk_token ${JSON.stringify(unk)} is not in its vocabulary`);
}
