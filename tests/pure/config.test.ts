// What a model's config.json says that is refused instead of passed over.

import { expect, test } from "bun:test";
import { ropeFrequencies } from "../../src/engine/rope.ts";
import { specOf } from "../../src/families/registry.ts";
import { unappliedKeys } from "../../src/families/unapplied.ts";

test("a rope for each kind of layer is refused by name", () => {
  const config = { architectures: ["LlamaForCausalLM"], rope_theta: 1e5 };
  expect(specOf(config, "c").ropes[0]!.theta).toBe(1e5);
  const nested = { ...config, rope_parameters: { full_attention: { rope_theta: 5 } } };
  expect(() => specOf(nested, "c")).toThrow("rope_parameters.full_attention is");
});

test("original positions of llama3's rope that are null are refused with their place, as transformers does", () => {
  const scaling = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const config = { architectures: ["LlamaForCausalLM"], max_position_embeddings: 64, rope_scaling: scaling };
  const original = (more: object) => {
    const { scaling } = specOf({ ...config, ...more }, "c").ropes[0]!;
    return scaling?.kind === "llama3" ? scaling.originalMaxPositions : null;
  };
  expect([original({}), original({ original_max_position_embeddings: 16 })]).toEqual([64, 16]);
  const inside = { rope_scaling: { ...scaling, original_max_position_embeddings: null } };
  expect(() => original(inside)).toThrow("c: rope_scaling: original_max_position_embeddings is null");
  expect(() => original({ original_max_position_embeddings: null })).toThrow("c: original_max_position_embeddings is null");
});

/** Of transformers 5.24: the second frequency of full and of sliding layers, and what scales cosines and sines of the full. */
const YARN = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16, beta_fast: 4, beta_slow: 1 };
const tables = (more: object) => ({
  full_attention: { rope_type: "default", rope_theta: 500, ...more },
  sliding_attention: { rope_type: "default", rope_theta: 90 },
});
const BY_KIND: readonly (readonly [string, object, readonly number[]])[] = [
  ["rope_scaling over tables", { rope_parameters: tables({}), rope_scaling: YARN }, [0.287415, 0.569796, 1.138629]],
  [
    "rope_scaling with a theta",
    { rope_parameters: tables({}), rope_scaling: { rope_type: "linear", factor: 3, rope_theta: 55 } },
    [0.201992, 0.569796, 1],
  ],
  ["truncate within a table", { rope_parameters: tables({ ...YARN, truncate: false }) }, [0.287415, 0.569796, 1.138629]],
  ["truncate next to them", { rope_parameters: { ...tables(YARN), truncate: false } }, [0.173224, 0.569796, 1.138629]],
  [
    "truncate in rope_scaling",
    { rope_parameters: tables({}), rope_scaling: { ...YARN, truncate: false } },
    [0.287415, 0.569796, 1.138629],
  ],
];

test.each(["Olmo3ForCausalLM", "Gemma3ForCausalLM"].flatMap((name) => BY_KIND.map((of) => [name, ...of] as const)))(
  "%s reads ropes by kind of layer as transformers does: %s",
  (name, _, ropes, wanted) => {
    const sizes = { hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, num_hidden_layers: 2, head_dim: 16 };
    const types = { max_position_embeddings: 64, layer_types: ["sliding_attention", "full_attention"] };
    const [full, sliding] = specOf({ architectures: [name], ...sizes, ...types, ...ropes }, "c").ropes;
    const { scaling } = full!;
    const magnitude = scaling && "magnitude" in scaling ? scaling.magnitude : 1;
    const found = [ropeFrequencies(full!)[1]!, ropeFrequencies(sliding!)[1]!, magnitude];
    for (const [i, value] of found.entries()) expect(value).toBeCloseTo(wanted[i]!, 6);
  },
);

test("Gemma 4 refuses ropes that transformers does not read", () => {
  const config = { architectures: ["Gemma4ForCausalLM"], num_hidden_layers: 6 };
  expect(specOf(config, "c").ropes).toHaveLength(2);
  for (const more of [{ rope_scaling: YARN }, { rope_parameters: YARN }, { rope_parameters: { full_attention: YARN } }])
    expect(() => specOf({ ...config, ...more }, "c")).toThrow("expected rope_parameters with a table of");
});

test.each(["LlamaForCausalLM", "Lfm2ForCausalLM", "GptOssForCausalLM", "Qwen3VLForConditionalGeneration"])(
  "%s that is not causal is refused: transformers makes an encoder of it",
  (name) => {
    const of = (keys: object) => {
      const inner = { num_hidden_layers: 2, layer_types: ["full_attention", "full_attention"], ...keys };
      return () => specOf({ architectures: [name], ...inner, text_config: inner }, "c");
    };
    expect(of({ is_causal: true })()).toEqual(of({})());
    for (const given of [false, null, 0])
      expect(of({ is_causal: given })).toThrow(`is_causal is ${given}, which makes an encoder`);
  },
);

