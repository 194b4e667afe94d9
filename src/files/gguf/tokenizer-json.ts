// The tokenizer that a GGUF lists, as the tokenizer.json and tokenizer_config.json of its model: for byte-level BPE of the
// kinds whose other parts are known by llama.cpp's name for them.

import type { JsonObject } from "../json.ts";
import { type GgufValue, openGguf } from "./header.ts";

type Kind = {
  /** Values of `general.architecture` whose models are known to have it. */
  readonly architectures: readonly string[];
  readonly parts: JsonObject;
  readonly ignoreMerges: boolean;
  /** Whether a text begins with the BOS where `add_bos_token` is missing. */
  readonly addBos: boolean;
};

const WORDS = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const byteLevel = (regex: boolean) => ({ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: regex });
const split = (digits: string) => ({
  type: "Sequence",
  pretokenizers: [{ type: "Split", pattern: { Regex: WORDS(digits) }, behavior: "Isolated", invert: false }, byteLevel(false)],
});

const LLAMA3: Kind = {
  architectures: ["llama"],
  parts: { normalizer: null, pre_tokenizer: split("\\p{N}{1,3}") },
  ignoreMerges: true,
  addBos: true,
};

/** By `tokenizer.ggml.pre`. */
const KINDS: Readonly<Record<string, Kind>> = {
  ...{ "llama-bpe": LLAMA3, llama3: LLAMA3, "llama-v3": LLAMA3 },
  qwen2: {
    architectures: ["qwen2", "qwen3"],
    parts: { normalizer: { type: "NFC" }, pre_tokenizer: split("\\p{N}") },
    ignoreMerges: false,
    addBos: false,
  },
  // every digit by itself, then words as in GPT-2
  smollm: {
    architectures: ["llama"],
    parts: {
      normalizer: null,
      pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, byteLevel(true)] },
    },
    ignoreMerges: false,
    addBos: false,
  },
};

/** ggml's types of tokens. Bytes and unknown ones are of other models than byte-level BPE. */
const [NORMAL, CONTROL, USER, UNUSED] = [1, 3, 4, 5];
const [TOKENS, TYPES, MERGES] = ["tokens", "token_type", "merges"].map((name) => `tokenizer.ggml.${name}`) as [
  string,
  string,
  string,
];

export type TokenizerFiles = Readonly<Record<"tokenizer.json" | "tokenizer_config.json", JsonObject>>;

/** Null where it is of another kind, or not all there. */
export function tokenizerOfGguf(path: string): TokenizerFiles | null {
  using file = openGguf(path, [TOKENS, TYPES, MERGES]);
  const { metadata } = file;
  const pre = `${metadata.get("tokenizer.ggml.pre")}`;
  const kind = Object.hasOwn(KINDS, pre) ? KINDS[pre] : undefined;
  const architecture = `${metadata.get("general.architecture")}`;
  const isKnown = metadata.get("tokenizer.ggml.model") === "gpt2" && kind?.architectures.includes(architecture);
  if (!kind || !isKnown || metadata.get("tokenizer.ggml.add_space_prefix") === true) return null;
  const [tokens, types, merges] = [TOKENS, TYPES, MERGES].map((key) => metadata.get(key)) as (
    | readonly GgufValue[]
    | undefined
  )[];
  if (![tokens, types, merges].every(Array.isArray) || types!.length !== tokens!.length) return null;
  const texts = tokens as readonly string[];
  if (types!.some((type) => ![NORMAL, CONTROL, USER, UNUSED].includes(type as number))) return null;
  const ofType = (...which: number[]) =>
    texts.flatMap((content, id) => (which.includes(types![id] as number) ? [{ id, content }] : []));
  const idOf = (name: string): string | null => {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    return typeof id === "number" ? (texts[id] ?? null) : null;
  };
  const [bos, eos, pad] = [idOf("bos"), idOf("eos"), idOf("padding")];
  const template = metadata.get("tokenizer.chat_template");
  const addBos = metadata.get("tokenizer.ggml.add_bos_token") ?? kind.addBos;
  return {
    "tokenizer.json": {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: ofType(CONTROL, USER).map(({ id, content }) => ({
        ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false },
        special: types![id] === CONTROL,
      })),
      ...kind.parts,
      post_processor: addBos === true && bos !== null ? beginningWith(bos, texts.indexOf(bos)) : null,
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
        ...{ fuse_unk: false, byte_fallback: false, ignore_merges: kind.ignoreMerges },
        vocab: Object.fromEntries(ofType(NORMAL).map(({ id, content }) => [content, id])),
        merges,
      },
    },
    "tokenizer_config.json": {
      tokenizer_class: "PreTrainedTokenizerFast",
      ...(bos === null ? {} : { bos_token: bos }),
      ...(eos === null ? {} : { eos_token: eos }),
      ...(pad === null ? {} : { pad_token: pad }),
      ...(typeof template === "string" ? { chat_template: template } : {}),
    },
  };
}

/** Puts a token before each text. */
function beginningWith(token: string, id: number): JsonObject {
  const [special, sequence] = [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }];
  return {
    type: "TemplateProcessing",
    single: [special, sequence],
    pair: [special, sequence, special, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}
