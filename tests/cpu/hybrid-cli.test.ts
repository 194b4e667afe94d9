// Qwen 3.5 as a person trains it: a wrapper with an encoder and a head that predicts several tokens, an adapter on all linears;
// killed and continued, over two stages, generated from, merged. Its mixtures, Qwen3-Next, LFM2, dense and with experts,
// Granite 4 with Mamba, Nemotron-H and DeepSeek V3 are continued, over two stages, too.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { signalled } from "../helpers/middle.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { areKept, leftOf, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const model = join(place.root, "hybrid");
const linear = { linear_num_key_heads: 2, linear_num_value_heads: 4, linear_key_head_dim: 8, linear_value_head_dim: 12 };
writeTinyModel(model, 4, { architectures: ["Qwen3_5ForCausalLM"], head_dim: 16, ...linear });
{
  const { architectures: _, tie_word_embeddings: tie, ...text } = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
  const config = { architectures: ["Qwen3_5ForConditionalGeneration"], model_type: "qwen3_5", tie_word_embeddings: tie };
  await Bun.write(join(model, "config.json"), JSON.stringify({ ...config, text_config: text, vision_config: {} }));
  const tensors: TensorData[] = [];
  using file = openSafetensors(join(model, "model.safetensors"));
  for (const [name, { shape, bytes }] of file.tensors) {
    const data = new Uint16Array(bytes / 2);
    file.readInto(name, new Uint8Array(data.buffer));
    tensors.push({ name: name.replace("model.", "model.language_model."), dtype: "bf16", shape, data });
  }
  for (const name of ["model.visual.patch_embed.proj.weight", "mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"])
    tensors.push({ name, dtype: "bf16", shape: [3, 2], data: Uint16Array.of(1, 2, 3, 4, 5, 6) });
  writeSafetensors(join(model, "model.safetensors"), tensors);
}

const next = join(place.root, "next");
writeTinyModel(next, 4, {
  ...{ architectures: ["Qwen3NextForCausalLM"], model_type: "qwen3_next", head_dim: 16, ...linear },
  ...{ num_experts: 8, num_experts_per_tok: 3, moe_intermediate_size: 24, shared_expert_intermediate_size: 16 },
});

const convolved = join(place.root, "convolved");
writeTinyModel(convolved, 3, {
  ...{ architectures: ["Lfm2ForCausalLM"], model_type: "lfm2", full_attn_idxs: [1], block_multiple_of: 16, norm_eps: 1e-4 },
});

const mixture = join(place.root, "mixture");
writeTinyModel(mixture, 4, {
  ...{ architectures: ["Qwen3_5MoeForCausalLM"], model_type: "qwen3_5_moe_text", head_dim: 16, ...linear },
  ...{ num_experts: 8, num_experts_per_tok: 3, moe_intermediate_size: 24, shared_expert_intermediate_size: 16 },
});

const convolvedMixture = join(place.root, "convolved-mixture");
writeTinyModel(convolvedMixture, 3, {
  ...{ architectures: ["Lfm2MoeForCausalLM"], model_type: "lfm2_moe", norm_eps: 1e-4 },
  layer_types: ["conv", "full_attention", "conv"],
  ...{ num_dense_layers: 1, num_experts: 8, num_experts_per_tok: 3, moe_intermediate_size: 24 },
});

const mamba = join(place.root, "mamba");
writeTinyModel(mamba, 3, {
  ...{ architectures: ["GraniteMoeHybridForCausalLM"], model_type: "granitemoehybrid", position_embedding_type: "nope" },
  ...{ layers_block_type: ["mamba", "attention", "mamba"], mamba_n_heads: 8, mamba_n_groups: 2, mamba_d_state: 12 },
  ...{ num_local_experts: 0, shared_intermediate_size: 40, residual_multiplier: 0.5, attention_multiplier: 0.3 },
});
{
  // As Python writes a config.
  const config = join(mamba, "config.json");
  const text = readFileSync(config, "utf8");
  await Bun.write(config, text.replace(/\}$/, ', "time_step_limit": [0.001, Infinity]}'));
}

const nemotron = join(place.root, "nemotron");
writeTinyModel(nemotron, 9, {
  ...{ architectures: ["NemotronHForCausalLM"], model_type: "nemotron_h", hybrid_override_pattern: "M*-E", head_dim: 16 },
  ...{ mamba_num_heads: 6, mamba_head_dim: 8, n_groups: 2, ssm_state_size: 12, n_routed_experts: 8, num_experts_per_tok: 3 },
  ...{ moe_intermediate_size: 24, moe_shared_expert_intermediate_size: 40 },
});

const latents = join(place.root, "latents");
writeTinyModel(latents, 3, {
  ...{ architectures: ["DeepseekV3ForCausalLM"], model_type: "deepseek_v3", num_attention_heads: 4, num_key_value_heads: 4 },
  ...{ q_lora_rank: 12, kv_lora_rank: 20, qk_nope_head_dim: 10, qk_rope_head_dim: 6, v_head_dim: 9 },
  ...{ first_k_dense_replace: 1, n_routed_experts: 8, num_experts_per_tok: 3, n_group: 4, topk_group: 2 },
  ...{ moe_intermediate_size: 24, rope_scaling: { type: "yarn", factor: 8, mscale: 1, mscale_all_dim: 1 } },
});

