// Rotary position embedding (Su et al. 2021) of q and k, with the norm of each head before it where a model has one.

import { F, I, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  rope_forward: { args: [P, P, P, P, P, P, P, P, I, I, I, I, I, F], returns: "void" },
  rope_backward: { args: [P, P, P, P, P, P, P, P, I, I, I, I, I, F], returns: "void" },
});

type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };
/** How heads of q and k are rotated. */
export type Rotation = Heads & {
  readonly positions: Tensor;
  readonly rotated: number;
  readonly cos: Tensor | null;
  readonly sin: Tensor | null;
  readonly queryScale: Tensor | null;
  readonly qWeight: Tensor | null;
  readonly kWeight: Tensor | null;
  readonly eps: number;
};
/** Sizes of its tensors. */
export const rotationSizes = ({ heads, kvHeads, headDim, rotated }: Rotation) => {
  return { W: (heads + 2 * kvHeads) * headDim, F: rotated / 2, D: headDim };
};
export const ROTATION = {
  ...{ positions: "i32 M", cos: "f32 P F", sin: "f32 P F", queryScale: "f32 P", qWeight: "f32 D", kWeight: "f32 D" },
};

const tablesOf = ({ positions, cos, sin, queryScale }: Pick<Rotation, "positions" | "cos" | "sin" | "queryScale">) =>
  [positions.ptr, cos?.ptr ?? null, sin?.ptr ?? null, queryScale?.ptr ?? null] as const;

/** The variant for whole heads of D, or the narrowest that masks what a head has not. */
function variant(gpu: Launcher, name: string, { headDim: D, rotated }: Rotation, NORM: 0 | 1): Variant {
  const variants = gpu.variants(name, { NORM });
  const isExact = (kernel: Variant) => kernel.constant("EXACT") === 1 && kernel.constant("HALF") === D / 2;
  const exact = rotated === D ? variants.find(isExact) : undefined;
  const found = exact ?? variants.find((kernel) => kernel.constant("EXACT") === 0 && kernel.constant("HALF") >= D / 2);
  invariant(found, `${name} has no variant for heads of ${D}`);
  return found;
}

/**
 * Rotates the first `rotated` features of each head of q and k of qkv c[M, (Q + 2C) D] by their row's position, halves paired
 * as Hugging Face does: out[i] = x[i] cos - x[i + r] sin, out[i + r] = x[i + r] cos + x[i] sin, r = rotated / 2; cos, sin
 * f32[P, r], null for none. Then q is multiplied by queryScale f32[P] of the position, null for 1. With qWeight and kWeight
 * f32[D] each head is first RMS-normalised (Qwen 3). `out` has qkv's shape and may be qkv itself when there are no norms; v is
 * copied when not.
 */
export const ropeForward = op<Rotation & { qkv: Tensor; out: Tensor }>(
  "rope_forward",
  { qkv: "c M W", out: "c M W", ...ROTATION },
  {
    known: rotationSizes,
    cpu: ({ qkv, out, heads, kvHeads, headDim: D, rotated, eps, ...of }) => {
      const [positions, ...tables] = tablesOf(of);
      const [q, k] = [of.qWeight?.ptr ?? null, of.kWeight?.ptr ?? null];
      c.rope_forward(qkv.ptr, positions, ...tables, q, k, out.ptr, dim(qkv, 0), heads, kvHeads, D, rotated, eps);
    },
    cuda: (of, gpu) => {
      const { qkv, positions, cos, sin, queryScale, qWeight, kWeight, out, heads, kvHeads, headDim: D, rotated, eps } = of;
      if (isPart(of) && out.ptr === qkv.ptr && rotated > 0) return rotatePart(gpu, qkv, of, 0);
      const kernel = variant(gpu, "rope_forward", of, flag(qWeight));
      const touched = heads + kvHeads * (out.ptr === qkv.ptr ? 1 : 2);
      gpu.launch(kernel, [dim(qkv, 0), cdiv(touched, kernel.constant("HEADS"))], {
        ...{ qkv, positions, cos, sin, q_scale: queryScale, q_weight: qWeight, k_weight: kWeight, out },
        ...{ touched, eps, heads, kv_heads: kvHeads, D, R: rotated / 2, scaled: flag(queryScale) },
      });
    },
  },
);

/** Heads of which a part is rotated and nothing else is done: only that part is read, 16 bytes at a time. */
const isPart = ({ headDim, rotated, queryScale, qWeight }: Rotation): boolean =>
  rotated < headDim && rotated % 16 === 0 && headDim % 8 === 0 && queryScale === null && qWeight === null;

function rotatePart(gpu: Launcher, x: Tensor, of: Rotation, back: 0 | 1): void {
  const { positions, cos, sin, heads, kvHeads, headDim: D, rotated } = of;
  const kernel = gpu.kernel("rope_part");
  const [touched, R] = [heads + kvHeads, rotated / 2];
  const grid = [dim(x, 0), cdiv(touched * R, kernel.constant("BLOCK"))] as const;
  gpu.launch(kernel, grid, { x, positions, cos, sin, touched, W: dim(x, 1), D, R, back });
}

/** The gradient of rope_forward, in place on dqkv c[M, (Q + 2C) D]; `qkv` is what rope_forward read (null without norms). */
export const ropeBackward = op<Rotation & { dqkv: Tensor; qkv: Tensor | null }>(
  "rope_backward",
  { dqkv: "c M W", qkv: "c M W", ...ROTATION },
  {
    known: rotationSizes,
    cpu: ({ dqkv, qkv, heads, kvHeads, headDim: D, rotated, eps, ...of }) => {
      const [positions, ...tables] = tablesOf(of);
      const [x, q, k] = [qkv?.ptr ?? null, of.qWeight?.ptr ?? null, of.kWeight?.ptr ?? null];
      c.rope_backward(dqkv.ptr, positions, ...tables, x, q, k, dim(dqkv, 0), heads, kvHeads, D, rotated, eps);
    },
    cuda: (of, gpu) => {
      const { dqkv, positions, cos, sin, queryScale, qkv, qWeight, kWeight, heads, kvHeads, headDim: D, rotated, eps } = of;
      if (isPart(of) && rotated > 0) return rotatePart(gpu, dqkv, of, 1);
      const kernel = variant(gpu, "rope_backward", of, flag(qWeight));
      gpu.launch(kernel, [dim(dqkv, 0), cdiv(heads + kvHeads, kernel.constant("HEADS"))], {
        ...{ dqkv, positions, cos, sin, q_scale: queryScale, qkv, q_weight: qWeight, k_weight: kWeight },
        ...{ eps, heads, kv_heads: kvHeads, D, R: rotated / 2, scaled: flag(queryScale) },
      });
    },
  },
);
