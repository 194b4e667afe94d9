// Youtu-LLM (Tencent 2025): DeepSeek V3's attention over latents in a dense model.

import type { Definition } from "./definition.ts";
import { isInterleaved, latent, readLatent } from "./latent.ts";

const DEFAULTS = {
  ...{ hidden: 2048, heads: 16, intermediate: 6144, vocab: 128256, positions: 131072, isTied: true },
  ...{ queryRank: 1536, rank: 512, plain: 128, rotated: 64, value: 128 },
};

export const youtu = {
  ...latent,
  architectures: ["YoutuForCausalLM"],
  about: { models: "Youtu-LLM 2B", golden: "families/youtu", on: "2026-11-30" },
  read: (config) => readLatent(config, DEFAULTS, isInterleaved(config)),
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