test("what transformers does in training alone is reported, where a config asks for it", () => {
  const told = (name: string, keys: object) => {
    const config = { architectures: [name], ...keys, text_config: keys };
    return unappliedKeys(config, specOf(config, "c")).map((text) => text.split(",")[0]);
  };
  const asked = { output_router_logits: true, attention_dropout: 0.1, resid_pdrop: 0.25 };
  const dropouts = ["attention_dropout is 0.1", "resid_pdrop is 0.25"];
  expect(told("LlamaForCausalLM", asked)).toEqual(dropouts);
  expect(told("Qwen3VLMoeForConditionalGeneration", asked)).toEqual([...dropouts, "output_router_logits is true"]);
  expect(told("MixtralForCausalLM", { ...asked, router_aux_loss_coef: 0 })).toEqual(dropouts);
  expect(told("DeepseekV3ForCausalLM", { output_router_logits: true, num_key_value_heads: 128 })).toEqual([]);
  expect(told("MixtralForCausalLM", { output_router_logits: false, attention_dropout: 0 })).toEqual([]);
});

test("`type` of a rope_scaling that transformers passes over is refused, and kept where it decides", () => {
  const of = (name: string, ropes: object) => specOf({ architectures: [name], ...ropes }, "c").ropes[0]!.scaling;
  const linear = { kind: "linear", factor: 3 };
  for (const name of ["Gemma3ForCausalLM", "Olmo3ForCausalLM"]) {
    const told = 'rope_scaling.type is "linear", which transformers passes over';
    expect(() => of(name, { rope_scaling: { type: "linear", factor: 3 } })).toThrow(told);
    const within = { rope_parameters: { full_attention: { type: "linear", factor: 3 } } };
    expect([of(name, { rope_scaling: { rope_type: "linear", factor: 3 } }), of(name, within)]).toMatchObject([linear, linear]);
    const over = { rope_parameters: { full_attention: {} }, rope_scaling: { type: "linear", factor: 3 } };
    expect(of(name, over)).toMatchObject(linear);
  }
  expect(of("LlamaForCausalLM", { rope_scaling: { type: "linear", factor: 3 } })).toMatchObject(linear);
});

test("ropes that are computed otherwise are refused: LongRoPE of some layers, a proportional one over latents", () => {
  const longrope = { rope_type: "longrope", short_factor: Array(128).fill(1), long_factor: Array(128).fill(2) };
  const kinds = { rope_parameters: { full_attention: longrope, sliding_attention: { rope_type: "default", rope_theta: 5 } } };
  for (const name of ["Gemma3ForCausalLM", "Gemma4ForCausalLM"])
    expect(() => specOf({ architectures: [name], global_head_dim: 256, ...kinds }, "c")).toThrow(
      '"longrope" for some of the layers',
    );
  const proportional = { rope_parameters: { rope_type: "proportional", partial_rotary_factor: 0.5 } };
  for (const name of ["YoutuForCausalLM", "MiniCPM3ForCausalLM"])
    expect(() => specOf({ architectures: [name], ...proportional }, "c")).toThrow('the rope type is "proportional"');
});

test("null is no word for a flag that is true by default: transformers takes it for false", () => {
  const of = (keys: object) => specOf({ architectures: ["DeepseekV3ForCausalLM"], num_key_value_heads: 128, ...keys }, "c");
  for (const key of ["norm_topk_prob", "rope_interleave"]) {
    expect(() => of({ [key]: null })).toThrow(`${key} is null`);
    expect(of({ [key]: true })).toEqual(of({}));
    expect(of({ [key]: false })).not.toEqual(of({}));
  }
  expect(of({ attention_bias: null })).toEqual(of({ attention_bias: false }));
});

test("Ministral 3's queries grow with its rope's original positions: those outside the table, as transformers has them", () => {
  const table = {
    rope_type: "yarn",
    rope_theta: 500,
    factor: 4,
    original_max_position_embeddings: 16,
    llama_4_scaling_beta: 0.3,
  };
  const of = (keys: object) => {
    const { queryScale, scaling } = specOf({ architectures: ["Ministral3ForCausalLM"], rope_parameters: table, ...keys }, "c")
      .ropes[0]!;
    return [queryScale!.originalMaxPositions, scaling?.kind === "yarn" ? scaling.originalMaxPositions : null];
  };
  expect([of({}), of({ original_max_position_embeddings: 64 })]).toEqual([
    [16, 16],
    [64, 64],
  ]);
});
