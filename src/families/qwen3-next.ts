// Qwen3-Next (2025): the layers of Qwen 3.5's mixtures, with one projection for q, k, v and z and one for b and a, whose
// features lie by key head.

import type { ModelSpec } from "../base/spec.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense } from "./dense.ts";
import { deltaWidths, hybridLayer, qwen35, readHybrid } from "./qwen3-5.ts";
import { EACH_UP, readShared, SHARED_EXPERT, sharedMixture } from "./qwen3-5-moe.ts";
import { readMixture } from "./qwen3-moe.ts";

const DEFAULTS = {
  ...{ hidden: 2048, layers: 48, heads: 16, kvHeads: 2, headDim: 256, intermediate: 5632, vocab: 151936, positions: 32768 },
};

function projections(spec: ModelSpec): readonly Operation[] {
  const { keyHeads: groups, valueHeads, keyDim, valueDim } = spec.delta!.heads;
  const { mixed, value } = deltaWidths(spec);
  const each = valueHeads / groups;
  const linears = { op: "linears", from: "h1", in: spec.hidden, residual: null, bias: false } as const;
  return [
    { ...linears, to: "qkvzByHead", group: "deltaQkvz", out: [mixed + value] },
    { op: "regroup", from: "qkvzByHead", to: "qkvz", groups, parts: [keyDim, keyDim, each * valueDim, each * valueDim] },
    { ...linears, to: "gatesByHead", group: "deltaBa", out: [2 * valueHeads] },
    { op: "regroup", from: "gatesByHead", to: "gates", groups, parts: [each, each, 0, 0] },
  ];
}

export const qwen3Next = {
  ...qwen35,
  architectures: ["Qwen3NextForCausalLM"],
  about: { models: "Qwen3-Next 80B-A3B, Qwen3-Coder-Next", golden: "families/qwen3_next", on: "2026-11-29" },
  groups: {
    ...dense.groups,
    ...SHARED_EXPERT,
    deltaQkvz: ["linear_attn.in_proj_qkvz"],
    deltaBa: ["linear_attn.in_proj_ba"],
    deltaOut: qwen35.groups.deltaOut,
    expertUp: ["mlp.experts.gate_proj", "mlp.experts.up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  read: (config) => {
    const sizes = readHybrid(config, DEFAULTS);
    const counts = { count: 512, perToken: 10 };
    const mixture = readMixture(config, sizes.layers, counts, 512, config.flag("norm_topk_prob", true));
    return { ...sizes, experts: { ...mixture, shared: readShared(config) } };
  },
  layer: (spec, index) => {
    const operations = hybridLayer(spec, index, projections);
    if (!spec.experts!.layers[index]) return operations;
    return sharedMixture(operations, spec, EACH_UP);
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;