/** What the second adapter acts on. */
const SOME = new Map([
  [model, ["o_proj", "in_proj_a", "in_proj_qkv"]],
  [next, ["o_proj", "in_proj_ba", "down_proj"]],
  [mixture, ["o_proj", "in_proj_a", "down_proj"]],
  [convolved, ["in_proj", "out_proj", "w3"]],
  [convolvedMixture, ["in_proj", "self_attn.out_proj", "w1"]],
  [mamba, ["in_proj", "q_proj", "output_linear"]],
  [latents, ["q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "experts.up_proj"]],
  [nemotron, ["in_proj", "o_proj", "mixer.up_proj", "shared_experts.down_proj"]],
]);
const recipe = (run = "", steps = 40, of = model) =>
  place.project(
    `[model]\npath = "${of}"\n[run]\noutput = "out"\ndevice = "cpu"\n${run}[[adapter]]\nname = "a"\nrank = 3\nsteps = ${steps}\n` +
      `targets = "all-linear"\ndata = "rows.jsonl"\n[[adapter]]\nname = "b"\nrank = 2\nsteps = ${steps - 3}\ntargets = ${JSON.stringify(SOME.get(of))}\n` +
      'data = "rows.jsonl"\n',
    { "rows.jsonl": sums(12) },
  );
const outputOf = (path: string) => join(path, "..", "out");
const namesIn = (path: string): string[] => {
  using file = openSafetensors(path);
  return [...file.tensors.keys()].sort();
};

test("the plan lists what is not trained, adapters have PEFT's names, and a merged model says what the adapter says", async () => {
  const path = recipe("", 6);
  const planned = await place.mlora("plan", path, "--json");
  expect([planned.code, planned.err]).toEqual([0, ""]);
  const [notice] = JSON.parse(planned.out).notices;
  expect(notice).toContain("1 of model.visual.* (encoder of images)");
  expect(notice).toContain("2 of mtp.* (prediction of several tokens)");
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const adapter = join(outputOf(path), "a");
  const modules = new Set(
    namesIn(join(adapter, "adapter_model.safetensors")).map((name) => name.replace(/\.lora_[AB]\.weight$/, "")),
  );
  expect(modules.size).toBe(3 * 8 + 7);
  for (const name of ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"])
    expect(modules.has(`base_model.model.model.language_model.layers.2.linear_attn.${name}`)).toBe(true);
  expect(modules.has("base_model.model.model.language_model.layers.3.self_attn.q_proj")).toBe(true);

  const merged = join(path, "..", "merged");
  expect((await place.mlora("export", adapter, "--output", merged, "--dtype", "fp32")).code).toBe(0);
  expect(namesIn(join(merged, "model.safetensors"))).toEqual(namesIn(join(model, "model.safetensors")));
  const say = (...from: string[]) =>
    place.mlora("generate", ...from, "--prompt", "1 + 1 =", "--max-new-tokens", "6", "--precision", "fp32", "--device", "cpu");
  const [alone, whole] = [await say(model, "--adapter", adapter, "--json"), await say(merged, "--json")];
  expect([alone.code, whole.code]).toEqual([0, 0]);
  expect(JSON.parse(whole.out).text).toBe(JSON.parse(alone.out).text);
});

test.each([
  ["dense", model, 40],
  ["Qwen3-Next", next, 20],
  ["Qwen 3.5 with experts", mixture, 20],
  ["LFM2", convolved, 20],
  ["LFM2 with experts", convolvedMixture, 20],
  ["Granite 4 with Mamba", mamba, 20],
  ["Nemotron-H", nemotron, 20],
  ["DeepSeek V3", latents, 20],
] as const)(
  "killed and continued, and over two stages, it learns the same, %s",
  async (_, of, steps) => {
    const { path: disturbed, ...killed } = await signalled(
      "SIGKILL",
      (factor) => {
        const path = recipe("checkpoint = { steps = 3 }\n", factor * steps, of);
        return { factor, path, running: place.start(["run", path]) };
      },
      ({ path }) => areKept(outputOf(path), ["a", "b"]),
    );
    expect(killed.ended.code).toBe(137);
    const continued = await place.mlora("run", disturbed);
    expect([continued.code, continued.err]).toEqual([0, expect.not.stringContaining("at step 0 of")]);
    const [undisturbed, staged] = ["", "stages = 2\n"].map((run) => recipe(run, killed.factor * steps, of)) as [string, string];
    for (const path of [undisturbed, staged]) {
      const { code, err } = await place.mlora("run", path);
      expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    }
    for (const name of ["a", "b"]) {
      expect(leftOf(outputOf(disturbed), name)).toEqual(leftOf(outputOf(undisturbed), name));
      expect(leftOf(outputOf(staged), name)).toEqual(leftOf(outputOf(undisturbed), name));
    }
  },
  240_000,
);
