// The input that each layer of Gemma 4's small models has of every token besides the stream: of an embedding of its own, and of
// the stream's embedding, projected. It follows from the tokens alone, so that it has no gradient.

import type { DType } from "../../base/dtype.ts";
import type { ModelSpec } from "../../base/spec.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { embedFetch } from "../../ops/embed.ts";
import { fewRowsForward } from "../../ops/fewrows.ts";
import { linearForward } from "../../ops/linear.ts";
import { multiplyRows } from "../../ops/multiply.ts";
import { rmsnormForward } from "../../ops/rmsnorm.ts";

export type OwnInputWeights = {
  readonly table: Tensor; // c[V, L P], in the machine's memory: each token reads one row of what is most of a small model
  readonly projection: Tensor; // c[L P, H]
  readonly norm: Tensor; // f32[P]
  /** f32[1] each. */
  readonly factors: Readonly<Record<keyof ReturnType<typeof ownInputFactors>, Tensor>>;
};

/** What rows of the table, the projection and their sum are multiplied by; the first is rounded as embeddings' scales are. */
export const ownInputFactors = ({ hidden, perLayer }: ModelSpec) => ({
  tokens: Math.sqrt(perLayer!.size),
  projected: hidden ** -0.5,
  sum: 2 ** -0.5,
});

/** Memory of a pass. */
export type OwnInputWork = {
  readonly embedded: Tensor; // c[M, H]
  readonly projected: Tensor; // c[M, L P]
  readonly rstd: Tensor; // f32[M L]
};

export const takeOwnInputWork = (
  take: (dtype: DType, ...shape: number[]) => Tensor,
  compute: DType,
  { layers, size, hidden }: { readonly layers: number; readonly size: number; readonly hidden: number },
  rows: number,
): OwnInputWork => ({
  embedded: take(compute, rows, hidden),
  projected: take(compute, rows, layers * size),
  rstd: take("f32", rows * layers),
});

/**
 * Begins to bring the tokens' rows of the table from the machine's memory to `into` c[M, L P], concurrently with what follows;
 * what is returned makes later work wait for them.
 */
export const fetchOwnInputs = (device: Device, { table }: OwnInputWeights, ids: Tensor, into: Tensor): (() => void) =>
  device.aside(() => embedFetch(device, { ids, table, x: into }));

/**
 * `into` c[M, L P] = (norm(x W^T / sqrt(H)) + sqrt(P) into) / sqrt(2), x c[M, H] the scaled embedding, norms of P each, of
 * rows of the table in `into`. `isByRow`: they are a pass's whose rows find their own adapters, of any number.
 */
export function ownInputs(
  device: Device,
  { projection, norm, factors }: OwnInputWeights,
  { projected, rstd }: OwnInputWork,
  { x, eps, into, isByRow }: { readonly x: Tensor; readonly eps: number; readonly into: Tensor; readonly isByRow: boolean },
): void {
  const [rows, width] = into.shape as [number, number];
  const size = norm.shape[0]!;
  multiplyRows(device, { x: into, factor: factors.tokens, y: into });
  const of = { ...projected, shape: [rows, width] };
  const product = { x, weight: projection, bias: null, residual: null, y: of, lora: null };
  if (isByRow) fewRowsForward(device, product);
  else linearForward(device, product);
  multiplyRows(device, { x: of, factor: factors.projected, y: of });
  const each = (t: Tensor): Tensor => ({ ...t, shape: [(rows * width) / size, size] });
  const tokens = each(into);
  const means = { ...rstd, shape: [tokens.shape[0]!] };
  rmsnormForward(device, { x: each(of), weight: norm, residual: tokens, y: tokens, rstd: means, eps });
  multiplyRows(device, { x: into, factor: factors.sum, y: into });
}
