// What is written into a GGUF: blocks as ggml makes them, keys that are read back, tokenizers by llama.cpp's names, and what it
// would compute otherwise is refused.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ggufVocabulary } from "../../src/data/gguf-vocabulary.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { type GgufKeys, ggufModel } from "../../src/families/gguf.ts";
import { familyOf, specOf } from "../../src/families/registry.ts";
import { openGguf } from "../../src/files/gguf/header.ts";
import { tokenizerOfGguf } from "../../src/files/gguf/tokenizer-json.ts";
import { ggufTypeOf } from "../../src/files/gguf/types.ts";
import { ggufHeader } from "../../src/files/gguf/writer.ts";
import { type EncodedType, encodeValues, storedValues } from "../../src/files/stored.ts";
import { goldenFolder, goldenKinds } from "../helpers/golden-tokenizers.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-gguf-write-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const GOLDEN = JSON.parse(readFileSync(join(import.meta.dir, "../golden/gguf/blocks.json"), "utf8"));
const bytesIn = (text: string) => new Uint8Array(Buffer.from(text, "base64"));
const values = new Float32Array(bytesIn(GOLDEN.values).buffer);

describe.each(Object.keys(GOLDEN.blocks) as EncodedType[])("%s", (type) => {
  test("is what ggml makes of the values, whatever is encoded with them", () => {
    const whole = encodeValues(type, values);
    expect(Buffer.from(whole).toString("base64")).toBe(GOLDEN.blocks[type]);
    const some = encodeValues(type, values.slice(256, 512));
    expect([...some]).toEqual([...whole.subarray(some.length, 2 * some.length)]);
  });

  test("reads as values close to them", () => {
    const read = new Float32Array(256);
    storedValues(type, encodeValues(type, values.slice(0, 256)), 256, "f32", new Uint8Array(read.buffer));
    const worst = Math.max(...read.map((value, i) => Math.abs(value - values[i]!)));
    expect(worst).toBeLessThan(type.startsWith("Q4") ? 0.006 : type.startsWith("Q5") ? 0.004 : 0.0015);
  });
});

/** A GGUF of keys alone, opened. */
function written(keys: GgufKeys, raw: readonly Uint8Array[] = []): string {
  const path = join(root, `${Math.random()}.gguf`);
  writeFileSync(path, ggufHeader(keys, [], raw));
  return path;
}

test("keys of all types are read back, and copied as they are", () => {
  const keys: GgufKeys = [
    ["general.architecture", "llama"],
    ["a.text", "é\n"],
    ["a.flag", true],
    ["a.count", { u32: 4294967295 }],
    ["a.number", { f32: 0.5 }],
    ["a.texts", { strings: ["a", "", "▁b"] }],
    ["a.whole", { i32s: [1, -2] }],
    ["a.real", { f32s: [0.25, -1] }],
    ["a.flags", { booleans: [true, false] }],
  ];
  using file = openGguf(written(keys));
  const wanted = keys.map(([key, value]) => [key, typeof value === "object" ? Object.values(value)[0] : value]);
  expect([...file.metadata]).toEqual(wanted as never);
  const raw = [...file.places.values()].map(([from, to]) => {
    const bytes = new Uint8Array(to - from);
    file.read(bytes, from);
    return bytes;
  });
  using copy = openGguf(written([], raw));
  expect([...copy.metadata]).toEqual([...file.metadata]);
});

const TEXTS = ["the 3rd of March, 2021", "  Don't  stop\n\n1234567", "naïve café 東京 🙂", "<|im_start|>user\n"];
const keyOf = (keys: GgufKeys, key: string) => keys.find(([name]) => name === key)?.[1];

describe.each(goldenKinds)("the tokenizer %s", (kind) => {
  const folder = goldenFolder(kind);
  const keys = ggufVocabulary(folder, 1500);

  test("has llama.cpp's name for its pre-tokenizer", () => {
    const pre = { smollm: "smollm", llama3: "llama-bpe", qwen3: "qwen2", llama2: "default" }[kind];
    expect(keyOf(keys, "tokenizer.ggml.pre")).toBe(pre);
    expect(keyOf(keys, "tokenizer.ggml.model")).toBe(kind === "llama2" ? "llama" : "gpt2");
    expect(keyOf(keys, "tokenizer.chat_template")).toBe(readFileSync(join(folder, "chat_template.jinja"), "utf8"));
  });

  test("comes back as the same tokenizer", () => {
    if (kind === "llama2") return; // SentencePiece's are not read from a GGUF
    const architecture = kind === "qwen3" ? "qwen3" : "llama";
    const files = tokenizerOfGguf(written([["general.architecture", architecture], ...keys]))!;
    const back = mkdtempSync(join(root, "tokenizer-"));
    for (const [name, content] of Object.entries(files)) writeFileSync(join(back, name), JSON.stringify(content));
    const [own, theirs] = [loadTokenizer(back), loadTokenizer(folder)];
    expect([own.bos, own.eos, own.addBos, own.chatTemplate]).toEqual([
      ...[theirs.bos, theirs.eos, theirs.addBos, theirs.chatTemplate],
    ]);
    for (const text of TEXTS) expect(own.encode(text), text).toEqual(theirs.encode(text));
  });
});

