// Qwen 3.5 and 3.6 (2026), the mixtures of experts: the dense models' attention, and in all layers experts for the MLP, next to
// one that all tokens pass, each by a gate of its own.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, ExpertProduct, Operation } from "./definition.ts";
import { sameInAll } from "./dense.ts";
import { type ExpertsSpec, mixed, PLAIN_EXPERTS, readCounts, sharedMlp } from "./moe.ts";
import { hybridLayer, qwen35, readHybrid } from "./qwen3-5.ts";

const DEFAULTS = {
  ...{ hidden: 2048, layers: 40, heads: 16, kvHeads: 2, headDim: 256, intermediate: 5632, vocab: 248320, positions: 32768 },
};

/** Features of the expert that all tokens pass. */
export const readShared = (config: ConfigReader): number => config.count("shared_expert_intermediate_size", 512);

function readExperts(config: ConfigReader, layers: number): ExpertsSpec {
  return {
    ...PLAIN_EXPERTS,
    ...readCounts(config, { count: 256, perToken: 8 }),
    intermediate: config.count("moe_intermediate_size", 512),
    layers: sameInAll(layers, true),
    files: "rows",
    shared: readShared(config),
  };
}

/** Gate and up, where each expert has tensors of its own. */
export const EACH_UP = { group: "expertUp", linears: ["gate_proj", "up_proj"] };

/** A layer whose MLP is a mixture with an expert that all tokens pass. */
export function sharedMixture(
  operations: readonly Operation[],
  spec: ModelSpec,
  up: Pick<ExpertProduct, "group" | "linears">,
): readonly Operation[] {
  const { hidden, experts } = spec;
  const all = { path: "mlp.experts", files: experts!.files, bias: false };
  const down = { ...all, group: "expertDown", linears: ["down_proj"] };
  const paths = { routerPath: "mlp.gate", up: { ...all, ...up }, down };
  const mixture = mixed(operations, spec, paths, { residual: "shared" });
  return [
    ...mixture.slice(0, -1),
    ...sharedMlp(hidden, experts!.shared!, ["sharedExpertUp", "sharedExpertDown"], { to: "sharedOut", residual: null }),
    {
      ...{ op: "tokenGate", from: "sharedOut", to: "shared", gate: "h2", weight: "mlp.shared_expert_gate.weight" },
      ...{ size: hidden, residual: "mid" },
    },
    mixture.at(-1)!,
  ];
}

export const SHARED_EXPERT = {
  sharedExpertUp: ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"],
  sharedExpertDown: ["mlp.shared_expert.down_proj"],
} as const;

const { gateUp: _, down: __, ...attention } = qwen35.groups;

export const qwen35Moe = {
  ...qwen35,
  architectures: ["Qwen3_5MoeForCausalLM"],
  about: {
    models: "Qwen 3.5 and 3.6, the mixtures of experts (35B-A3B, 122B, 397B)",
    golden: "families/qwen3_5_moe",
    on: "2026-11-29",
  },
  groups: {
    ...attention,
    ...SHARED_EXPERT,
    expertGateUp: ["mlp.experts.gate_up_proj"],
    expertUp: ["mlp.experts.gate_proj", "mlp.experts.up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  read: (config) => {
    const sizes = readHybrid(config, DEFAULTS);
    return { ...sizes, experts: readExperts(config, sizes.layers) };
  },
  otherFiles: "each",
  layer: (spec, index) => {
    const up = spec.experts!.files === "each" ? EACH_UP : { group: "expertGateUp", linears: ["gate_up_proj"] };
    return sharedMixture(hybridLayer(spec, index), spec, up);
  },
} as const satisfies Definition;

/** As config.json calls it where it is all of a model. */
export const qwen35MoeText = { ...qwen35Moe, architectures: [] } as const satisfies Definition;
