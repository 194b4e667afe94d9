// Base models that are refused, each with one line that says what was found and what is supported; and how wrappers are read.

import { describe, expect, test } from "bun:test";
import { parsePython } from "../../src/base/python-json.ts";
import { range } from "../../src/base/shape.ts";
import type { Json } from "../../src/data/pre-tokenise.ts";
import { resolveTokenizer } from "../../src/data/tokenizer-json.ts";
import { ropeFrequencies, ropeTables } from "../../src/engine/operations/rope.ts";
import { linearShape, modulesOf } from "../../src/families/linears.ts";
import { specOf } from "../../src/families/registry.ts";
import { requireKernels } from "../../src/plan/memory.ts";
import { placeAdapter } from "../../src/plan/places.ts";
import { refused } from "../helpers/refused.ts";

const SIZES = { num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 11 };
const of = (architecture: string, more: object = {}) => specOf({ architectures: [architecture], ...SIZES, ...more }, "c");
const wrapped = (architecture: string, text: object, more: object = {}) =>
  specOf({ architectures: [architecture], text_config: { ...SIZES, ...text }, ...more }, "c");

const QWEN_VL = "Qwen3VLForConditionalGeneration";
const MISTRAL3 = "Mistral3ForConditionalGeneration";
const GRANITE4 = "GraniteMoeHybridForCausalLM";
const QWEN35 = "Qwen3_5ForCausalLM";

