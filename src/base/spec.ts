// A base model as numbers: what its family reads from config.json (src/families), what plans and stages use.

import * as v from "valibot";
import { count, natural, type Output, real } from "./schema.ts";
import { alignUp } from "./shape.ts";

/** A change of rotary frequencies. */
const ropeScaling = v.variant("kind", [
  v.strictObject({ kind: v.literal("linear"), factor: real }),
  v.strictObject({
    kind: v.literal("llama3"),
    factor: real,
    lowFreqFactor: real,
    highFreqFactor: real,
    originalMaxPositions: real,
  }),
  v.strictObject({
    kind: v.literal("yarn"),
    factor: real,
    originalMaxPositions: real,
    betaFast: real,
    betaSlow: real,
    /** Whether the bounds of the ramp are whole numbers. */
    truncate: v.boolean(),
    /** What cos and sin are multiplied by. */
    magnitude: real,
  }),
  /** Frequencies divided by `short`, or by `long` for sequences beyond the original positions. */
  v.strictObject({
    kind: v.literal("longrope"),
    short: v.array(real),
    long: v.array(real),
    originalMaxPositions: real,
    magnitude: real,
  }),
  /** The exponents of the whole head, of which this share of the pairs, from the first on, are rotated. */
  v.strictObject({ kind: v.literal("proportional"), factor: real, share: real }),
]);
export type RopeScaling = Output<typeof ropeScaling>;

const rope = v.strictObject({
  headDim: natural,
  /** Features of a head that are rotated, from its first on; halves of them are paired. */
  rotated: natural,
  theta: real,
  scaling: v.nullable(ropeScaling),
  /** Queries at a position are multiplied by 1 + beta ln(1 + floor(position / originalMaxPositions)). */
  queryScale: v.nullable(v.strictObject({ beta: real, originalMaxPositions: real })),
});
/** A rotary embedding (Su et al. 2021). */
export type Rope = Output<typeof rope>;

const router = v.strictObject({
  /** What logits become: a softmax over all experts, or of each its sigmoid. */
  score: v.picklist(["softmax", "sigmoid"]),
  /** The weights of a token's experts are divided by their sum and `eps`. */
  normalise: v.boolean(),
  eps: real,
  /**
   * Only the best `keptGroups` of as many equal groups of experts are chosen from, by the best of each with a softmax, by the
   * sum of its two best with a sigmoid; 1 for no groups.
   */
  groups: natural,
  keptGroups: natural,
  /** What the weights are multiplied by. */
  scaling: real,
});
/** How the experts of a token are chosen from the router's logits (ops/route.ts). */
export type Router = Output<typeof router>;

const experts = v.strictObject({
  count: natural,
  perToken: natural,
  /** Features of an expert between its two products. */
  intermediate: natural,
  router,
  /** For each layer: whether its MLP is one of experts. */
  layers: v.array(v.boolean()),
  /** Features of the experts that all tokens pass, together; `null` for none. */
  shared: v.nullable(natural),
  /** Gate and up are clamped, up around one (gpt-oss); `null` for SwiGLU as it is. */
  clamp: v.nullable(v.strictObject({ limit: real, alpha: real })),
  /** Each expert's weights are tensors of their own, or one tensor has those of all, each as [out, in] or as [in, out]. */
  files: v.picklist(["each", "rows", "columns"]),
  /** The files have the experts' weights in mxfp4. */
  isMxfp4: v.boolean(),
});

