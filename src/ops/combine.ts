// From sorted rows (route.ts) back to those of the batch: a token's experts are added in the order of its slots, and after them
// what adapters add by a factor that all experts share (expert-rows.ts).

import { I, native, P } from "../../ffi/native.ts";
import { type Host, rowsOfFloats } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { A, ADAPTER_SPECS, type AdapterArgs, B, eachSegment, rowsOf, tablesOf } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import type { Routes } from "./route.ts";

const c = native({
  combine: { args: [P, P, P, P, P, I, I, I], returns: "void" },
  bias_weight_grad: { args: [P, P, P, P, I, I, I], returns: "void" },
});

/** What adapters add to a row of the batch: the columns of `low` by a factor that all experts of an adapter share. */
type Shared = AdapterArgs & { readonly low: Tensor };
const LOW_SPECS = { ...ADAPTER_SPECS, low: "c E" };

/**
 * out = residual + the sum over j of weights[m, j] y[place[m, j]] + scale low B: y c[P, H], residual c[M, H] (may be out) or
 * null, out c[M, H], scale f32[L, G].
 */
export const combineForward = op<{
  y: Tensor;
  routes: Routes;
  residual: Tensor | null;
  out: Tensor;
  lora: (Shared & { readonly scale: Tensor }) | null;
}>(
  "combine_forward",
  { y: "c P H", residual: "c M H", out: "c M H", scale: "f32 L G", ...LOW_SPECS },
  {
    cpu: ({ y, routes, residual, out, lora }, host) => {
      const { place, weights } = routes;
      const sizes = [dim(out, 0), dim(place, 1), dim(out, 1)] as const;
      c.combine(y.ptr, place.ptr, weights.ptr, residual?.ptr ?? null, out.ptr, ...sizes);
      if (lora) addShared(host, lora, B, lora.scale, out);
    },
    cuda: ({ y, routes, residual, out, lora }, gpu) =>
      combineOn(gpu, y, routes, routes.weights, residual, out, lora && { ...lora, side: B }),
  },
);

/** dx c[M, H] = the sum over j of dxs[place[m, j]] + low A, dxs c[P, H]; with `adds` on top of what dx has. */
export const combineBackward = op<{ dxs: Tensor; routes: Routes; adds: boolean; dx: Tensor; lora: Shared | null }>(
  "combine_backward",
  { dxs: "c P H", dx: "c M H", ...LOW_SPECS },
  {
    cpu: ({ dxs, routes: { place }, adds, dx, lora }, host) => {
      c.combine(dxs.ptr, place.ptr, null, adds ? dx.ptr : null, dx.ptr, dim(dx, 0), dim(place, 1), dim(dx, 1));
      if (lora) addShared(host, lora, A, null, dx);
    },
    cuda: ({ dxs, routes, adds, dx, lora }, gpu) =>
      combineOn(gpu, dxs, routes, null, adds ? dx : null, dx, lora && { ...lora, side: A, scale: null }),
  },
);

function addShared(host: Host, lora: Shared, side: number, scale: Tensor | null, to: Tensor): void {
  const [width, scales] = [dim(to, 1), scale && rowsOfFloats(scale)];
  eachSegment(host, lora, dim(to, 0), ({ row, rows, adapter }, targets) => {
    for (const { g, rank, low, matrix } of targets) {
      const [from, factor] = [low(lora.low), { ptr: matrix(side), ld: width }];
      host.product([rows, width, rank], from, false, factor, false, rowsOf(to, row), scales?.(adapter)[g] ?? 1, 1);
    }
  });
}

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
  lora: (Shared & { readonly side: number; readonly scale: Tensor | null }) | null,
): void {
  const [M, k, H] = [dim(out, 0), dim(place, 1), dim(out, 1)];
  const args = { y, place, weights, start, out, k, H, has_weights: flag(weights), has_start: flag(start) };
  if (!lora) {
    const kernel = gpu.kernel("combine");
    gpu.launch(kernel, [M, cdiv(H, kernel.constant("BLOCK"))], args);
    return;
  }
  const kernel = gpu.kernel("combine_adapted");
  const { low, side, scale } = lora;
  gpu.launch(kernel, [cdiv(H, kernel.constant("BN")), M / kernel.constant("BM")], {
    ...{ ...args, low, side, scale, scale_stride: scale ? strideOf(scale) : 0, ...tablesOf(lora) },
  });
}
