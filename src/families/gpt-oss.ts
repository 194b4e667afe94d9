// gpt-oss (OpenAI 2025): attention with sinks and a window in every other layer, and experts with biases and a clamped SwiGLU
// for the MLP. In the files columns of gate and up alternate, and experts are [in, out], or mxfp4 [out, in].

import { range } from "../base/shape.ts";
import { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, readDense, slidingLayers } from "./dense.ts";
import { mixed, NORMALISED, readCounts } from "./moe.ts";

const DEFAULTS = {
  ...{ hidden: 2880, layers: 36, heads: 64, kvHeads: 8, headDim: 64, intermediate: 2880, vocab: 201088, positions: 131072 },
  ...{ normEps: 1e-5, theta: 150000 },
};
const ROPE = { rope_type: "yarn", factor: 32, truncate: false, original_max_position_embeddings: 4096 };

/** With the rope of transformers' configuration class where it has none. */
function withRope(config: ConfigReader): ConfigReader {
  const { source, path } = config;
  const isGiven = source["rope_scaling"] != null || source["rope_parameters"] != null;
  return isGiven ? config : new ConfigReader({ ...source, rope_parameters: ROPE }, path);
}

const isMxfp4 = ({ source }: ConfigReader): boolean => {
  const found = source["quantization_config"];
  return typeof found === "object" && found !== null && (found as { quant_method?: unknown }).quant_method === "mxfp4";
};

export const gptOss = {
  ...dense,
  groups: {
    qkv: dense.groups.qkv,
    o: dense.groups.o,
    expertGateUp: ["mlp.experts.gate_up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  architectures: ["GptOssForCausalLM"],
  about: { models: "gpt-oss 20B and 120B", golden: "families/gpt_oss", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(withRope(config), DEFAULTS);
    const attentionBias = config.flag("attention_bias", true);
    config.notNull("sliding_window");
    const window = config.count("sliding_window", 128);
    const sliding = slidingLayers(config, sizes.layers) ?? range(sizes.layers).map((layer) => layer % 2 === 0);
    return {
      ...sizes,
      windows: sliding.map((slides) => (slides ? window : null)),
      ...{ qkvBias: attentionBias, oBias: attentionBias },
      experts: {
        ...readCounts(config, { count: 128, perToken: 4 }),
        intermediate: sizes.intermediate,
        router: NORMALISED,
        layers: range(sizes.layers).map(() => true),
        shared: null,
        clamp: { limit: config.number("swiglu_limit", 7), alpha: config.number("swiglu_alpha", 1.702) },
        files: isMxfp4(config) ? ("rows" as const) : ("columns" as const),
        isMxfp4: isMxfp4(config),
      },
    };
  },
  layer: (spec, index) => {
    const { clamp, files } = spec.experts!;
    const operations = dense
      .layer(spec, index)
      .map((of): Operation => (of.op === "attention" ? { ...of, sinks: "self_attn.sinks" } : of));
    const path = "mlp.experts";
    return mixed(
      operations,
      spec,
      {
        routerPath: "mlp.router",
        up: { group: "expertGateUp", path, linears: ["gate_up_proj"], files, bias: true },
        down: { group: "expertDown", path, linears: ["down_proj"], files, bias: true },
      },
      { routerBias: true, activation: { interleaved: true, clamp } },
    );
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
