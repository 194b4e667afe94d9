// Which type each tensor of a GGUF has, as llama.cpp's converter and its llama-quantize choose it without an importance matrix.

import type { ModelSpec } from "../../base/spec.ts";
import type { GgufForm } from "../../families/gguf.ts";
import { type EncodedType, STORED_TYPES } from "../stored.ts";

/** What a GGUF is mostly of, with ggml's number of it (`general.file_type`). */
export const GGUF_TYPES = { f32: 0, f16: 1, bf16: 32, q8_0: 7, q4_k_m: 15 } as const;
export type GgufType = keyof typeof GGUF_TYPES;

const PLAIN = { f32: "F32", f16: "F16", bf16: "BF16", q8_0: "Q8_0" } as const;
/** Of rows that are no whole blocks of 256. */
const FALLBACK: Partial<Record<EncodedType, EncodedType>> = { Q4_K: "Q5_0", Q5_K: "Q5_1", Q6_K: "Q8_0" };

type Tensor = { readonly name: string; readonly shape: readonly number[] };

export function ggufTypeOf(type: GgufType, { name, shape }: Tensor, spec: ModelSpec, form: GgufForm): EncodedType {
  if (shape.length < 2 || !name.endsWith(".weight") || name.endsWith("_norm.weight")) return "F32";
  const wanted = type === "q4_k_m" ? mixed(name, spec, form) : PLAIN[type];
  const fits = (of: EncodedType) => shape.at(-1)! % STORED_TYPES[of].values === 0;
  if (fits(wanted)) return wanted;
  const smaller = FALLBACK[wanted];
  return smaller !== undefined && fits(smaller) ? smaller : "F16";
}

/** Q4_K_M: more bits for what matters most. */
function mixed(name: string, spec: ModelSpec, { is70B }: GgufForm): EncodedType {
  const [, layer, part] = /^blk\.(\d+)\.([a-z_]+)\.weight$/.exec(name) ?? [];
  if (part === undefined) return name === "output.weight" || spec.tiedEmbeddings ? "Q6_K" : "Q4_K";
  if (part === "attn_qkv") return "Q5_K";
  const { layers } = spec;
  const eighth = Math.floor(layers / 8);
  const at = Number(layer);
  const isSpecial = at < eighth || at >= Math.floor((7 * layers) / 8) || (at - eighth) % 3 === 2;
  if (part !== "attn_v" && part !== "ffn_down") return "Q4_K";
  if (isSpecial) return "Q6_K";
  return part === "attn_v" && is70B?.(spec) ? "Q5_K" : "Q4_K";
}
