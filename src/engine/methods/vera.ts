// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared by all layers
// (methods/projection.ts), and the vectors d and b trained: lambda_d [rank], lambda_b [out].
//
// It is the LoRA whose factors are diag(d) A and diag(b) B, with a scale of 1. So it passes through a linear as a LoRA
// does, next to any others. The factors are made from the vectors in scratch of one target group just before they are used,
// and after the group's backward pass their gradients become those of the vectors:
//
//     dd[r] = sum over k of (diag(d) A)'[r, k] A[r, k],   db[n] = sum over r of (diag(b) B)'[n, r] B[n, r]

import { type Draw, projectionOf } from "../../methods/projection.ts";
import { veraExpand, veraReduce } from "../../ops/vera.ts";
import type { TargetGroup } from "../adapted/target-group.ts";
import type { Computation, Expanding } from "./computation.ts";

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
  expansion: {
    expand: (device, site, of) => {
      for (const side of ["a", "b"] as const) veraExpand(device, { side, ...argumentsOf(site, of) });
    },
    reduce: (device, site, of) => {
      for (const side of ["a", "b"] as const) veraReduce(device, { side, ...argumentsOf(site, of) });
    },
  },
};

const argumentsOf = ({ factors, vectors, ranks, width, firstColumn }: TargetGroup, { which, table }: Expanding) => ({
  ...{ factors, vectors, ranks, width, firstColumn, which },
  projection: table!,
});
