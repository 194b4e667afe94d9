// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared by all layers (methods/projection.ts), and
// the vectors d and b trained: lambda_d [rank], lambda_b [out].
//
// It is the LoRA whose factors are diag(d) A and diag(b) B, with a scale of 1. So it passes through a linear as a LoRA does, in any company,
// and only what lies around a step is its own: before the first pass behind a step the factors are made from the vectors, and before
// a step the factors' gradients are turned into those of the vectors and zeroed, so that nothing else is stepped or counted:
//
//     dd[r] = sum over k of (diag(d) A)'[r, k] A[r, k],   db[n] = sum over r of (diag(b) B)'[n, r] B[n, r]

import type { ModelSpec } from "../base/spec.ts";
import type { Device } from "../device/device.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { type Draw, projectionOf } from "../methods/projection.ts";
import { hasVectors } from "../methods/registry.ts";
import { veraExpand, veraReduce } from "../ops/vera.ts";
import type { AdapterPool } from "./adapter-pool.ts";

/** Makes the factors of the adapters whose vectors have changed since the last pass. */
export function refresh(device: Device, pool: AdapterPool): void {
  const which = pool.takeStale("vectors");
  if (!which) return;
  for (const { a, b, ranks, firstColumn, vectors } of pool.sites) {
    if (!vectors) continue;
    const shared = { ranks, firstColumn, which, projection: vectors.projection };
    veraExpand(device, { factor: a, vector: vectors.d, side: "a", ...shared });
    veraExpand(device, { factor: b, vector: vectors.b, side: "b", ...shared });
  }
}

/** Adds what has come together in the gradients of the factors to those of the vectors. `which` i32[L] says of whom. */
export function settle(device: Device, pool: AdapterPool, which: Parameters<typeof veraReduce>[1]["which"]): void {
  for (const { da, db, ranks, firstColumn, vectors } of pool.sites) {
    if (!vectors) continue;
    const shared = { ranks, firstColumn, which, projection: vectors.projection };
    veraReduce(device, { grad: da, vector: vectors.dd, side: "a", ...shared });
    veraReduce(device, { grad: db, vector: vectors.db, side: "b", ...shared });
  }
}

export const PROJECTION_WIDTH = 5;

/** What an adapter's projections are drawn by, for the kernels (kernels.ts, vera_expand); zeros where it has none. */
export function projectionRow(spec: ModelSpec, adapter: PoolAdapter | null): number[] {
  if (!adapter || !hasVectors(adapter.method)) return Array(PROJECTION_WIDTH).fill(0);
  const { width, a, b } = projectionOf(spec, adapter.targets, adapter.rank, adapter.projectionSeed ?? 0);
  const bits = ({ bound }: Draw) => new Int32Array(Float32Array.of(bound).buffer)[0]!;
  return [a.key | 0, b.key | 0, width, bits(a), bits(b)];
}
