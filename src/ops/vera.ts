// What VeRA (Kopiczko et al. 2024) does around a step: the factors of its low-rank products, and the gradients of its vectors.

import { op } from "./op.ts";

const TABLES = {
  factors: "i64 L G 4",
  vectors: "i64 L G 4",
  ranks: "i32 L G",
  which: "i32 L",
  projection: "i32 L 5",
};

export const veraExpand = op("vera_expand", TABLES);
export const veraReduce = op("vera_reduce", TABLES);
