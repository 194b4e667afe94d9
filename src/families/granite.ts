// Granite 3 (IBM 2024): Llama's layer with four scalars.
//
// With a multiplier r of both residual branches the stream is x = r y, of y = e/r x0 + the branches' sum: a norm of x with eps
// is the norm of y with eps / r^2. So y is computed, and no branch is multiplied.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, readDense, withLayerTypes } from "./dense.ts";
import { NAMES } from "./gguf.ts";

/** The spec with the scalars of the config. */
export function withScalars<S extends Pick<ModelSpec, "normEps">>(config: ConfigReader, sizes: S) {
  const scalar = (name: string) => {
    config.notNull(name); // transformers refuses it, or multiplies by what PyTorch takes in its place
    return config.number(name, 1);
  };
  const residual = scalar("residual_multiplier");
  return {
    ...sizes,
    normEps: sizes.normEps / residual ** 2,
    embeddingScale: scalar("embedding_multiplier") / residual,
    attentionScale: scalar("attention_multiplier"),
    logitScale: 1 / scalar("logits_scaling"),
  };
}

/** llama.cpp's keys by the config's. */
const SCALARS = {
  "attention.scale": "attention_multiplier",
  embedding_scale: "embedding_multiplier",
  residual_scale: "residual_multiplier",
  logit_scale: "logits_scaling",
} as const;

export const granite = {
  ...dense,
  isScaleExact: true,
  architectures: ["GraniteForCausalLM"],
  gguf: {
    architecture: "granite",
    isPermuted: true,
    names: NAMES,
    biases: ["qkv", "o", "mlp"],
    ropes: ["linear", "llama3", "yarn"],
    ...{ attentionScale: "key", embeddingScale: "key" },
    keys: (_, config) => Object.entries(SCALARS).map(([key, name]) => [key, { f32: Number(config[name] ?? 1) }] as const),
    normEps: ({ normEps }, config) => normEps * Number(config[SCALARS.residual_scale] ?? 1) ** 2,
  },
  about: { models: "Granite 3.0 to 3.3", golden: "families/granite", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, { kvHeads: null, headDim: null, intermediate: 11008, vocab: 32000, positions: 2048 });
    const attentionBias = config.flag("attention_bias", false);
    const mlpBias = config.flag("mlp_bias", false);
    return withLayerTypes(config, { ...withScalars(config, sizes), qkvBias: attentionBias, oBias: attentionBias, mlpBias });
  },
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
