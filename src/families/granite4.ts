// Granite 4 (IBM 2025), the models whose layers are all attention and whose MLPs are dense: Granite 3's layer with one linear
// for gate and up, and no rotary embedding unless the config names it.

import { range, sum } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, oneRope, readSizes } from "./dense.ts";
import { withScalars } from "./granite.ts";
import { readRope } from "./rope.ts";

/** Of each layer what it has before its MLP; null for what is not known. */
export function kindsOf(config: ConfigReader, layers: number): readonly ("attention" | "mamba" | null)[] {
  const { source } = config;
  const types = source["layer_types"] ?? source["layers_block_type"] ?? range(layers).map(() => "mamba");
  if (!Array.isArray(types) || types.length !== layers)
    throw config.wrong("layer_types", `is ${JSON.stringify(types)}, expected one for each of ${counted(layers, "layer")}`);
  return types.map((type) => KINDS.get(type) ?? null);
}

const KINDS: ReadonlyMap<unknown, "attention" | "mamba"> = new Map([
  ["attention", "attention"],
  ["full_attention", "attention"],
  ["mamba", "mamba"],
  ["linear_attention", "mamba"],
]);

/** What all of Granite 4 have. */
export function readGranite4(config: ConfigReader) {
  const defaults = { kvHeads: null, headDim: null, intermediate: 1024, vocab: 32000, positions: 2048 };
  const sizes = readSizes(config, defaults);
  const position = config.source["position_embedding_type"] ?? "nope";
  if (position !== "rope") config.only("position_embedding_type", "nope");
  const ropes = oneRope(sizes, readRope(config, sizes), () => position === "rope");
  const attentionBias = config.flag("attention_bias", false);
  const intermediate = config.count("shared_intermediate_size", 1024);
  return { ...withScalars(config, { ...sizes, ...ropes, intermediate }), qkvBias: attentionBias, oBias: attentionBias };
}

/** The products of the MLP under its own names. */
export function shared(operation: Operation): Operation {
  if (operation.op !== "linears") return operation;
  if (operation.group === "gateUp") return { ...operation, group: "sharedInput", out: [sum(operation.out)] };
  return operation.group === "down" ? { ...operation, group: "sharedOutput" } : operation;
}

export const granite4 = {
  ...dense,
  isScaleExact: true,
  architectures: ["GraniteMoeHybridForCausalLM"],
  isFor: (config) =>
    config.source["num_local_experts"] === 0 && kindsOf(config, config.layers(32)).every((kind) => kind === "attention"),
  about: {
    models: "Granite 4.0 micro, 1B and 350M, those without Mamba layers",
    golden: "families/granitemoehybrid",
    on: "2026-11-29",
  },
  groups: {
    qkv: dense.groups.qkv,
    o: dense.groups.o,
    sharedInput: ["shared_mlp.input_linear"],
    sharedOutput: ["shared_mlp.output_linear"],
  },
  read: readGranite4,
  layer: (spec, index) => dense.layer(spec, index).map(shared),
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
