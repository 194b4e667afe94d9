// Granite 4's hybrids (IBM 2025): Granite 3's layer with Mamba 2 in the place of attention in most layers, no rotary embedding
// unless the config names it, and for the MLP one that all tokens pass, with experts next to it or none.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, sameInAll } from "./dense.ts";
import { graniteMoe } from "./granite-moe.ts";
import { granite4, kindsOf, readGranite4, shared } from "./granite4.ts";
import { checkHeads, mamba, readLimits, TAPS } from "./mamba.ts";
import { type ExpertsSpec, mixed, PLAIN_EXPERTS, readCounts } from "./moe.ts";

function readHeads(config: ConfigReader, hidden: number) {
  const heads = config.count("mamba_n_heads", 128);
  const inner = config.count("mamba_expand", 2) * hidden;
  const isGiven = (config.source["mamba_d_head"] ?? "auto") !== "auto";
  const headDim = isGiven ? config.count("mamba_d_head", null) : inner / heads;
  if (!Number.isInteger(headDim) || heads * headDim !== inner)
    throw config.wrong("mamba_n_heads", `is ${heads}, of ${headDim} features, expected mamba_expand x hidden_size, ${inner}`);
  const read = { heads, headDim, groups: config.count("mamba_n_groups", 1), stateDim: config.count("mamba_d_state", 256) };
  checkHeads(config, read, "mamba_n_groups");
  return read;
}

/** Whether each layer is one of Mamba. */
function readMamba(config: ConfigReader, { layers, hidden }: Pick<ModelSpec, "layers" | "hidden">): ModelSpec["mamba"] {
  const kinds = kindsOf(config, layers);
  const other = kinds.indexOf(null);
  if (other >= 0) throw config.wrong("layer_types", `has another kind for layer ${other}, expected "mamba" or "attention"`);
  if (!kinds.includes("mamba")) return null;
  config.only("mamba_d_conv", TAPS);
  return {
    heads: readHeads(config, hidden),
    limits: readLimits(config, "time_step_limit"),
    convolutionBias: config.flag("mamba_conv_bias", true),
    bias: config.flag("mamba_proj_bias", false),
    normEps: config.number("rms_norm_eps", 1e-6),
    layers: kinds.map((kind) => kind === "mamba"),
  };
}

function readExperts(config: ConfigReader, layers: number): ExpertsSpec | null {
  if (config.source["num_local_experts"] === 0) return null;
  return {
    ...PLAIN_EXPERTS,
    ...readCounts(config, { count: 8, perToken: 2 }),
    intermediate: config.count("intermediate_size", 11008),
    layers: sameInAll(layers, true),
    files: "rows",
  };
}

/** The layer's last operations, from the normed stream "h2": the MLP that all tokens pass, and experts that add to it. */
function withExperts(operations: readonly Operation[], spec: ModelSpec): readonly Operation[] {
  const all = { path: "block_sparse_moe", files: spec.experts!.files, bias: false } as const;
  const paths = {
    routerPath: "block_sparse_moe.router.layer",
    up: { ...all, group: "expertInput", linears: ["input_linear.weight"] },
    down: { ...all, group: "expertOutput", linears: ["output_linear.weight"] },
  };
  const mixture = mixed(operations, spec, paths, { residual: "shared" });
  const mlp = operations.slice(-3).map((of) => (of.to === "out" ? { ...of, to: "shared" } : of));
  return [...mixture.slice(0, -1), ...mlp, mixture.at(-1)!];
}

export const graniteH = {
  ...granite4,
  isFor: () => true,
  about: {
    models: "Granite 4.0 H micro, H tiny and H small, and all with Mamba layers or experts",
    golden: "families/granite_h",
    on: "2026-11-30",
  },
  groups: {
    ...granite4.groups,
    mambaIn: ["mamba.in_proj"],
    mambaOut: ["mamba.out_proj"],
    expertInput: graniteMoe.groups.expertInput,
    expertOutput: graniteMoe.groups.expertOutput,
  },
  read: (config) => {
    const sizes = readGranite4(config);
    return { ...sizes, mamba: readMamba(config, sizes), experts: readExperts(config, sizes.layers) };
  },
  layer: (spec, index) => {
    const [norm, ...others] = dense.layer(spec, index).map(shared);
    const mlp = others.slice(others.findIndex(({ from }) => from === "mid"));
    const isMamba = spec.mamba?.layers[index] ?? false;
    const operations = isMamba
      ? [norm!, ...mamba(spec, "mamba", { groups: ["mambaIn", "mambaOut"], to: "mid" }), ...mlp]
      : [norm!, ...others];
    return spec.experts === null ? operations : withExperts(operations, spec);
  },
} as const satisfies Definition;
