// Qwen 2 and 2.5 (Yang et al. 2024): Llama's layer with biases of q, k and v, and a sliding window in some layers.

import { range } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, readSizes, sameWindows } from "./dense.ts";

/** The window of each layer: by `layer_types`, else in the layers from `max_window_layers` on. */
export function qwenWindows(config: ConfigReader, layers: number): (number | null)[] {
  const { source } = config;
  const size = source["sliding_window"] === null ? null : config.count("sliding_window", 4096);
  if (!config.flag("use_sliding_window", false) || size === null) return sameWindows(layers, null);
  const types = source["layer_types"];
  if (Array.isArray(types)) {
    if (types.length !== layers) throw config.wrong("layer_types", `has ${types.length} entries for ${layers} layers`);
    return types.map((type) => (type === "sliding_attention" ? size : null));
  }
  const full = source["max_window_layers"] === undefined ? 28 : config.whole("max_window_layers");
  return range(layers).map((layer) => (layer >= full ? size : null));
}

export const qwen2 = {
  ...dense,
  architectures: ["Qwen2ForCausalLM"],
  read: (config) => {
    const sizes = readSizes(config, { kvHeads: 32, headDim: null, intermediate: 22016, vocab: 151936, positions: 32768 });
    const windows = qwenWindows(config, sizes.layers);
    return { ...sizes, windows, qkvBias: true, oBias: false, mlpBias: false, qkNorm: false };
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: true },
} as const satisfies Definition;
