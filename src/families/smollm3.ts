// SmolLM3 (Hugging Face 2025): Llama's layer, without a rotary embedding in every fourth.

import { range } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, oneRope, readSizes, readWindow, slidingLayers, withLayerTypes } from "./dense.ts";
import { NAMES } from "./gguf.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2048, layers: 36, heads: 16, kvHeads: 4, headDim: null, intermediate: 11008, vocab: 128256, positions: 32768 },
  isTied: true,
};

/** Whether each layer has a rotary embedding: `no_rope_layers` is 1 where it has. */
function rotating(config: ConfigReader, layers: number): readonly boolean[] {
  const flags = config.source["no_rope_layers"];
  const interval = config.count("no_rope_layer_interval", 4);
  if (flags == null) return range(layers).map((layer) => (layer + 1) % interval !== 0);
  const isRight = Array.isArray(flags) && flags.length >= layers && flags.every((flag) => flag === 0 || flag === 1);
  if (!isRight)
    throw config.wrong(
      "no_rope_layers",
      `is ${JSON.stringify(flags)}, expected 0 or 1 for each of ${counted(layers, "layer")}`,
    );
  return flags.slice(0, layers).map((flag) => flag === 1);
}

export const smollm3 = {
  ...dense,
  architectures: ["SmolLM3ForCausalLM"],
  gguf: {
    architecture: "smollm3",
    isPermuted: true,
    names: NAMES,
    biases: ["qkv"],
    ropes: ["linear", "yarn"],
    rotates: (layer) => (layer + 1) % 4 !== 0,
  },
  about: { models: "SmolLM3 3B", golden: "families/smollm3", on: "2026-11-29" },
  read: (config) => {
    const isNull = config.source["num_key_value_heads"] === null; // transformers then takes as many as heads
    const sizes = readSizes(config, isNull ? { ...DEFAULTS, kvHeads: null } : DEFAULTS);
    const has = rotating(config, sizes.layers);
    const rope = readRope(config, { ...sizes, theta: 2e6 });
    const window = config.flag("use_sliding_window", false) ? readWindow(config, null) : null;
    const sliding = slidingLayers(config, sizes.layers);
    const attentionBias = config.flag("attention_bias", false);
    const windows = range(sizes.layers).map((layer) => ((sliding ? sliding[layer] : !has[layer]) ? window : null));
    return {
      ...withLayerTypes(config, { ...sizes, windows }),
      ...oneRope(sizes, rope, (layer) => has[layer]!),
      ...{ qkvBias: attentionBias, oBias: attentionBias, mlpBias: config.flag("mlp_bias", false) },
    };
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
