// Rotary position embedding (Su et al. 2021) of q and k, with the norm of each head before it where a model has one.

import { op } from "./op.ts";

type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };
const known = ({ heads, kvHeads, headDim }: Heads) => ({ W: (heads + 2 * kvHeads) * headDim, F: headDim / 2, D: headDim });
const tables = { positions: "i32 M", cos: "f32 P F", sin: "f32 P F", qWeight: "f32 D", kWeight: "f32 D" };

export const ropeForward = op("rope_forward", { qkv: "c M W", out: "c M W", ...tables }, known);
export const ropeBackward = op("rope_backward", { dqkv: "c M W", qkv: "c M W", ...tables }, known);
