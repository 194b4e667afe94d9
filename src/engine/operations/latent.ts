// What the operations of attention over latents compute (operations.ts): columns of a value, heads of q, k and v made of what
// linears have of the latents, and the features of heads that values have.

import { invariant } from "../../base/errors.ts";
import { columnsFrom } from "../../device/arena.ts";
import { headsNarrow, latentHeadsBackward, latentHeadsForward } from "../../ops/latent.ts";
import { copyColumns } from "../../ops/values.ts";
import type { Behaviour } from "./operations.ts";

export const columns: Behaviour<"columns"> = {
  width: ({ first, size }, width) => {
    invariant(first + size <= width, `${size} columns from ${first} on of ${width}`);
    return size;
  },
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, first, size }, pass) =>
    copyColumns(pass.device, { from: columnsFrom(pass.value(from), first, size), to: pass.value(to), adds: false }),
  backward: ({ from, to, first, size }, pass) =>
    copyColumns(pass.device, { from: pass.gradient(to)!, to: columnsFrom(pass.gradient(from)!, first, size), adds: false }),
};

/** The gradients of what it reads lie over the values, which no gradient needs. */
export const latentHeads: Behaviour<"latentHeads"> = {
  width: ({ heads: { heads, headDim, plain, value } }, width) => {
    invariant(heads * (plain + value) === width, `${heads} heads of ${plain} and ${value} features read ${width}`);
    return 3 * heads * headDim;
  },
  fits: ({ heads: { heads, plain, rotated } }, _, queries, shared) =>
    queries === heads * (plain + rotated) && shared! >= rotated,
  isCheap: () => false,
  saved: null,
  inputGradient: "input",
  forward: ({ from, to, queries, shared, heads }, pass) =>
    latentHeadsForward(pass.device, {
      ...{ keys: pass.value(from), queries: pass.value(queries), shared: pass.value(shared), qkv: pass.value(to) },
      ...heads,
    }),
  backward: ({ from, to, queries, shared, heads }, pass) =>
    latentHeadsBackward(pass.device, {
      dqkv: pass.gradient(to)!,
      ...{ dkeys: pass.gradient(from)!, dqueries: pass.gradient(queries)!, dshared: pass.gradient(shared)! },
      ...heads,
    }),
};

export const narrow: Behaviour<"narrow"> = {
  width: ({ heads, width: each, size }, width) => {
    invariant(heads * each === width && size <= each, `${heads} heads of ${each} features, ${size} of them, read ${width}`);
    return heads * size;
  },
  isCheap: () => true,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, heads }, pass) => headsNarrow(pass.device, { from: pass.value(from), to: pass.value(to), heads }),
  backward: ({ from, to, heads }, pass) =>
    headsNarrow(pass.device, { from: pass.gradient(to)!, to: pass.gradient(from)!, heads }),
};
