// How models with attention over latents are read, and what of them is refused.

import { describe, expect, test } from "bun:test";
import { modulesOf } from "../../src/families/linears.ts";
import { specOf } from "../../src/families/registry.ts";
import { checkFormat } from "../../src/plan/format.ts";
import { requireKernels } from "../../src/plan/memory.ts";
import { refused } from "../helpers/refused.ts";

const SIZES = { num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 2, vocab_size: 11 };
const of = (architecture: string, more: object = {}) => specOf({ architectures: [architecture], ...SIZES, ...more }, "c");

describe("attention over latents", () => {
  const [V2, V3, LITE] = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"] as const;
  const latent = (architecture: string, more: object = {}) =>
    of(architecture, { num_key_value_heads: 2, num_experts_per_tok: 3, ...more });

  test("transformers' defaults, and heads as wide as kernels take them", () => {
    const { headDim, kvHeads, latent: own, ropes } = latent(V3);
    expect([headDim, kvHeads, own]).toEqual([
      256,
      2,
      {
        ...{ queryRank: 1536, rank: 512, normEps: 1e-6, bias: false },
        heads: { plain: 128, rotated: 64, value: 128, isInterleaved: true },
      },
    ]);
    expect(ropes).toEqual([{ headDim: 256, rotated: 64, theta: 10000, scaling: null, queryScale: null }]);
    expect(latent("MiniCPM3ForCausalLM").latent!.heads).toEqual({ plain: 64, rotated: 32, value: 8, isInterleaved: false });
    const widths = (plain: number, rotated: number, value: number) =>
      latent("YoutuForCausalLM", { qk_nope_head_dim: plain, qk_rope_head_dim: rotated, v_head_dim: value }).headDim;
    expect([widths(8, 4, 10), widths(32, 32, 64), widths(64, 32, 64), widths(192, 64, 256)]).toEqual([16, 64, 128, 256]);
  });

  test("queries have a latent unless it is null, and layers experts by their number or their list", () => {
    expect(latent(V2, { q_lora_rank: null }).latent!.queryRank).toBeNull();
    const linears = (more: object) => modulesOf(latent(V2, more)).filter(({ layer }) => layer === 0).length;
    expect([linears({ q_lora_rank: null }), linears({})]).toEqual([4 + 3 + 3, 5 + 3 + 3]);
    const sparse = (architecture: string, more: object) => latent(architecture, more).experts!.layers;
    expect(sparse(V2, {})).toEqual([true, true]);
    expect(sparse(V3, { first_k_dense_replace: 1 })).toEqual([false, true]);
    expect(sparse(LITE, {})).toEqual([false, true]);
    expect(sparse(LITE, { mlp_layer_types: ["sparse", "dense"] })).toEqual([true, false]);
  });

  test("each router is its model's: V2 by a softmax, without groups where it is greedy", () => {
    const groups = { n_group: 8, topk_group: 3 };
    const common = { groups: 8, keptGroups: 3, scaling: 1 };
    expect(latent(V2, { ...groups, topk_method: "group_limited_greedy" }).experts!.router).toEqual({
      ...{ score: "softmax", normalise: false, eps: 0, ...common },
    });
    expect(latent(V2, groups).experts!.router.groups).toBe(1);
    const { router } = latent(V3, { ...groups, num_experts_per_tok: undefined }).experts!;
    expect(router).toEqual({ score: "sigmoid", normalise: true, eps: 1e-20, ...common, scaling: 2.5 });
  });

  test("scores grow with YaRN's share of all dimensions, which cos and sin leave out", () => {
    const yarn = { type: "yarn", factor: 40, original_max_position_embeddings: 4096, mscale: 0.8, mscale_all_dim: 0.8 };
    const { attentionScale, ropes } = latent(V3, { rope_scaling: yarn });
    expect(attentionScale).toBeCloseTo(192 ** -0.5 * (0.08 * Math.log(40) + 1) ** 2, 12);
    expect(ropes[0]!.scaling).toEqual(expect.objectContaining({ kind: "yarn", magnitude: 1 }));
    expect(latent(V3, { rope_scaling: { ...yarn, mscale_all_dim: 0 } }).attentionScale).toBe(192 ** -0.5);
  });

  test.each<[string, object, string]>([
    [V3, { num_key_value_heads: 1 }, "num_key_value_heads is 1; with latent attention there are as many"],
    [V3, { qk_rope_head_dim: 7 }, "qk_rope_head_dim 7 is odd"],
    [V3, { scoring_func: "softmax" }, 'scoring_func is "softmax"'],
    [V3, { topk_method: "greedy" }, 'topk_method is "greedy"'],
    [V3, { moe_layer_freq: 2 }, "moe_layer_freq is 2"],
    [V2, { topk_method: "noaux_tc" }, 'topk_method is "noaux_tc", expected "greedy"'],
    [V2, { norm_topk_prob: true }, "norm_topk_prob is true"],
    [V2, { num_experts_per_tok: null }, "num_experts_per_tok is null"],
    [V2, { mlp_bias: true }, "mlp_bias is true"],
    [LITE, { mlp_layer_types: ["sparse"] }, "expected the kinds of 2 layers"],
    [LITE, { mlp_layer_types: ["sparse", "moe"] }, 'mlp_layer_types has "moe" for layer 1'],
    [LITE, { first_k_dense_replace: 2 }, "first_k_dense_replace is 2, where layers without experts are others"],
    [LITE, { partial_rotary_factor: 0.5 }, "partial_rotary_factor is 0.5"],
    ["MiniCPM3ForCausalLM", { hidden_size: 17 }, "hidden_size 17 is not a multiple of num_attention_heads"],
    ["YoutuForCausalLM", { rope_interleave: 1 }, "rope_interleave is 1, expected true or false"],
  ])("%s with %p is refused", (architecture, more, message) => {
    expect(refused(() => latent(architecture, more)).message).toContain(message);
  });

  test("nf4 holds latents of any width, but no linear with an odd number of values", () => {
    const of = (more: object) => () => checkFormat("nf4", latent("YoutuForCausalLM", { kv_lora_rank: 9, ...more }));
    of({})();
    expect(refused(of({ qk_rope_head_dim: 4, qk_nope_head_dim: 3, v_head_dim: 8, hidden_size: 15 })).message).toContain(
      "kv_a_proj_with_mqa of this model is [13, 15]: nf4 holds two values in a byte",
    );
  });

  test("a GPU takes parts of heads in eights, and heads of up to 256 features", () => {
    const gpu = { kind: "cuda", name: "a GPU" } as const;
    const on = (more: object) => () =>
      requireKernels(latent("YoutuForCausalLM", { hidden_size: 64, intermediate_size: 64, ...more }), gpu);
    on({})();
    expect(refused(on({ qk_nope_head_dim: 12 })).message).toContain("heads have 12 plain and 64 rotated features");
    expect(refused(on({ v_head_dim: 264 })).message).toContain("up to 256 features");
  });
});
