// The text towers of Qwen2.5-VL (Bai et al. 2025) and of Qwen3-VL (2025), dense and a mixture of experts: the layers of Qwen 2
// and of Qwen 3. Text has one position for time, height and width, so that their rope of three parts is the plain one.

import type { Definition } from "./definition.ts";
import { dense, readDense } from "./dense.ts";
import { mixed } from "./moe.ts";
import { qwenWindows } from "./qwen2.ts";
import { readMixture } from "./qwen3-moe.ts";

export const qwen25vl = {
  ...dense,
  architectures: [],
  about: { models: "Qwen2.5-VL", golden: "families/qwen2_5_vl", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, {
      ...{ hidden: 8192, layers: 80, heads: 64, kvHeads: 8, headDim: null, intermediate: 29568, vocab: 152064 },
      ...{ positions: 32768, normEps: 1e-5, theta: 1e6 },
    });
    return { ...sizes, windows: qwenWindows(config, sizes.layers, 80), qkvBias: true };
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;

export const qwen3vl = {
  ...dense,
  architectures: [],
  about: { models: "Qwen3-VL, the dense models", golden: "families/qwen3_vl", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, {
      ...{ kvHeads: 32, headDim: 128, intermediate: 22016, vocab: 151936, positions: 128000, theta: 500000 },
    });
    const attentionBias = config.flag("attention_bias", false);
    return { ...sizes, qkvBias: attentionBias, oBias: attentionBias, qkNorm: true };
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;

export const qwen3vlMoe = {
  ...dense,
  groups: {
    ...dense.groups,
    expertGateUp: ["mlp.experts.gate_up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  architectures: [],
  about: { models: "Qwen3-VL, the mixtures of experts", golden: "families/qwen3_vl_moe", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, {
      ...{ hidden: 2048, layers: 24, heads: 16, kvHeads: 16, headDim: null, intermediate: 5632, vocab: 151936 },
      ...{ positions: 128000, theta: 500000 },
    });
    const attentionBias = config.flag("attention_bias", false);
    const experts = readMixture(config, sizes.layers, { count: 60, perToken: 4 }, 1408, true);
    return { ...sizes, qkvBias: attentionBias, oBias: attentionBias, qkNorm: true, experts: { ...experts, files: "columns" } };
  },
  otherFiles: "rows",
  layer: (spec, index) => {
    const operations = dense.layer(spec, index);
    const { layers, files } = spec.experts!;
    if (!layers[index]) return operations;
    const all = { path: "mlp.experts", files, bias: false } as const;
    return mixed(operations, spec, {
      routerPath: "mlp.gate",
      up: { ...all, group: "expertGateUp", linears: ["gate_up_proj"] },
      down: { ...all, group: "expertDown", linears: ["down_proj"] },
    });
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;
