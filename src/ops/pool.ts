// Means of rows, and their gradient.

import { op } from "./op.ts";

export const poolForward = op("pool_forward", { x: "c T H", bounds: "i32 P 2", y: "c P H" });
export const poolBackward = op("pool_backward", { dy: "c P H", bounds: "i32 P 2", dx: "c T H" });