export const modelSpec = v.strictObject({
  /** A name of families/registry.ts. */
  family: v.string(),
  /** The path of the module that holds the layers, in transformers' model. */
  tower: v.string(),
  layers: natural,
  hidden: natural,
  intermediate: natural,
  heads: natural,
  kvHeads: natural,
  headDim: natural,
  vocab: natural,
  normEps: real,
  /** What the scores of attention are multiplied by. */
  attentionScale: real,
  /** Scores s become c tanh(s / c) with a cap c; `null` for none. */
  attentionCap: v.nullable(real),
  ropes: v.array(rope),
  /** For each layer: the index of its rope; `null` for none. */
  layerRopes: v.array(v.nullable(count)),
  maxPositions: natural,
  /** For each layer: the number of latest tokens that a token sees, itself included; `null` for all. */
  windows: v.array(v.nullable(natural)),
  /** Heads of k and v, and the size of all heads, in layers without a window; `null` where they are as in others. */
  fullHeads: v.nullable(v.strictObject({ kvHeads: natural, headDim: natural })),
  /** In layers without a window values are the keys, as they are before norm and rotation. */
  keysAsValues: v.boolean(),
  /** For each layer: the one whose keys and values it reads; `null`, or nothing at all, for its own. */
  kvSources: v.array(v.nullable(count)),
  /** Layers that read the keys and values of another have MLPs of twice the width. */
  doubleWide: v.boolean(),
  /** Features of each layer's own input, of an embedding of `vocab` rows; `null` for none. */
  perLayer: v.nullable(v.strictObject({ size: natural, vocab: natural })),
  /** Layers of linear attention by the gated delta rule, and its heads; `null` for none. */
  delta: v.nullable(
    v.strictObject({
      heads: v.strictObject({ keyHeads: natural, valueHeads: natural, keyDim: natural, valueDim: natural }),
      layers: v.array(v.boolean()),
    }),
  ),
  /** Layers of Mamba 2, its heads and the groups that they share B and C in; `null` for none. */
  mamba: v.nullable(
    v.strictObject({
      heads: v.strictObject({ heads: natural, headDim: natural, groups: natural, stateDim: natural }),
      /** Of the steps of time; `null`: no upper one. */
      limits: v.strictObject({ least: real, most: v.nullable(real) }),
      /** Biases of the convolution; of the linears before and after it. */
      convolutionBias: v.boolean(),
      bias: v.boolean(),
      /** Of the norm of its output. */
      normEps: real,
      layers: v.array(v.boolean()),
    }),
  ),
  /**
   * Attention whose keys and values are products of a latent of each token, and whose queries may be, too (MLA); `null` for
   * none. Its heads are `headDim` features wide, those that no head has being 0.
   */
  latent: v.nullable(
    v.strictObject({
      /** Features of the latent of queries; `null` where these are a product of the stream. */
      queryRank: v.nullable(natural),
      /** Features of that of keys and values. */
      rank: natural,
      heads: v.strictObject({
        /** Features of a head of q and k that are not rotated, that are, and of a head of v. */
        ...{ plain: natural, rotated: natural, value: natural },
        /** Rotated features are paired with their neighbours, not by halves. */
        isInterleaved: v.boolean(),
      }),
      /** Of the norms of the latents. */
      normEps: real,
      /** Of the linears that make the latents, and of o. */
      bias: v.boolean(),
    }),
  ),
  /** Where layers have either attention or an MLP, for each whether it has attention; nothing at all where all have both. */
  attentionLayers: v.array(v.boolean()),
  /** For each layer: whether a short convolution is in the place of its attention; nothing at all for none. */
  convolutions: v.array(v.boolean()),
  /** Of a mixture of experts; `null` for none. */
  experts: v.nullable(experts),
  /** Bias of q, k and v; of o; of the three linears of the MLP. */
  qkvBias: v.boolean(),
  oBias: v.boolean(),
  mlpBias: v.boolean(),
  /** RMSNorm over each head of q and k before the rotation (Qwen 3). */
  qkNorm: v.boolean(),
  /** The output head is the embedding table. */
  tiedEmbeddings: v.boolean(),
  /** What rows of the embedding are multiplied by. */
  embeddingScale: real,
  /** Eps of a norm without weights of the embedding's rows; `null` for none. */
  embeddingNorm: v.nullable(real),
  /** The eps of norms after attention and MLP, where it differs. */
  postNormEps: v.nullable(real),
  /** Logits are c tanh(s l / c) of the head's outputs l, or s l where the cap c is `null`. */
  logitScale: real,
  logitCap: v.nullable(real),
});
export type ModelSpec = Output<typeof modelSpec>;

/** Positions up to which sequences are short for a LongRoPE; null for a model without one. */
export function shortPositions({ ropes }: Pick<ModelSpec, "ropes">): number | null {
  const [scaling] = ropes.flatMap((rope) => (rope.scaling?.kind === "longrope" ? [rope.scaling] : []));
  return scaling?.originalMaxPositions ?? null;
}

/**
 * Rows of the embedding table and of the output head, and columns of logits, as devices hold them: kernels load 16 bytes at a
 * time, so that a vocabulary of 32001 gets seven rows of zeros, which are no tokens.
 */
export const tableRows = ({ vocab }: ModelSpec): number => alignUp(vocab, 8);
