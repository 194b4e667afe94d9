// GLM-4.7-Flash (Z.ai 2026): DeepSeek V3's layer, whose values are wider and whose kinds of MLP may be listed.

import { range } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import { deepseekGroups, deepseekLayer, readExperts, sigmoids } from "./deepseek.ts";
import type { Definition } from "./definition.ts";
import { isInterleaved, latent, readLatent } from "./latent.ts";

const DEFAULTS = {
  ...{ hidden: 2048, layers: 47, heads: 20, intermediate: 10240, vocab: 154880, positions: 202752, normEps: 1e-5 },
  ...{ queryRank: 768, rank: 512, plain: 192, rotated: 64, value: 256 },
};
const EXPERTS = { count: 64, perToken: 4, intermediate: 1536, shared: 1, scaling: 1.8, groups: 1, keptGroups: 1 };

/** mlp_layer_types; without it, as in released files, all layers but the first have experts. */
function sparseLayers(config: ConfigReader, layers: number): readonly boolean[] {
  const types = config.source["mlp_layer_types"];
  if (types != null && (!Array.isArray(types) || types.length !== layers))
    throw config.wrong("mlp_layer_types", `is ${JSON.stringify(types)}, expected the kinds of ${layers} layers`);
  const found = (types as readonly unknown[] | null | undefined)?.map((type, layer) => {
    if (type === "sparse" || type === "dense") return type === "sparse";
    throw config.wrong("mlp_layer_types", `has ${JSON.stringify(type)} for layer ${layer}, expected "dense" or "sparse"`);
  });
  const sparse = found ?? range(layers).map((layer) => layer > 0);
  const first = config.source["first_k_dense_replace"] == null ? null : config.whole("first_k_dense_replace");
  if (first !== null && sparse.some((has, layer) => has !== layer >= first))
    throw config.wrong("first_k_dense_replace", `is ${first}, where layers without experts are others by mlp_layer_types`);
  return sparse;
}

export const glm4MoeLite = {
  ...latent,
  groups: deepseekGroups,
  layer: deepseekLayer,
  architectures: ["Glm4MoeLiteForCausalLM"],
  about: { models: "GLM-4.7-Flash 30B-A3B", golden: "families/glm4_moe_lite", on: "2026-11-30" },
  read: (config) => {
    const sizes = readLatent(config, DEFAULTS, isInterleaved(config));
    return { ...sizes, experts: readExperts(config, sparseLayers(config, sizes.layers), EXPERTS, sigmoids) };
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
