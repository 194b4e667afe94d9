// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared by all layers
// (methods/projection.ts), and the vectors d and b trained: lambda_d [rank], lambda_b [out].
//
// It is the LoRA whose factors are diag(d) A and diag(b) B, with a scale of 1. So it passes through a linear as a LoRA
// does, next to any others, and only what happens around a step is its own: before the first pass after a step the factors
// are made from the vectors, and before a step the factors' gradients are turned into those of the vectors and zeroed, so
// that nothing else is stepped or counted:
//
//     dd[r] = sum over k of (diag(d) A)'[r, k] A[r, k],   db[n] = sum over r of (diag(b) B)'[n, r] B[n, r]

import { type Draw, projectionOf } from "../../methods/projection.ts";
import { veraExpand, veraReduce } from "../../ops/vera.ts";
import type { Computation } from "./computation.ts";

export const vera: Computation = {
  /** What an adapter's projections are drawn by (ops/vera.ts, veraExpand). */
  table: {
    width: 5,
    row(spec, { targets, rank, projectionSeed = 0 }) {
      const { width, a, b } = projectionOf(spec, targets, rank, projectionSeed);
      const bits = ({ bound }: Draw) => new Int32Array(Float32Array.of(bound).buffer)[0]!;
      return [a.key | 0, b.key | 0, width, bits(a), bits(b)];
    },
  },
  refresh(device, sites, which) {
    for (const { site, own } of sites) {
      const { a, b, ranks, firstColumn } = site;
      const shared = { ranks, firstColumn, which, projection: own.table! };
      veraExpand(device, { factor: a, vector: own.values["lambda_d"]!, side: "a", ...shared });
      veraExpand(device, { factor: b, vector: own.values["lambda_b"]!, side: "b", ...shared });
    }
  },
  settle(device, sites, which) {
    for (const { site, own } of sites) {
      const { da, db, ranks, firstColumn } = site;
      const shared = { ranks, firstColumn, which, projection: own.table! };
      veraReduce(device, { grad: da, vector: own.grads["lambda_d"]!, side: "a", ...shared });
      veraReduce(device, { grad: db, vector: own.grads["lambda_b"]!, side: "b", ...shared });
    }
  },
};
