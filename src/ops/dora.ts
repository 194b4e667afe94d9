// What DoRA (Liu et al. 2024) adds to a linear layer with low-rank products: the norms of rows, and their lengths as factors.

import { op } from "./op.ts";

export const doraNorm = op("dora_norm", {
  weight: "w N K",
  factors: "i64 L G 4",
  vectors: "i64 L G 4",
  scale: "f32 L G",
  ranks: "i32 L G",
  stale: "i32 L",
});
const TABLES = { vectors: "i64 L G 4", decomposed: "i32 L" };
export const doraForward = op("dora_forward", { z: "c M N", bias: "c N", residual: "c M N", y: "c M N", ...TABLES });
export const doraBackward = op("dora_backward", { dy: "c M N", z: "c M N", ...TABLES });
