// What VeRA (Kopiczko et al. 2024) does around a step: the factors of its low-rank products, and the gradients of its vectors.

import { op } from "./op.ts";

const TABLES = { ranks: "i32 L G", which: "i32 L", projection: "i32 L 5" };

export const veraExpand = op("vera_expand", { factor: "c L S C", vector: "f32 L V", ...TABLES });
export const veraReduce = op("vera_reduce", { grad: "f32 L S C", vector: "f32 L V", ...TABLES });
