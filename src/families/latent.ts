// Attention over latents (MLA, DeepSeek-AI 2024): keys and values are products of one narrow, normalised latent of each token,
// queries of another or of the stream. A part of each head is rotated, which all heads of k share. Here the products are made
// as they are written, so that what is kept of a token are the keys and values of each head.

import { RequestError } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import type { ModelSpec, Rope } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, LatentHeads, Operation } from "./definition.ts";
import { type Defaults, dense, oneRope, readSizes } from "./dense.ts";
import { readRope, readScoreScale } from "./rope.ts";

/** What transformers assumes where config.json is silent. */
export type LatentDefaults = Omit<Defaults, "headDim" | "kvHeads"> & {
  readonly queryRank: number;
  readonly rank: number;
  readonly plain: number;
  readonly rotated: number;
  /** Null: hidden_size / num_attention_heads. */
  readonly value: number | null;
};

/** Heads up to which attention on GPUs has variants that mask what is missing. */
const MASKED = 64;

/** The width of heads of `features` in attention: one that GPUs have variants for, without masks where they would be slow. */
const widthOf = (features: number): number => (features <= MASKED ? alignUp(features, 8) : 2 ** Math.ceil(Math.log2(features)));

/** Latents that q, k and v are made of, and heads as wide as the widest part; the norms of the latents have eps 1e-6 always. */
export function readLatent(config: ConfigReader, defaults: LatentDefaults, isInterleaved: boolean) {
  const { source } = config;
  const heads = config.count("num_attention_heads", defaults.heads ?? 32);
  const kvHeads = config.count("num_key_value_heads", heads);
  if (kvHeads !== heads)
    throw config.wrong(
      "num_key_value_heads",
      `is ${kvHeads}; with latent attention there are as many as num_attention_heads, ${heads}`,
    );
  const [plain, rotated] = [
    config.count("qk_nope_head_dim", defaults.plain),
    config.count("qk_rope_head_dim", defaults.rotated),
  ];
  if (rotated % 2 !== 0) throw config.wrong("qk_rope_head_dim", `${rotated} is odd; rotary embedding needs pairs`);
  const hidden = config.count("hidden_size", defaults.hidden ?? 4096);
  if (source["v_head_dim"] == null && defaults.value === null && hidden % heads !== 0)
    throw config.wrong("hidden_size", `${hidden} is not a multiple of num_attention_heads, ${heads}`);
  const value = config.count("v_head_dim", defaults.value ?? hidden / heads);
  const headDim = widthOf(Math.max(plain + rotated, value));
  const sizes = readSizes(config.with({ head_dim: headDim, num_key_value_heads: heads }), {
    ...{ ...defaults, kvHeads: null, headDim: null },
  });
  const rope: Rope = { ...readRope(config, { headDim: rotated, maxPositions: sizes.maxPositions }), headDim };
  if (rope.scaling?.kind === "proportional")
    throw new RequestError("model.rope", `${config.path}: the rope type is "proportional"`, "it is not supported with latents");
  const bias = config.flag("attention_bias", false);
  return {
    ...sizes,
    ...oneRope(sizes, rope),
    attentionScale: readScoreScale(config) / Math.sqrt(plain + rotated),
    oBias: bias,
    latent: {
      queryRank: source["q_lora_rank"] === null ? null : config.count("q_lora_rank", defaults.queryRank),
      rank: config.count("kv_lora_rank", defaults.rank),
      heads: { plain, rotated, value, isInterleaved },
      ...{ normEps: 1e-6, bias },
    },
  };
}

/** rope_interleave, which transformers takes to be true where it is left out. */
export const isInterleaved = (config: ConfigReader): boolean => config.flag("rope_interleave", true);

const linears = { op: "linears", residual: null, bias: false } as const;

/** Linears from the normed stream "h1" to "attended", which o reads. */
function attention(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, heads, headDim } = spec;
  const { queryRank, rank, heads: each, normEps: eps, bias } = spec.latent!;
  const { plain, rotated, value } = each;
  const queries = [heads * (plain + rotated)];
  const of: LatentHeads = { heads, headDim, ...each };
  const whole = { heads, kvHeads: heads, headDim };
  const fromLatent: readonly Operation[] = [
    { ...linears, from: "h1", to: "queryLatent", group: "queryA", in: hidden, out: [queryRank!], bias },
    { op: "norm", from: "queryLatent", to: "queryNormed", weight: "self_attn.q_a_layernorm", size: queryRank!, eps },
    { ...linears, from: "queryNormed", to: "queries", group: "queryB", in: queryRank!, out: queries },
  ];
  const isWide = value < headDim;
  return [
    { ...linears, from: "h1", to: "keyLatents", group: "keyA", in: hidden, out: [rank + rotated], bias },
    ...(queryRank === null
      ? [{ ...linears, from: "h1", to: "queries", group: "q", in: hidden, out: queries } as const]
      : fromLatent),
    { op: "columns", from: "keyLatents", to: "keyLatent", first: 0, size: rank },
    { op: "norm", from: "keyLatent", to: "keyNormed", weight: "self_attn.kv_a_layernorm", size: rank, eps },
    { ...linears, from: "keyNormed", to: "keys", group: "keyB", in: rank, out: [heads * (plain + value)] },
    { op: "latentHeads", from: "keys", to: "qkv", queries: "queries", shared: "keyLatents", heads: of },
    { op: "rope", from: "qkv", to: "rotated", heads: whole, table: spec.layerRopes[index]!, norms: null, eps },
    {
      ...{ op: "attention", from: "rotated", to: isWide ? "attention" : "attended", heads: whole },
      ...{ scale: spec.attentionScale, window: null },
    },
    ...(isWide ? [{ op: "narrow", from: "attention", to: "attended", heads, width: headDim, size: value } as const] : []),
  ];
}

/** The dense layer with attention over latents. */
function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const operations = dense.layer(spec, index);
  const o = operations.findIndex((of) => of.op === "linears" && of.group === "o");
  const width = spec.heads * spec.latent!.heads.value;
  return [
    operations[0]!,
    ...attention(spec, index),
    { ...operations[o]!, from: "attended", in: width } as Operation,
    ...operations.slice(o + 1),
  ];
}

export const latent = {
  ...dense,
  layer,
  groups: {
    queryA: ["self_attn.q_a_proj"],
    queryB: ["self_attn.q_b_proj"],
    q: ["self_attn.q_proj"],
    keyA: ["self_attn.kv_a_proj_with_mqa"],
    keyB: ["self_attn.kv_b_proj"],
    o: dense.groups.o,
    gateUp: dense.groups.gateUp,
    down: dense.groups.down,
  },
} as const satisfies Partial<Definition>;
