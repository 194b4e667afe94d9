// How llama.cpp has a family: the name of its architecture, the names of tensors, the keys of its metadata, and what it takes
// for granted, so that a model which it would compute otherwise is refused.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec, Rope } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { ConfigObject } from "./config.ts";

/** A value of a GGUF's metadata, with the type that llama.cpp reads it as. */
export type GgufWrittenValue =
  | string
  | boolean
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] }
  | { readonly f32s: readonly number[] }
  | { readonly booleans: readonly boolean[] };
export type GgufKeys = readonly (readonly [key: string, value: GgufWrittenValue])[];

export type GgufForm = {
  /** `general.architecture` */
  readonly architecture: string;
  /** Rows of q and k lie in the order of pairs that are rotated together: llama.cpp turns neighbours, Hugging Face halves. */
  readonly isPermuted?: true;
  /** By path within the layer. */
  readonly names: Readonly<Record<string, string>>;
  /** Linears that may have biases. */
  readonly biases: readonly ("qkv" | "o" | "mlp")[];
  /** Sliding windows are written; otherwise llama.cpp computes without any. */
  readonly hasWindows?: true;
  /** Layers with a window may have a rope of another base. */
  readonly hasTwoBases?: true;
  /** Changes of the rope that it computes. */
  readonly ropes: readonly NonNullable<Rope["scaling"]>["kind"][];
  /** Heads together have as many features as the stream. */
  readonly headsFill?: true;
  /** Takes the head from the embedding; left out: where the file has none. */
  readonly head?: "always tied" | "never tied";
  /** What it multiplies scores and rows of the embedding by; left out: 1 / sqrt(headDim), and 1. `"key"`: what a key says. */
  readonly attentionScale?: "key" | ((spec: ModelSpec) => number);
  readonly embeddingScale?: "key" | ((spec: ModelSpec) => number);
  /** Whether it rotates q and k of a layer; left out: of all. */
  readonly rotates?: (layer: number) => boolean;
  /** Whether llama-quantize counts it as a model of 70B, whose values get a bit more. */
  readonly is70B?: (spec: ModelSpec) => boolean;
  /** It goes by the model's name where it cuts texts (`ggufName`). */
  readonly cutsByName?: true;
  /** Further keys. */
  readonly keys?: (spec: ModelSpec, config: ConfigObject) => GgufKeys;
  readonly normEps?: (spec: ModelSpec, config: ConfigObject) => number;
};

/** Tokens that llama.cpp needs in a model with this in its name, whose special tokens take the white space after them along. */
const PHI3 = { name: /phi-?3/gi, tokens: ["</s>", "<unk>", "<s>", "<|endoftext|>"] };

/** The name of a model of these tokens, by which llama.cpp takes it for a Phi-3 just if it has Phi-3's tokens. */
export function ggufName(form: GgufForm, name: string, tokens: readonly string[]): string {
  if (!PHI3.tokens.every((token) => tokens.includes(token))) return name.replace(PHI3.name, "phi 3");
  return form.cutsByName && name.search(PHI3.name) < 0 ? `${name} (phi-3)` : name;
}

const ATTENTION = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
};
const MLP = { "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down" };
export const HEAD_NORMS = { "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm" };
/** Llama's names of a layer. */
export const NAMES = {
  ...{ ...ATTENTION, ...MLP },
  ...{ input_layernorm: "attn_norm", post_attention_layernorm: "ffn_norm" },
};
/** With norms after attention and MLP. */
export const POST_NORMED = {
  ...{ ...ATTENTION, ...MLP, ...HEAD_NORMS },
  ...{ input_layernorm: "attn_norm", post_attention_layernorm: "post_attention_norm" },
  ...{ pre_feedforward_layernorm: "ffn_norm", post_feedforward_layernorm: "post_ffw_norm" },
};

/** What a GGUF of a model has, as its architecture has it. */
export type GgufModel = GgufForm & {
  readonly metadata: GgufKeys;
  /** Tensors that follow from the rope: what its frequencies are divided by. */
  readonly factors: readonly (readonly [name: string, values: readonly number[]])[];
  /** What llama.cpp computes otherwise in some texts. */
  readonly notices: readonly string[];
};

/**
 * What a GGUF of this model has. Throws a RequestError, `export.gguf`, for a family or a setting that llama.cpp does not
 * compute; `config` is that of the text model.
 */
