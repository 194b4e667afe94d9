// Attention over latents in tiny models.

import type { ModelSpec } from "../../src/base/spec.ts";
import type { Linear } from "../../src/families/linears.ts";

type Latent = NonNullable<ModelSpec["latent"]>;

/** Latents of attention; heads of `width` features, unequal ones of each kind. */
export const tinyLatent = (
  width: number,
  { heads, ...changes }: Partial<Omit<Latent, "heads">> & { heads?: Partial<Latent["heads"]> } = {},
): Partial<ModelSpec> => {
  const of = { plain: 6, rotated: 4, value: 7, isInterleaved: true, ...heads };
  return {
    ...{ headDim: width, kvHeads: 4, attentionScale: 0.3 },
    ropes: [{ headDim: width, rotated: of.rotated, theta: 300, scaling: null, queryScale: null }],
    latent: { queryRank: 12, rank: 9, normEps: 0.3, bias: false, ...changes, heads: of },
  };
};

/** Linears of latents, which are in the place of those of Llama. */
export const LATENTS: ReadonlySet<Linear> = new Set(["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]);
