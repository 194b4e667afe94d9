// From sorted rows (route.ts) back to those of the batch: a token's experts are added in the order of its slots.

import { I, native, P } from "../../ffi/native.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, flag, op } from "./op.ts";
import type { Routes } from "./route.ts";

const c = native({
  combine: { args: [P, P, P, P, P, I, I, I], returns: "void" },
  bias_weight_grad: { args: [P, P, P, P, I, I, I], returns: "void" },
});

/**
 * out = residual + the sum over j of weights[m, j] y[place[m, j]]: y c[P, H], residual c[M, H] (may be out) or null, out
 * c[M, H].
 */
export const combineForward = op<{ y: Tensor; routes: Routes; residual: Tensor | null; out: Tensor }>(
  "combine_forward",
  { y: "c P H", residual: "c M H", out: "c M H" },
  {
    cpu: ({ y, routes, residual, out }) => {
      const { place, weights } = routes;
      const sizes = [dim(out, 0), dim(place, 1), dim(out, 1)] as const;
      c.combine(y.ptr, place.ptr, weights.ptr, residual?.ptr ?? null, out.ptr, ...sizes);
    },
    cuda: ({ y, routes, residual, out }, gpu) => combineOn(gpu, y, routes, routes.weights, residual, out),
  },
);

/** dx c[M, H] = the sum over j of dxs[place[m, j]], dxs c[P, H]; with `adds` on top of what dx has. */
export const combineBackward = op<{ dxs: Tensor; routes: Routes; adds: boolean; dx: Tensor }>(
  "combine_backward",
  { dxs: "c P H", dx: "c M H" },
  {
    cpu: ({ dxs, routes: { place }, adds, dx }) =>
      c.combine(dxs.ptr, place.ptr, null, adds ? dx.ptr : null, dx.ptr, dim(dx, 0), dim(place, 1), dim(dx, 1)),
    cuda: ({ dxs, routes, adds, dx }, gpu) => combineOn(gpu, dxs, routes, null, adds ? dx : null, dx),
  },
);

/** dweights f32[M, k] += <dout, bias> of each pair's expert: dout c[M, H], bias c[E, H]. */
export const biasWeightGrad = op<{ dout: Tensor; bias: Tensor; routes: Routes; dweights: Tensor }>(
  "bias_weight_grad",
  { dout: "c M H", bias: "c E H", dweights: "f32 M S" },
  {
    cpu: ({ dout, bias, routes: { experts }, dweights }) =>
      c.bias_weight_grad(dout.ptr, bias.ptr, experts.ptr, dweights.ptr, dim(dout, 0), dim(dweights, 1), dim(dout, 1)),
    cuda: ({ dout, bias, routes: { experts }, dweights }, gpu) => {
      const [M, k, H] = [dim(dout, 0), dim(dweights, 1), dim(dout, 1)];
      gpu.launch(gpu.kernel("bias_weight_grad"), [M, k], { dout, bias, experts, dweights, k, H });
    },
  },
);

function combineOn(
  gpu: Launcher,
  y: Tensor,
  { place }: Routes,
  weights: Tensor | null,
  start: Tensor | null,
  out: Tensor,
): void {
  const kernel = gpu.kernel("combine");
  const [M, k, H] = [dim(out, 0), dim(place, 1), dim(out, 1)];
  const there = { has_weights: flag(weights), has_start: flag(start) };
  gpu.launch(kernel, [M, cdiv(H, kernel.constant("BLOCK"))], { y, place, weights, start, out, k, H, ...there });
}
