// The activation between an expert's two products, over sorted rows (route.ts), and the gradient of the routing weights.

import { F, I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";
import type { Routes } from "./route.ts";

const c = native({
  expert_act_forward: { args: [P, P, P, I, I, I, F, F], returns: "void" },
  expert_act_backward: { args: [P, P, P, P, P, P, P, I, I, I, I, F, F], returns: "void" },
});

/**
 * silu(gate) up; with a clamp, of g = min(gate, limit) and u = up within -limit and limit, (u + 1) g sigmoid(alpha g). Gate is
 * the first half of a row, or, `interleaved`, every other of its columns. `squares`: without a gate, the square of what is
 * above 0.
 */
export type ExpertActivation = {
  readonly squares?: true;
  readonly interleaved: boolean;
  readonly clamp: { readonly limit: number; readonly alpha: number } | null;
};

const numbers = ({ squares, interleaved, clamp }: ExpertActivation) =>
  [squares ? 2 : Number(interleaved), clamp?.limit ?? 0, clamp?.alpha ?? 0] as const;

/** For GPUs: without a clamp sigmoid(gate) is that with an alpha of 1. */
const clampOf = ({ clamp }: ExpertActivation) => ({ limit: clamp?.limit ?? 0, alpha: clamp?.alpha ?? 1 });

/** What an activation reads of I features. */
export const read = (kind: ExpertActivation, I: number) => ({ G: (kind.squares ? 1 : 2) * I });

/** act c[P, I] of gateUp c[P, G]: G is 2 I, but I of squares. */
export const expertActForward = op<{ gateUp: Tensor; act: Tensor; kind: ExpertActivation; routes: Routes }>(
  "expert_act_forward",
  { gateUp: "c P G", act: "c P I" },
  {
    known: ({ kind, act }) => read(kind, dim(act, 1)),
    cpu: ({ gateUp, act, kind, routes: { firstRow } }) =>
      c.expert_act_forward(gateUp.ptr, act.ptr, firstRow.ptr, dim(firstRow, 0) - 1, dim(act, 1), ...numbers(kind)),
    cuda: ({ gateUp, act, kind, routes: { source } }, gpu) => {
      const [P, width] = [dim(act, 0), dim(act, 1)];
      if (kind.squares) {
        const kernel = gpu.kernel("expert_square_forward");
        return gpu.launch(kernel, [P, cdiv(width, kernel.constant("BLOCK"))], { x: gateUp, act, source, I: width });
      }
      const kernel = gpu.kernel("expert_act_forward", { INTERLEAVED: Number(kind.interleaved) });
      const args = { gate_up: gateUp, act, source, I: width, ...clampOf(kind) };
      gpu.launch(kernel, [P, cdiv(width, kernel.constant("BLOCK"))], args);
    },
  },
);

/**
 * Of dact c[P, I], which lacks the routing weight: dweights f32[M, k] = <dact, act>, 0 where there is no expert, and dgateUp
 * c[P, G] (may be gateUp) = act'(gateUp) times the weight times dact; zeros in padding. dact becomes act times the weight,
 * which the gradient of what adapters have of the next product is of.
 */
export const expertActBackward = op<{
  dact: Tensor;
  gateUp: Tensor;
  kind: ExpertActivation;
  routes: Routes;
  dgateUp: Tensor;
  dweights: Tensor;
}>(
  "expert_act_backward",
  { dact: "c P I", gateUp: "c P G", dgateUp: "c P G", dweights: "f32 M S" },
  {
    known: ({ kind, dact }) => read(kind, dim(dact, 1)),
    cpu: ({ dact, gateUp, kind, routes, dgateUp, dweights }) => {
      const { firstRow, source, weights } = routes;
      const rows = [source.ptr, weights.ptr, firstRow.ptr] as const;
      const sizes = [dim(firstRow, 0) - 1, dim(dweights, 0) * dim(dweights, 1), dim(dact, 1)] as const;
      c.expert_act_backward(dact.ptr, gateUp.ptr, ...rows, dgateUp.ptr, dweights.ptr, ...sizes, ...numbers(kind));
    },
    cuda: ({ dact, gateUp, kind, routes: { source, weights, place }, dgateUp, dweights }, gpu) => {
      const of = { dact, source, weights, place, dweights, pairs: dim(place, 0) * dim(place, 1), I: dim(dact, 1) };
      const grid = [dim(dact, 0)] as const;
      if (kind.squares) return gpu.launch(gpu.kernel("expert_square_backward"), grid, { ...of, x: gateUp, dx: dgateUp });
      const kernel = gpu.kernel("expert_act_backward", { INTERLEAVED: Number(kind.interleaved) });
      gpu.launch(kernel, grid, { ...of, gate_up: gateUp, dgate_up: dgateUp, ...clampOf(kind) });
    },
  },
);