describe("refused with what was found and what is supported", () => {
  test.each<[string, () => unknown, found: string, supported: string]>([
    ["a family", () => of("DeepseekV4ForCausalLM", { model_type: "deepseek_v4" }), "DeepseekV4ForCausalLM", "LlamaForCausalLM"],
    [
      "its model_type",
      () => of("DeepseekV4ForCausalLM", { model_type: "deepseek_v4" }),
      "model_type deepseek_v4",
      "mlora trains",
    ],
    [
      "a text part",
      () => wrapped(MISTRAL3, { model_type: "mistral4" }),
      'text_config.model_type is "mistral4"',
      "mistral or ministral3",
    ],
    ["no text part", () => of(QWEN_VL), "text_config is missing", ""],
    [
      "a rope type",
      () => of("LlamaForCausalLM", { rope_scaling: { rope_type: "dynamic" } }),
      'rope type is "dynamic"',
      "yarn, longrope",
    ],
    [
      "ropes by layer",
      () => of("LlamaForCausalLM", { rope_parameters: { full_attention: {} } }),
      "full_attention is {}",
      "only one rope",
    ],
    ["a part of heads", () => of("LlamaForCausalLM", { partial_rotary_factor: 0.5 }), "partial_rotary_factor is 0.5", "only 1"],
    [
      "a kind of window",
      () => of("Olmo3ForCausalLM", { layer_types: ["chunked_attention", "full_attention"] }),
      'layer_types has "chunked_attention" for layer 0',
      "sliding_attention",
    ],
    ..."Llama Mistral Ministral3 Phi3 Granite Olmo2 Qwen2 Qwen3 SmolLM3 Gemma3 Gemma4 Mixtral Qwen3Moe GptOss"
      .split(" ")
      .map((family): [string, () => unknown, string, string] => [
        `a kind of window in ${family}`,
        () => of(`${family}ForCausalLM`, { layer_types: ["full_attention", "chunked_attention"] }),
        'layer_types has "chunked_attention" for layer 1',
        "sliding_attention",
      ]),
    [
      "kinds of layers that are no list",
      () => of("LlamaForCausalLM", { layer_types: "full_attention" }),
      'layer_types is "full_attention", expected a list',
      "",
    ],
    [
      "a window that a family has not",
      () => of("LlamaForCausalLM", { layer_types: ["full_attention", "sliding_attention"], sliding_window: 8 }),
      'layer_types has "sliding_attention" for layer 1, which has no sliding window by the other keys',
      "",
    ],
    [
      "a layer without the family's window",
      () => of("MistralForCausalLM", { layer_types: ["sliding_attention", "full_attention"], sliding_window: 8 }),
      'layer_types has "full_attention" for layer 1, which has a sliding window of 8 by the other keys',
      "",
    ],
    [
      "windows that transformers masks though they are turned off",
      () => of("SmolLM3ForCausalLM", { layer_types: ["full_attention", "sliding_attention"], sliding_window: 8 }),
      'layer_types has "sliding_attention" for layer 1, which has no sliding window',
      "",
    ],
    [
      "windows that are turned off",
      () => of("Qwen2ForCausalLM", { layer_types: ["full_attention", "sliding_attention"], sliding_window: 8 }),
      'layer_types has "sliding_attention" for layer 1, which has no sliding window',
      "",
    ],
    [
      "a kind of layer next to Mamba",
      () => of(GRANITE4, { layer_types: ["mamba", "sliding_attention"] }),
      "layer_types has another kind for layer 1",
      "",
    ],
    ["heads of Mamba", () => of(GRANITE4, { mamba_n_heads: 3 }), "mamba_n_heads is 3", ""],
    [
      "groups of heads",
      () => of(GRANITE4, { mamba_n_heads: 4, mamba_n_groups: 3 }),
      "3, which does not divide the 4 heads",
      "",
    ],
    ["limits of steps", () => of(GRANITE4, { mamba_n_heads: 4, time_step_limit: [1, 0.5] }), "time_step_limit is [1,0.5]", ""],
    ["a position of tokens", () => of(GRANITE4, { position_embedding_type: "alibi" }), '"alibi"', '"nope"'],
    [
      "a kind of linear attention",
      () => of(QWEN35, { layer_types: ["mamba", "full_attention"] }),
      'layer_types has "mamba" for layer 0',
      "",
    ],
    ["layers without a kind", () => of(QWEN35, { layer_types: ["full_attention"] }), "for each of 2 layers", ""],
    ["a convolution", () => of(QWEN35, { linear_conv_kernel_dim: 3 }), "linear_conv_kernel_dim is 3", "4"],
    [
      "heads of linear attention",
      () => of(QWEN35, { linear_num_key_heads: 3 }),
      "3 does not divide linear_num_value_heads, 32",
      "",
    ],
    ["another length of short convolutions", () => of("Lfm2ForCausalLM", { conv_L_cache: 4 }), "conv_L_cache is 4", "3"],
    ["a bias of short convolutions", () => of("Lfm2ForCausalLM", { conv_bias: true }), "conv_bias is true", "false"],
    [
      "a kind of layer next to convolutions",
      () => of("Lfm2ForCausalLM", { layer_types: ["conv", "sliding_attention"] }),
      'layer_types has "sliding_attention" for layer 1',
      "",
    ],
    ["a mixture of convolutions without kinds", () => of("Lfm2MoeForCausalLM"), "layer_types is null", ""],
    ["a window of null", () => of("GptOssForCausalLM", { sliding_window: null }), "sliding_window is null", ""],
    [
      "LongRoPE's factors",
      () => of("Phi3ForCausalLM", { rope_scaling: { type: "su", short_factor: [1] } }),
      "short_factor is 1 value,",
      "",
    ],
  ])("%s", (_, work, found, supported) => {
    const { message, hint } = refused(work);
    expect(message).toContain(found);
    expect(message).not.toContain("\n");
    expect(hint ?? "").toContain(supported);
  });

  test("scalars of null, which are not their defaults", () => {
    for (const name of ["GraniteForCausalLM", "GraniteMoeForCausalLM", GRANITE4])
      for (const key of ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"])
        expect(refused(() => of(name, { [key]: null })).message).toContain(`${key} is null, expected a number, or no such key`);
    expect(of("SmolLM3ForCausalLM", { num_key_value_heads: null }).kvHeads).toBe(SIZES.num_attention_heads);
  });

  test("targets in a part that is not trained", () => {
    const recipe = {
      name: "a",
      exclude: null,
      layers: null,
      rank: 2,
      rankPattern: {},
      alpha: 2,
      alphaPattern: {},
      rslora: false,
    };
    const plain = { method: "lora", init: "default", experts: "shared-outer" } as const;
    const spec = wrapped(QWEN_VL, {});
    for (const targets of [["visual.blocks.0.attn.qkv"], "model\\.visual\\..*"]) {
      const { message } = refused(() => placeAdapter({ ...recipe, ...plain, targets }, spec));
      expect(message).toContain("only its part for text, model.language_model, is trained");
    }
    const path = "model.language_model.layers.1.self_attn.q_proj";
    const { places } = placeAdapter({ ...recipe, ...plain, targets: [path] }, spec);
    expect(places!.ranks.map((row) => Math.max(...row))).toEqual([0, 2]);
  });
});

describe("wrappers", () => {
  test("the wrapper's tie counts, with the wrapper's default; of Qwen2.5-VL also the older place", () => {
    expect(wrapped(MISTRAL3, { model_type: "mistral" }).tiedEmbeddings).toBe(true);
    expect(wrapped(MISTRAL3, { model_type: "mistral", tie_word_embeddings: false }).tiedEmbeddings).toBe(true);
    expect(wrapped(MISTRAL3, { model_type: "ministral3" }, { tie_word_embeddings: false }).tiedEmbeddings).toBe(false);
    expect(wrapped(QWEN_VL, { tie_word_embeddings: true }).tiedEmbeddings).toBe(false);
    const older = "Qwen2_5_VLForConditionalGeneration";
    expect(wrapped(older, { tie_word_embeddings: true }).tiedEmbeddings).toBe(true);
    expect(of(older, { tie_word_embeddings: true, rope_scaling: { type: "mrope", mrope_section: [1, 1, 2] } }).tower).toBe(
      "model.language_model",
    );
  });

  test("a sparse text_config has the tower's defaults, and not those of another family", () => {
    expect(wrapped(QWEN_VL, {}).ropes[0]!.theta).toBe(500000);
    expect(wrapped(MISTRAL3, { model_type: "mistral" }).windows).toEqual([4096, 4096]);
    expect(wrapped(MISTRAL3, { model_type: "ministral3" }).headDim).toBe(128);
  });
});

describe("Qwen 3.5", () => {
  test("every fourth layer has full attention, or every n-th, or those that the config names", () => {
    const linear = (more: object) =>
      wrapped("Qwen3_5ForConditionalGeneration", { num_hidden_layers: 5, ...more }).delta!.layers;
    expect(linear({})).toEqual([true, true, true, false, true]);
    expect(linear({ full_attention_interval: 2 })).toEqual([true, false, true, false, true]);
    const types = ["full_attention", "linear_attention", "linear_attention", "full_attention", "full_attention"];
    expect(linear({ layer_types: types, full_attention_interval: 2 })).toEqual([false, true, true, false, false]);
  });

  test("a quarter of a head is rotated, or the share that the rope names", () => {
    const rotated = (more: object) => of(QWEN35, more).ropes[0]!.rotated;
    expect(rotated({})).toBe(64);
    expect(rotated({ partial_rotary_factor: 0.5 })).toBe(128);
    const parameters = { rope_type: "default", rope_theta: 1e7, partial_rotary_factor: 0.125, mrope_section: [11, 11, 10] };
    expect(rotated({ rope_parameters: parameters, partial_rotary_factor: 0.5 })).toBe(32);
    expect(of(QWEN35, { rope_parameters: parameters }).ropes[0]!.theta).toBe(1e7);
  });

  test("an adapter acts on the linears that each layer has", () => {
    const spec = of(QWEN35, { layer_types: ["linear_attention", "full_attention"] });
    const has = (layer: number) => modulesOf(spec).flatMap((module) => (module.layer === layer ? [module.linear] : []));
    const mlp = ["gate_proj", "up_proj", "down_proj"] as const;
    expect(has(0)).toEqual(["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj", ...mlp]);
    expect(has(1)).toEqual(["q_proj", "k_proj", "v_proj", "o_proj", ...mlp]);
    expect(linearShape(spec, "q_proj", 1)).toMatchObject({ out: 2 * 2 * 256, in: 16 });
  });
});

describe("Granite 4", () => {
  const mamba = { layer_types: ["mamba", "attention"], mamba_n_heads: 4 };

  test("attention with a dense MLP is the family it was; Mamba layers, experts, and a config that is silent are another", () => {
    const family = (more: object) => of(GRANITE4, { mamba_n_heads: 4, ...more }).family;
    expect(family({ layer_types: ["attention", "full_attention"], num_local_experts: 0 })).toBe("granitemoehybrid");
    expect(family({ layer_types: ["attention", "attention"] })).toBe("granite_h");
    expect(family({ ...mamba, num_local_experts: 0 })).toBe("granite_h");
    expect(of(GRANITE4, { mamba_n_heads: 4 }).mamba!.layers).toEqual([true, true]);
  });

  test("limits of steps as Python and as transformers 5 write them, and where there are none", () => {
    const limits = (more: object) => of(GRANITE4, { ...mamba, ...more }).mamba!.limits;
    expect(limits({})).toEqual({ least: 0, most: null });
    expect(limits({ time_step_limit: [0.5, 2] })).toEqual({ least: 0.5, most: 2 });
    const written = parsePython('{"time_step_limit": [0.25, Infinity], "text": "not NaN, nor \\"Infinity"}');
    expect(written).toEqual({ time_step_limit: [0.25, { __float__: "Infinity" }], text: 'not NaN, nor "Infinity' });
    expect(limits(written as object)).toEqual({ least: 0.25, most: null });
    expect(() => parsePython('{"time_step_limit": [0, Infinty]}')).toThrow(SyntaxError);
  });

  test("an adapter acts on the linears that each layer has; sizes that GPUs would round are refused by name", () => {
    const spec = of(GRANITE4, { ...mamba, hidden_size: 64, num_local_experts: 0 });
    const has = (layer: number) => modulesOf(spec).flatMap((module) => (module.layer === layer ? [module.path] : []));
    const mlp = ["shared_mlp.input_linear", "shared_mlp.output_linear"];
    const paths = (names: readonly string[], layer: number) => names.map((name) => `model.layers.${layer}.${name}`);
    expect(has(0)).toEqual(paths(["mamba.in_proj", "mamba.out_proj", ...mlp], 0));
    expect(has(1)).toEqual(paths([..."qkvo"].map((name) => `self_attn.${name}_proj`).concat(mlp), 1));
    const gpu = { kind: "cuda", name: "a GPU" } as const;
    const mambaOf = (headDim: number, groups: number, stateDim: number) => ({
      ...spec,
      mamba: { ...spec.mamba!, heads: { heads: 8, headDim, groups, stateDim } },
    });
    requireKernels(mambaOf(16, 4, 12), gpu);
    const odd = mambaOf(12, 8, 2);
    expect(() => requireKernels(odd, gpu)).toThrow("groups of 12 features, and 32 of B and C, expected multiples of 8");
  });
});

describe("Nemotron-H", () => {
  const NEMOTRON = "NemotronHForCausalLM";
  const kindsOf = (more: object) => {
    const { layers, mamba, attentionLayers, experts } = of(NEMOTRON, more);
    return range(layers)
      .map((i) => (mamba!.layers[i] ? "M" : attentionLayers[i] ? "*" : experts?.layers[i] ? "E" : "-"))
      .join("");
  };

  test("layers are those of the list, else of the pattern, however many the config says", () => {
    expect(kindsOf({})).toBe("ME*-");
    expect(kindsOf({ hybrid_override_pattern: "MM*-" })).toBe("MM*-");
    expect(kindsOf({ layers_block_type: ["mamba", "attention", "moe"], hybrid_override_pattern: "M" })).toBe("M*E");
    expect(kindsOf({ layer_types: ["linear_attention", "full_attention", "mlp"] })).toBe("M*-");
  });

  test("steps have the lower limit of time_step_min, as transformers 5.24 has it, whatever time_step_limit says", () => {
    const least = (more: object) => of(NEMOTRON, more).mamba!.limits;
    expect(least({})).toEqual({ least: 0.001, most: null });
    expect(least({ time_step_min: 0.25, time_step_limit: [0.5, 1] })).toEqual({ least: 0.25, most: null });
    expect(least({ mamba_dt_min: 0.125 })).toEqual({ least: 0.125, most: null });
  });

  test.each([
    [{ hybrid_override_pattern: "M?" }, 'hybrid_override_pattern has "?" for layer 1'],
    [{ mlp_hidden_act: "silu" }, 'mlp_hidden_act is "silu"'],
    [{ moe_latent_size: 8 }, "moe_latent_size is 8"],
    [{ n_groups: 3 }, "n_groups is 3, which does not divide the 128 heads"],
    [{ conv_kernel: 3 }, "conv_kernel is 3"],
  ])("refused: %p", (more, message) => {
    expect(refused(() => of(NEMOTRON, more)).message).toContain(message);
  });

  test("no adapter acts on out_proj, as in PEFT: all-linear leaves it out, and its name is refused", () => {
    const spec = of(NEMOTRON, { hybrid_override_pattern: "M-" });
    const recipe = {
      ...{ name: "a", exclude: null, layers: null, rank: 2, rankPattern: {}, alpha: 2, alphaPattern: {}, rslora: false },
      ...({ method: "lora", init: "default", experts: "shared-outer" } as const),
    };
    const placedOn = (targets: string | readonly string[]): readonly string[] =>
      placeAdapter({ ...recipe, targets }, spec).targets;
    expect(placedOn("all-linear")).toEqual(["mixer.in_proj", "mixer.up_proj", "mixer.down_proj"]);
    expect(placedOn(["in_proj"])).toEqual(["mixer.in_proj"]);
    for (const targets of [["out_proj"], ".*_proj"])
      expect(refused(() => placedOn(targets)).message).toContain("model.layers.0.mixer.out_proj, where PEFT refuses adapters");
  });
});

describe("LFM2", () => {
  test("a layer is a convolution by its kind, or where it is not among those with attention; without either all have it", () => {
    const convolutions = (more: object) => of("Lfm2ForCausalLM", more).convolutions;
    expect(convolutions({ layer_types: ["conv", "full_attention"], full_attn_idxs: [0] })).toEqual([true, false]);
    expect(convolutions({ full_attn_idxs: [1] })).toEqual([true, false]);
    expect(convolutions({})).toEqual([false, false]);
  });

  // transformers 5.24, models/lfm2/modeling_lfm2.py: the rows of feed_forward.w1
  test.each([
    [{ block_ff_dim: 6656 }, 4608],
    [{ intermediate_size: 12288 }, 8192],
    [{ intermediate_size: 50, block_ffn_dim_multiplier: 1.3, block_multiple_of: 16 }, 48],
    [{ intermediate_size: 51, block_auto_adjust_ff_dim: false }, 51],
  ])("the MLP's features by %p", (more, features) => {
    expect(of("Lfm2ForCausalLM", more).intermediate).toBe(features);
  });

  test("the tables are tied by either key, unless it says otherwise, and eps is norm_eps", () => {
    const tied = (more: object) => of("Lfm2ForCausalLM", more).tiedEmbeddings;
    expect([tied({}), tied({ tie_embedding: false }), tied({ tie_word_embeddings: false, tie_embedding: true })]).toEqual([
      true,
      false,
      true,
    ]);
    expect(of("Lfm2ForCausalLM", { norm_eps: 3e-3, rms_norm_eps: 1 }).normEps).toBe(3e-3);
  });
});

describe("ropes", () => {
  const plain = { headDim: 16, rotated: 16, theta: 100, scaling: null, queryScale: null };

  test("YaRN keeps fast pairs and divides slow ones; a factor of 1 changes none", () => {
    const yarn = (factor: number) =>
      ({ kind: "yarn", factor, originalMaxPositions: 64, betaFast: 4, betaSlow: 1, truncate: true, magnitude: 1 }) as const;
    const [base, scaled] = [ropeFrequencies(plain), ropeFrequencies({ ...plain, scaling: yarn(8) })];
    expect(scaled[0]).toBe(base[0]!);
    expect(scaled.at(-1)).toBeCloseTo(base.at(-1)! / 8, 9);
    expect([...ropeFrequencies({ ...plain, scaling: yarn(1) })]).toEqual([...base]);
  });

  test("a proportional rope leaves pairs after its share as they are", () => {
    const rope = { ...plain, scaling: { kind: "proportional", factor: 1, share: 0.25 } } as const;
    expect([...ropeFrequencies(rope)].filter((frequency) => frequency !== 0)).toEqual([
      ...ropeFrequencies(plain).subarray(0, 2),
    ]);
    const { cos, sin } = ropeTables(rope, 3);
    expect([cos[2 * 8 + 5], sin[2 * 8 + 5]]).toEqual([1, 0]);
  });

  test("the tables of long sequences follow on those of short ones", () => {
    const [short, long] = [Array(8).fill(1), Array(8).fill(4)];
    const scaling = { kind: "longrope", short, long, originalMaxPositions: 8, magnitude: 1.5 } as const;
    const { cos } = ropeTables({ ...plain, scaling }, 5);
    expect(cos.length).toBe(2 * 5 * 8);
    expect(cos[8]).toBeCloseTo(1.5 * Math.cos(1), 6);
    expect(cos[5 * 8 + 8]).toBeCloseTo(1.5 * Math.cos(0.25), 6);
  });
});

test("the tokenizer's class of Qwen 3.5 is its own whatever is named, of its text part alone the one that is named", () => {
  const splitOf = (named: string, modelType: string) => {
    const json: Json = { model: { type: "BPE", vocab: {}, merges: [] } };
    resolveTokenizer(json, { tokenizer_class: named }, modelType);
    return (json["pre_tokenizer"] as { pretokenizers: { pattern: { Regex: string } }[] }).pretokenizers[0]!.pattern.Regex;
  };
  // transformers 5.24, models/qwen3_5/tokenization_qwen3_5.py
  const own = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
  expect(splitOf("Qwen2Tokenizer", "qwen3_5")).toBe(own);
  expect(splitOf("Qwen3_5Tokenizer", "qwen3_5_text")).toBe(own);
  expect(splitOf("Qwen2Tokenizer", "qwen3_5_text")).toBe(own.replaceAll("\\p{M}", "").replace("[\\p{L}]+", "\\p{L}+"));
});
