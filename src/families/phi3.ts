// Phi-3, 3.5 and 4 (Abdin et al. 2024): Llama's layer with one linear for q, k and v and one for gate and up, and in some
// models LongRoPE and heads that are rotated in part.

import { sum } from "../base/shape.ts";
import { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, oneRope, readSizes, readWindow, sameInAll, withLayerTypes } from "./dense.ts";
import { NAMES } from "./gguf.ts";
import { readRope } from "./rope.ts";

/** The same product, of one linear. */
const fused = (operation: Operation): Operation =>
  operation.op === "linears" && operation.out.length > 1
    ? { ...operation, group: `${operation.group}Fused`, out: [sum(operation.out)] }
    : operation;

/** A config whose original positions stand at its top, as the class has them, and whose LongRoPE is called that. */
function renamed({ source, path }: ConfigReader): ConfigReader {
  const more: Record<string, unknown> = { original_max_position_embeddings: 4096, ...source };
  for (const key of ["rope_scaling", "rope_parameters"]) {
    const table = source[key] as Readonly<Record<string, unknown>> | null | undefined;
    const type = table?.["rope_type"] ?? table?.["type"];
    if (type === "su" || type === "yarn") more[key] = { ...table, rope_type: "longrope" };
  }
  return new ConfigReader(more, path);
}

export const phi3 = {
  ...dense,
  architectures: ["Phi3ForCausalLM"],
  gguf: {
    architecture: "phi3",
    names: { ...NAMES, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up" },
    biases: [],
    ropes: ["longrope", "linear"],
    headsFill: true,
    cutsByName: true,
  },
  about: { models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini", golden: "families/phi3", on: "2026-11-29" },
  groups: {
    qkvFused: ["self_attn.qkv_proj"],
    o: ["self_attn.o_proj"],
    gateUpFused: ["mlp.gate_up_proj"],
    down: ["mlp.down_proj"],
  },
  read: (given) => {
    const config = renamed(given);
    const defaults = { hidden: 3072, kvHeads: null, headDim: null, intermediate: 8192, vocab: 32064, positions: 4096 };
    const sizes = readSizes(config, { ...defaults, normEps: 1e-5 });
    const rope = readRope(config, { ...sizes, isPartial: true });
    const windows = sameInAll(sizes.layers, readWindow(config, null));
    return withLayerTypes(config, { ...sizes, ...oneRope(sizes, rope), windows });
  },
  layer: (spec, index) => dense.layer(spec, index).map(fused),
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
