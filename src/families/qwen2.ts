// Qwen 2 and 2.5 (Yang et al. 2024): Llama's layer with biases of q, k and v, and a sliding window in some layers.

import { range } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, readDense, readWindow, sameInAll, slidingLayers, withLayerTypes } from "./dense.ts";
import { NAMES } from "./gguf.ts";

/** The window of each layer: by `layer_types`, else in the layers from `max_window_layers` on. */
export function qwenWindows(config: ConfigReader, layers: number, fullLayers = 28): (number | null)[] {
  const size = readWindow(config, 4096);
  if (!config.flag("use_sliding_window", false) || size === null)
    return withLayerTypes(config, { layers, windows: sameInAll(layers, null) }).windows;
  const sliding = slidingLayers(config, layers);
  const full = config.source["max_window_layers"] === undefined ? fullLayers : config.whole("max_window_layers");
  return range(layers).map((layer) => ((sliding ? sliding[layer] : layer >= full) ? size : null));
}

export const qwen2 = {
  ...dense,
  architectures: ["Qwen2ForCausalLM"],
  gguf: {
    architecture: "qwen2",
    names: NAMES,
    biases: ["qkv"],
    ropes: ["linear", "yarn"],
    headsFill: true,
    is70B: ({ layers }) => layers === 80,
  },
  about: { models: "Qwen 2, Qwen 2.5", golden: "peft/qwen2", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, { kvHeads: 32, headDim: null, intermediate: 22016, vocab: 151936, positions: 32768 });
    return { ...sizes, windows: qwenWindows(config, sizes.layers), qkvBias: true };
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: true },
} as const satisfies Definition;
