// Granite 4 (IBM 2025), the models whose layers are all attention and whose MLPs are dense: Granite 3's layer with one linear
// for gate and up, and no rotary embedding unless the config names it.

import { RequestError } from "../base/errors.ts";
import { range, sum } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, oneRope, readSizes } from "./dense.ts";
import { withScalars } from "./granite.ts";
import { readRope } from "./rope.ts";

const unsupported = ({ path }: ConfigReader, what: string, hint: string) =>
  new RequestError("model.architecture", `${path}: ${what}`, hint);

/** Refuses Mamba layers and experts. */
function checkDense(config: ConfigReader, layers: number): void {
  const { source } = config;
  const types = source["layer_types"] ?? source["layers_block_type"] ?? range(layers).map(() => "mamba");
  if (!Array.isArray(types) || types.length !== layers)
    throw config.wrong("layer_types", `is ${JSON.stringify(types)}, expected one for each of ${layers} layers`);
  const other = types.findIndex((type) => type !== "attention" && type !== "full_attention");
  if (other >= 0)
    throw unsupported(config, `layer_types has ${JSON.stringify(types[other])} for layer ${other}`, "supported is attention");
  const experts = source["num_local_experts"] ?? 8;
  if (experts !== 0)
    throw unsupported(config, `num_local_experts is ${JSON.stringify(experts)}`, "only 0, a dense MLP, is supported");
  const position = source["position_embedding_type"] ?? null;
  if (position !== null && position !== "rope")
    throw unsupported(config, `position_embedding_type is ${JSON.stringify(position)}`, 'supported are "rope" and null');
}

/** The products of the MLP under its own names. */
function shared(operation: Operation): Operation {
  if (operation.op !== "linears") return operation;
  if (operation.group === "gateUp") return { ...operation, group: "sharedInput", out: [sum(operation.out)] };
  return operation.group === "down" ? { ...operation, group: "sharedOutput" } : operation;
}

export const granite4 = {
  ...dense,
  isScaleExact: true,
  architectures: ["GraniteMoeHybridForCausalLM"],
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
  read: (config) => {
    const defaults = { kvHeads: null, headDim: null, intermediate: 1024, vocab: 32000, positions: 2048 };
    const sizes = readSizes(config, defaults);
    checkDense(config, sizes.layers);
    const isRotated = config.source["position_embedding_type"] === "rope";
    const ropes = isRotated ? oneRope(sizes, readRope(config, sizes)) : oneRope(sizes, readRope(config, sizes), () => false);
    const attentionBias = config.flag("attention_bias", false);
    const intermediate = config.count("shared_intermediate_size", 1024);
    return { ...withScalars(config, { ...sizes, ...ropes, intermediate }), qkvBias: attentionBias, oBias: attentionBias };
  },
  layer: (spec, index) => dense.layer(spec, index).map(shared),
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
