// Gemma 3 (Gemma Team 2025), 270M to 27B; from 4B on as a part of a model that sees. Layers with a window have a rope of their
// own, and all have norms of each head of q and k.

import type { Rope } from "../base/spec.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { slidingLayers } from "./dense.ts";
import { gemma, readCap, readGemma, slidingBut } from "./gemma.ts";
import { POST_NORMED } from "./gguf.ts";
import { type RopeDefaults, readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2304, layers: 26, heads: 8, kvHeads: 4, headDim: 256, intermediate: 9216, vocab: 262208, positions: 131072 },
};

/**
 * The ropes of full and of sliding layers. Of old, rope_theta and rope_scaling are the full layers' and rope_local_base_freq
 * the others'; since transformers 5 rope_parameters has a table for each.
 */
function readRopes(config: ConfigReader, sizes: RopeDefaults): readonly [full: Rope, sliding: Rope] {
  const { rope_parameters: tables, rope_scaling: scaling, rope_theta: theta, rope_local_base_freq: local } = config.source;
  const of = (kind: string): ConfigObject => (isObject(tables) && isObject(tables[kind]) ? tables[kind] : {});
  const rope = (table: ConfigObject, outer: unknown, fallback: number) => {
    const one = new ConfigReader({ rope_parameters: table, rope_theta: table["rope_theta"] ?? outer }, config.path);
    return readRope(one, { ...sizes, theta: fallback });
  };
  const full = { ...of("full_attention"), ...(isObject(scaling) ? scaling : {}) };
  return [rope(full, theta, 1e6), rope(of("sliding_attention"), local, 1e4)];
}

const isObject = (value: unknown): value is ConfigObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const gemma3 = {
  ...gemma,
  architectures: ["Gemma3ForCausalLM"],
  gguf: {
    architecture: "gemma3",
    names: POST_NORMED,
    biases: ["qkv"],
    hasWindows: true,
    hasTwoBases: true,
    ropes: ["linear"],
    attentionScale: ({ layers, hidden, heads, headDim }) => 1 / Math.sqrt(layers === 62 ? hidden / heads : headDim),
    embeddingScale: ({ hidden }) => Math.sqrt(hidden),
  },
  about: { models: "Gemma 3 (270M to 27B)", golden: "gemma/gemma3", on: "2026-11-29" },
  read: (config) => {
    const layers = config.layers(DEFAULTS.layers);
    const sliding = slidingLayers(config, layers) ?? slidingBut(config.count("sliding_window_pattern", 6), layers);
    // transformers has the key, but no cap in the layers.
    if (config.source["attn_logit_softcapping"] != null)
      throw config.wrong("attn_logit_softcapping", `is ${config.source["attn_logit_softcapping"]}, expected null in Gemma 3`);
    const sizes = readGemma(config, DEFAULTS, sliding);
    return {
      ...sizes,
      ropes: [...readRopes(config, sizes)],
      layerRopes: sliding.map(Number),
      qkNorm: true,
      logitCap: readCap(config, "final_logit_softcapping", null),
    };
  },
} as const satisfies Definition;

/** As config.json calls it where it is all of a model. */
export const gemma3Text = { ...gemma3, architectures: [] } as const satisfies Definition;