export function ggufModel(form: GgufForm | undefined, spec: ModelSpec, config: ConfigObject): GgufModel {
  const refused = (what: string) =>
    new RequestError(
      "export.gguf",
      `no GGUF is written of this model: ${what}`,
      "leave out --gguf for a Hugging Face folder, which llama.cpp's own converter may take",
    );
  if (form === undefined) throw refused(`mlora does not write those of ${spec.family}`);
  const different = differenceOf(form, spec);
  if (different !== null) throw refused(`llama.cpp's ${form.architecture} ${different}`);
  const notices = noticesOf(form, spec);
  return { ...form, metadata: keysOf(form, spec, config), factors: factorsOf(spec), notices };
}

function noticesOf(form: GgufForm, { windows, ropes }: ModelSpec): readonly string[] {
  const window = windows.find((size) => size !== null);
  const long = ropes.flatMap(({ scaling }) => (scaling?.kind === "longrope" ? [scaling.originalMaxPositions] : []))[0];
  return [
    ...(window == null || form.hasWindows
      ? []
      : [
          `llama.cpp computes this model without its sliding window: texts of more than ${counted(window, "token")} come out otherwise`,
        ]),
    ...(long === undefined
      ? []
      : [`llama.cpp takes LongRoPE's factors for long texts wherever its context (-c) is above ${long} tokens`]),
  ];
}

/** What llama.cpp has otherwise, to follow the architecture's name; null for nothing. */
function differenceOf(form: GgufForm, spec: ModelSpec): string | null {
  const { heads, headDim, hidden, layerRopes, ropes, windows } = spec;
  const [full, sliding] = ropesOf(spec);
  const scale = (of: GgufForm["attentionScale"], own: number) => (of === "key" ? null : (of?.(spec) ?? own));
  const [scores, rows] = [scale(form.attentionScale, 1 / Math.sqrt(headDim)), scale(form.embeddingScale, 1)];
  const isClose = (a: number | null, b: number) => a === null || Math.abs(a / b - 1) < 1e-6;
  const kinds = ropes.flatMap(({ scaling }) => scaling?.kind ?? []);
  const rotates = form.rotates ?? (() => true);
  const other = layerRopes.findIndex((rope, layer) => (rope !== null) !== rotates(layer));
  const biased = { qkv: spec.qkvBias, o: spec.oBias, mlp: spec.mlpBias };
  const unread = (Object.keys(biased) as (keyof typeof biased)[]).filter((of) => biased[of] && !form.biases.includes(of));
  const unknown = kinds.find((kind) => !form.ropes.includes(kind));
  if (spec.experts || spec.delta || spec.perLayer || spec.fullHeads || spec.keysAsValues) return "has no such layers";
  if (unread.length > 0) return `has no bias of ${unread.join(" and ")}`;
  if (form.headsFill && heads * headDim !== hidden) return `takes head_dim for ${hidden / heads}, and it is ${headDim}`;
  if (form.head === "never tied" && spec.tiedEmbeddings) return "needs an output head of its own";
  if (form.head === "always tied" && !spec.tiedEmbeddings) return "has no output head of its own";
  if (other >= 0) return `${layerRopes[other] === null ? "rotates" : "does not rotate"} layer ${other}`;
  if (unknown !== undefined) return `does not know the rope ${unknown}`;
  if (ropes.some(({ scaling }) => scaling?.kind === "yarn" && !scaling.truncate)) return "rounds the bounds of YaRN's ramp";
  if (ropes.some(({ queryScale }) => queryScale !== null)) return "does not scale queries by position";
  if (form.hasWindows && sliding?.scaling) return "does not change the rope of layers with a window";
  if (sliding && sliding.theta !== full?.theta && !form.hasTwoBases) return "has one base of the ropes of all layers";
  if (spec.logitScale !== 1 && form.embeddingScale !== "key") return "does not scale logits";
  if (full === undefined || (ropes.length > 1 && !form.hasWindows)) return "has one rope for all layers";
  if (new Set(windows.filter((window) => window !== null)).size > 1) return "has one size of windows";
  if (!isClose(scores, spec.attentionScale)) return `scales scores by ${scores}, and the model by ${spec.attentionScale}`;
  if (!isClose(rows, spec.embeddingScale)) return `scales the embedding by ${rows}, and the model by ${spec.embeddingScale}`;
  return null;
}

