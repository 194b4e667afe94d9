// A whole tiny base model on disk, tokenizer and chat template among it: what a run from the command line needs.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { sizeOf } from "../../src/base/shape.ts";
import { specOf } from "../../src/families/registry.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { toBf16 } from "../../src/files/convert.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";

/** The characters that a byte-level tokenizer writes for the bytes 0 to 255 (GPT-2's table). */
function byteCharacters(): string[] {
  const plain = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(plain(byte) ? byte : next++));
}

const SPECIALS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
const CHAT =
  "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/** A byte-level tokenizer without merges: each byte is a token; `marks` are special tokens besides its own. */
export function writeByteTokenizer(folder: string, marks: readonly string[] = [], more: object = {}): void {
  const specials = [...SPECIALS, ...marks];
  const vocab = Object.fromEntries([...byteCharacters(), ...specials].map((token, id) => [token, id]));
  const special = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const tokenizer = {
    version: "1.0",
    added_tokens: specials.map((content, i) => ({ id: 256 + i, content, ...special })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab, merges: [], unk_token: null, byte_fallback: false, ignore_merges: false },
  };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  const config = { tokenizer_class: "PreTrainedTokenizerFast", eos_token: "<|end|>", chat_template: CHAT, ...more };
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config));
}

/** Writes a tokenizer of so few tokens that not every byte has one. */
export function writeSmallTokenizer(folder: string, vocab: number): void {
  const bytes = byteCharacters();
  const order = [...bytes.slice(97), ...bytes.slice(0, 97)]; // letters first
  const tokens = Object.fromEntries(order.slice(0, vocab).map((token, id) => [token, id]));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const parts = { added_tokens: [], normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel };
  const model = { type: "BPE", vocab: tokens, merges: [], unk_token: null, byte_fallback: false, ignore_merges: false };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify({ version: "1.0", ...parts, model }));
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast" }));
}

/** Writes a random model with a vocabulary of bytes: a Llama, unless `more` of its config.json says otherwise. */
export function writeTinyModel(folder: string, layers = 2, more: object = {}): void {
  mkdirSync(folder, { recursive: true });
  const config = {
    architectures: ["LlamaForCausalLM"],
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: layers,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    vocab_size: 256 + SPECIALS.length,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
    ...more,
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const rng = new Rng(3);
  const tensors = [...tensorShapes(specOf(config, "config.json"))].map(([name, shape]) => {
    const values = Float32Array.from({ length: sizeOf(shape) }, () => (name.includes("norm") ? 1 : 0) + 0.15 * rng.normal());
    return { name, dtype: "bf16" as const, shape, data: toBf16(values) };
  });
  writeSafetensors(join(folder, "model.safetensors"), tensors);
  writeByteTokenizer(folder);
}
