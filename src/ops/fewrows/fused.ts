// Linear layers over few rows (fewrows.ts) with the operation that follows them, in the kernel that sums the product: a token
// that is generated passes as few kernels as it can. The bits are those of both, one after the other.

import { invariant } from "../../base/errors.ts";
import { rowsFrom } from "../../device/arena.ts";
import type { Launcher } from "../../device/cuda/launcher.ts";
import type { Variant } from "../../device/cuda/variants.ts";
import type { Tensor } from "../../device/device.ts";
import { cacheWrite, type Places } from "../decode.ts";
import { computeRows, type FewRows, gatedFor, PRODUCT, productOfRows, type RowProduct } from "../fewrows.ts";
import { cdiv, dim, flag, op } from "../op.ts";
import { NORMALISED, type Normalised, normVariant, rmsnormForward } from "../rmsnorm.ts";
import { ROTATION, type Rotation, ropeForward, rotationSizes } from "../rope.ts";
import { swigluForward } from "../swiglu.ts";

/** rmsnorm_forward of a pass of rows, with its bits; nothing is kept for a backward pass. */
export const fewRowsNorm = op<Normalised>("fewrows_norm", NORMALISED, {
  cpu: (args, host) => rmsnormForward.kernel.cpu(args, host),
  cuda: ({ x, weight, residual, y, eps }, gpu) => {
    const [M, H] = [dim(x, 0), dim(x, 1)];
    const kernel = normVariant(gpu, "fewrows_norm", H);
    gpu.launch(kernel, [M], { x, weight, residual, y, H, eps, has_residual: flag(residual) });
  },
});

type Normed = FewRows & Pick<Normalised, "rstd" | "eps"> & { readonly norm: Tensor; readonly h: Tensor };

/**
 * y of fewrows_forward of a single linear, and h = rmsnorm_forward of y with the weight `norm` f32[N]: h c[M, N]. y's low-rank
 * product is summed otherwise than there. Rows of at most MOST_NORMED columns.
 */
export const fewRowsNormed = op<Normed>(
  "fewrows_normed",
  { ...PRODUCT, residual: "c M N", y: "c M N", norm: "f32 N", h: "c M N", rstd: "f32 M" },
  {
    cpu: (args, host) => {
      const { y, norm, h, rstd, eps } = args;
      computeRows(args, host);
      rmsnormForward.kernel.cpu({ x: y, weight: norm, residual: null, y: h, rstd, eps }, host);
    },
    cuda: (args, gpu) => {
      const { residual, norm, eps } = args;
      const kernel = normVariant(gpu, "fewrows_normed", dim(args.y, 1));
      productOfRows(gpu, args, (parts, { rows, from }) => {
        const [y, h] = [rowsFrom(args.y, from, rows), rowsFrom(args.h, from, rows)];
        gpu.launch(kernel, [rows], {
          ...{ ...parts, y, h, weight: norm, residual: residual && rowsFrom(residual, from, rows), eps },
          ...{ has_residual: flag(residual), has_lora: flag(args.lora) },
        });
      });
    },
  },
);

/** Columns that the kernels hold, at most. */
export const MOST_NORMED = 8192;

/** h = silu(gate) up of y = [gate, up] of fewrows_forward, without a residual: h c[M, I], `y` c[M, 2 I] memory of it. */
export const fewRowsSwiglu = op<RowProduct & { y: Tensor; h: Tensor }>(
  "fewrows_swiglu",
  { ...PRODUCT, y: "c M N", h: "c M I" },
  {
    cpu: (args, host) => {
      computeRows({ ...args, residual: null }, host);
      swigluForward.kernel.cpu({ gateUp: args.y, h: args.h }, host);
    },
    cuda: (args, gpu) => {
      const [{ x, weight, h }, gated] = [args, gatedFor(gpu, args)];
      if (gated) {
        const [[N, K], M] = [weight.shape as [number, number], dim(x, 0)];
        const grid = [cdiv(N / 2, gated.constant("BN")), cdiv(M, gated.constant("BM"))] as const;
        gpu.launch(gated, grid, { rows: x, w: weight as Tensor, h, M, N, K });
        return;
      }
      productOfRows(gpu, args, (parts, { rows, from }) => {
        const kernel = gpu.kernel("fewrows_swiglu", { LORA: flag(args.lora) });
        const h = rowsFrom(args.h, from, rows);
        gpu.launch(kernel, [cdiv(dim(h, 1), kernel.constant("BN")), cdiv(rows, kernel.constant("BM"))], { ...parts, h });
      });
    },
  },
);

type Rotated = RowProduct & Rotation & Places & { readonly y: Tensor; readonly out: Tensor };

/**
 * q of out c[M, (Q + 2 C) D] as rope_forward makes it of y = [q, k, v] of fewrows_forward, and k and v where cache_write puts
 * them; of `out` nothing else is read afterwards. `y` c[M, (Q + 2 C) D] is memory of it, and may be `out` without norms.
 */
export const fewRowsRope = op<Rotated>(
  "fewrows_rope",
  { ...PRODUCT, y: "c M N", out: "c M N", cache: "c S 2Z", pages: "i32 Y", places: "i32 M", ...ROTATION },
  {
    known: (args) => ({ ...rotationSizes(args), Z: args.kvHeads * args.headDim }),
    cpu: (args, host) => {
      const { y, out } = args;
      computeRows({ ...args, residual: null }, host);
      ropeForward.kernel.cpu({ ...args, qkv: y, out }, host);
      cacheWrite.kernel.cpu({ ...args, qkv: out }, host);
    },
    cuda: (args, gpu) =>
      productOfRows(gpu, args, (parts, { rows, from }) => {
        const { out, cache, pages, places, positions, cos, sin, queryScale, heads, kvHeads } = args;
        const kernel = rotating(gpu, args);
        const part = (t: Tensor) => rowsFrom(t, from, rows);
        gpu.launch(kernel, [heads + 2 * kvHeads, cdiv(rows, kernel.constant("BM"))], {
          ...{ ...parts, out: part(out), cache, pages, places: part(places), positions: part(positions), cos, sin },
          ...{ q_scale: queryScale, q_weight: args.qWeight, k_weight: args.kWeight, heads, kv_heads: kvHeads },
          ...{ D: args.headDim, R: args.rotated / 2, scaled: flag(queryScale), eps: args.eps },
        });
      }),
  },
);

/** Features of a head that the kernels hold, at most. */
export const MOST_ROTATED = 256;

/** The variant for whole heads of this size, or the one that masks what a head has not. */
function rotating(gpu: Launcher, { headDim: D, rotated, qWeight, lora }: Rotated): Variant {
  const all = gpu.variants("fewrows_rope", { NORM: flag(qWeight), LORA: flag(lora) });
  const exact = rotated === D ? all.find((of) => of.constant("EXACT") === 1 && of.constant("HALF") === D / 2) : undefined;
  const found = exact ?? all.find((of) => of.constant("EXACT") === 0 && of.constant("HALF") >= D / 2);
  invariant(found, `fewrows_rope has no variant for heads of ${D}`);
  return found;
}