/** The ropes of layers without and with a window, as far as there are such. */
function ropesOf({ ropes, layerRopes, windows }: ModelSpec): readonly [full: Rope | undefined, sliding: Rope | undefined] {
  const of = (isSliding: boolean) => {
    const layer = layerRopes.findIndex((rope, i) => rope !== null && (windows[i] !== null) === isSliding);
    return layer < 0 ? undefined : ropes[layerRopes[layer]!];
  };
  const [full, sliding] = [of(false), of(true)];
  return [full ?? sliding, sliding];
}

const f32 = (value: number) => ({ f32: value });
const u32 = (value: number) => ({ u32: value });

function keysOf(form: GgufForm, spec: ModelSpec, config: ConfigObject): GgufKeys {
  const { windows } = spec;
  const [full, sliding] = ropesOf(spec);
  const window = windows.find((size) => size !== null);
  const keys: GgufKeys = [
    ["block_count", u32(spec.layers)],
    ["context_length", u32(spec.maxPositions)],
    ["embedding_length", u32(spec.hidden)],
    ["feed_forward_length", u32(spec.intermediate)],
    ["attention.head_count", u32(spec.heads)],
    ["attention.head_count_kv", u32(spec.kvHeads)],
    ["attention.key_length", u32(spec.headDim)],
    ["attention.value_length", u32(spec.headDim)],
    ["attention.layer_norm_rms_epsilon", f32(form.normEps?.(spec, config) ?? spec.normEps)],
    ["vocab_size", u32(spec.vocab)],
    ["rope.dimension_count", u32(full!.rotated)],
    ["rope.freq_base", f32(full!.theta)],
    ...scalingKeys(full!),
    ...(form.hasWindows && window != null
      ? ([
          ["attention.sliding_window", u32(window)],
          ["attention.sliding_window_pattern", { booleans: windows.map((size) => size !== null) }],
          ["rope.freq_base_swa", f32(sliding!.theta)],
        ] as const)
      : []),
    ...(spec.attentionCap === null ? [] : ([["attn_logit_softcapping", f32(spec.attentionCap)]] as const)),
    ...(spec.logitCap === null ? [] : ([["final_logit_softcapping", f32(spec.logitCap)]] as const)),
    ...(form.keys?.(spec, config) ?? []),
  ];
  return keys.map(([key, value]) => [`${form.architecture}.${key}`, value] as const);
}

/** The keys of a rope that is changed; Llama 3's change is a tensor alone. */
function scalingKeys({ scaling }: Rope): GgufKeys {
  const key = (name: string) => `rope.scaling.${name}`;
  switch (scaling?.kind) {
    case "linear":
      return [
        [key("type"), "linear"],
        [key("factor"), f32(scaling.factor)],
      ];
    case "yarn":
      return [
        [key("type"), "yarn"],
        [key("factor"), f32(scaling.factor)],
        [key("original_context_length"), u32(scaling.originalMaxPositions)],
        [key("yarn_beta_fast"), f32(scaling.betaFast)],
        [key("yarn_beta_slow"), f32(scaling.betaSlow)],
        // llama.cpp multiplies by what the factor says, and by this
        [key("attn_factor"), f32(scaling.magnitude / (0.1 * Math.log(scaling.factor) + 1))],
      ];
    case "longrope":
      return [
        [key("type"), "longrope"],
        [key("original_context_length"), u32(scaling.originalMaxPositions)],
        [key("attn_factor"), f32(scaling.magnitude)],
      ];
    default:
      return [];
  }
}

function factorsOf(spec: ModelSpec): GgufModel["factors"] {
  const [rope] = ropesOf(spec);
  const scaling = rope?.scaling;
  if (scaling?.kind === "longrope")
    return [
      ["rope_factors_long.weight", scaling.long],
      ["rope_factors_short.weight", scaling.short],
    ];
  return scaling?.kind === "llama3" ? [["rope_freqs.weight", llama3Factors(rope!, scaling)]] : [];
}

type Llama3 = Omit<Extract<Rope["scaling"], { kind: "llama3" }>, "kind">;

/** What Llama 3 divides each frequency by. */
export function llama3Factors({ rotated, theta }: Pick<Rope, "rotated" | "theta">, scaling: Llama3): number[] {
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositions: original } = scaling;
  return Array.from({ length: rotated / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / rotated);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}