test("pieces have scores in the order of their merges, and bytes and marks their types", () => {
  const folder = goldenFolder("llama2");
  const { model, added_tokens: added } = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
  const keys = ggufVocabulary(folder, Object.keys(model.vocab).length);
  const { f32s: scores } = keyOf(keys, "tokenizer.ggml.scores") as { f32s: number[] };
  const { i32s: types } = keyOf(keys, "tokenizer.ggml.token_type") as { i32s: number[] };
  const made = model.merges.map(
    (merge: string | string[]) =>
      model.vocab[
        [merge]
          .flat()
          .join("")
          .replace(/ (?=.)/, "")
      ],
  );
  const firsts = [...new Set(made as number[])].map((id) => scores[id]!);
  expect(firsts).toEqual(firsts.toSorted((a, b) => b - a));
  expect(types[model.vocab["<0x0A>"]]).toBe(6);
  for (const { id, special } of added) expect([2, 3, 4], `${id}`).toContain(types[id]! === 4 && special ? 0 : types[id]!);
});

test("a pre-tokenizer that llama.cpp has no name for is refused by its text", () => {
  const folder = join(root, "other");
  cpSync(goldenFolder("llama3"), folder, { recursive: true });
  const path = join(folder, "tokenizer.json");
  writeFileSync(path, readFileSync(path, "utf8").replace("{1,3}", "{1,4}"));
  const error = refused(() => ggufVocabulary(folder, 1500));
  expect(error.message).toContain("no name for this pre-tokenizer");
  expect(error.message).toContain("{1,4}");
});

const CONFIG = {
  ...{ hidden_size: 64, intermediate_size: 96, num_hidden_layers: 8, num_attention_heads: 4, num_key_value_heads: 2 },
  ...{ vocab_size: 100, max_position_embeddings: 512 },
};
const ggufOf = (architecture: string, more: object = {}) => {
  const config = { ...CONFIG, architectures: [architecture], ...more };
  const spec = specOf(config, "config.json");
  return ggufModel(familyOf(spec).gguf, spec, config);
};

test.each([
  ["Qwen3MoeForCausalLM", {}, "mlora does not write those of qwen3_moe"],
  ["Gemma3ForCausalLM", { query_pre_attn_scalar: 20, hidden_activation: "gelu_pytorch_tanh" }, "scales scores by"],
  ["SmolLM3ForCausalLM", { no_rope_layers: [1, 1, 1, 1, 1, 1, 1, 1] }, "layer 3"],
  ["Qwen3ForCausalLM", { attention_bias: true }, "no bias of o"],
  ["Qwen2ForCausalLM", { head_dim: 32 }, "takes head_dim for 16, and it is 32"],
  [
    "Qwen2ForCausalLM",
    {
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 256,
      },
    },
    "does not know the rope llama3",
  ],
  ["Olmo2ForCausalLM", { tie_word_embeddings: true }, "needs an output head of its own"],
])("a %s that llama.cpp computes otherwise is refused: %o", (architecture, more, why) => {
  const error = refused(() => ggufOf(architecture, more));
  expect(error.code).toBe("export.gguf");
  expect(error.message).toContain(why);
});

test("ropes, windows and scales become keys and factors", () => {
  const llama3 = {
    rope_type: "llama3",
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 256,
  };
  const { factors, metadata } = ggufOf("LlamaForCausalLM", { rope_scaling: llama3 });
  const [[name, frequencies]] = factors as [[string, number[]]];
  expect([name, frequencies.length, frequencies[0], frequencies.at(-1)]).toEqual(["rope_freqs.weight", 8, 1, 8]);
  expect(metadata.some(([key]) => key.includes("scaling"))).toBe(false);
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 128, attention_factor: 2 };
  const scaled = ggufOf("Qwen3ForCausalLM", { rope_scaling: yarn }).metadata;
  expect(keyOf(scaled, "qwen3.rope.scaling.type")).toBe("yarn");
  const { f32: factor } = keyOf(scaled, "qwen3.rope.scaling.attn_factor") as { f32: number };
  expect(factor * (0.1 * Math.log(4) + 1)).toBeCloseTo(2, 12);
  const gemma = ggufOf("Gemma3ForCausalLM", { head_dim: 256, sliding_window: 64, hidden_activation: "gelu_pytorch_tanh" });
  const { booleans } = keyOf(gemma.metadata, "gemma3.attention.sliding_window_pattern") as { booleans: boolean[] };
  expect(booleans).toEqual([true, true, true, true, true, false, true, true]);
  const granite = ggufOf("GraniteForCausalLM", { residual_multiplier: 0.22, rms_norm_eps: 1e-5, logits_scaling: 8 }).metadata;
  const eps = keyOf(granite, "granite.attention.layer_norm_rms_epsilon") as { f32: number };
  expect(eps.f32).toBeCloseTo(1e-5, 12);
  expect(keyOf(granite, "granite.logit_scale")).toEqual({ f32: 8 });
  expect(ggufOf("MistralForCausalLM", { sliding_window: 64 }).notices[0]).toContain("more than 64 tokens");
});

test("q4_k_m has more bits for what matters most, and other blocks for rows without blocks of 256", () => {
  const spec = specOf({ ...CONFIG, architectures: ["LlamaForCausalLM"] }, "config.json");
  const type = (name: string, width = 512) => ggufTypeOf("q4_k_m", { name, shape: [64, width] }, spec, familyOf(spec).gguf!);
  const down = Array.from({ length: 8 }, (_, layer) => type(`blk.${layer}.ffn_down.weight`));
  expect(down).toEqual(["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]);
  expect([type("output.weight"), type("token_embd.weight"), type("blk.0.attn_q.weight")]).toEqual(["Q6_K", "Q4_K", "Q4_K"]);
  expect([type("blk.0.attn_q.weight", 96), type("output.weight", 96), type("output.weight", 40)]).toEqual([
    "Q5_0",
    "Q8_0",
    "F16",
  ]);
  expect(ggufTypeOf("q8_0", { name: "blk.0.attn_norm.weight", shape: [512] }, spec, familyOf(spec).gguf!)).toBe("F32");
});
